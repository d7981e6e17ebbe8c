#!/usr/bin/env python
"""Compares runs with the alternatives of a user: BM25, and the vectors of other encoders, by the same evaluation.

Every query of the judgements is compared with the whole catalogue. The vectors of an encoder are in a folder with
`documents.parquet` (`document_id`, `embedding`) and `queries.parquet` (`query`, `embedding`), as peers_minilm.py writes
them; the name of the folder is the name of the system. Figures and tests are those of `q2s_tf.evaluation`: a bootstrap
over queries, paired between systems.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import typer
from rich.console import Console
from rich.table import Table as RichTable

from q2s_tf.cli import console
from q2s_tf.cli import run as run_command
from q2s_tf.errors import InputError
from q2s_tf.files import atomic_write

if TYPE_CHECKING:
    from q2s_tf.evaluation.collection import Grades
    from q2s_tf.evaluation.judgements import Judgements
    from q2s_tf.tables import Table

Cells = list[list[str]]
"""A table's headings and rows."""
HEADINGS = {"roc_auc": "ROC AUC", "ndcg@10": "nDCG@10", "mrr@100": "MRR@100"}


def main(
    documents: Path = typer.Option(..., help="The catalogue."),
    judgements: Path = typer.Option(..., help="Rated pairs, or later positives."),
    run: list[Path] = typer.Option(..., help="A run directory of tools/train.py; may be given several times."),
    out: Path = typer.Option(..., help="Folder for peers.json, peers.md and per_query.parquet."),
    vectors: list[Path] = typer.Option([], help="Vectors of another encoder; may be given several times."),
    relevant_at: float | None = typer.Option(None, help="Grade from which a pair is relevant, else the runs'."),
    recall_relevant_at: float | None = typer.Option(None, help="The same for recall and MRR over the catalogue."),
) -> None:
    """Measure runs, BM25 and other encoders on the same judgements, and test each run against each of the others.

    Example: benchmarks/peers.py --documents runs/home_depot_data/documents.parquet
    --judgements runs/home_depot_data/judgements_dev.parquet --run runs/home_depot
    --vectors runs/home_depot_peers/minilm-zero-shot --vectors runs/home_depot_peers/minilm-fine-tuned
    --out runs/home_depot_peers
    """
    from q2s_tf.evaluation.collection import rank_documents
    from q2s_tf.evaluation.judgements import read_judgements
    from q2s_tf.evaluation.metrics import as_run
    from q2s_tf.evaluation.results import check_out, write_json, write_per_query
    from q2s_tf.evaluation.system_metrics import measure_systems
    from q2s_tf.models import read_ids
    from q2s_tf.tables import open_documents, open_judgements

    check_out(out)
    table = open_documents(documents)
    grades, seed = agreed_grades(run, relevant_at, recall_relevant_at)
    ids = read_ids(table)
    judged = read_judgements(open_judgements(judgements), ids, seed)
    scores: dict[str, np.ndarray] = {}
    runs = {}
    for system, rows in systems(table, ids, judged, run, vectors):
        scored, retrieved = rank_documents(judged, ({system: row} for row in rows))
        scores |= scored
        runs[system] = as_run(retrieved[system])
    metrics = measure_systems(judged, grades, None, scores, runs)
    ours = [path.resolve().name for path in run]
    with console.status("measuring"):
        figures = metrics.figures(seed)
        tests = metrics.differences([(a, b) for a in ours for b in figures if b not in ours], seed)
    results = {
        "judgements": judgements.name,
        "thresholds": dict(zip(("relevant_at", "recall_relevant_at"), grades, strict=True)) if judged.rated else None,
        "sizes": {"queries": metrics.num_queries, "pairs": len(judged.query), "documents": len(ids)},
        "systems": figures,
        "significance": tests,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(results, out / "peers.json")
    write_per_query(judged, metrics, {}, out / "per_query.parquet")
    tables = [figure_cells(figures), test_cells(tests)]
    with atomic_write(out / "peers.md") as aside:
        aside.write_text("\n".join(as_markdown(cells) for cells in tables), encoding="utf-8")
    for cells in tables:
        Console().print(as_table(cells))


def agreed_grades(
    runs: list[Path], relevant_at: float | None, recall_relevant_at: float | None
) -> tuple["Grades", int]:
    """The lowest relevant grades, from the options or the configs of the runs, and the seed of the first run.

    Raises:
        InputError: not a run directory, or configs that differ.
    """
    from q2s_tf.evaluation.collection import choose_grades
    from q2s_tf.models import read_run_config

    configs = [read_run_config(path) for path in runs]
    grades = {choose_grades(config, relevant_at, recall_relevant_at) for config in configs}
    if len(grades) > 1:
        raise InputError(
            f"--run: all must have the same relevant_at and recall_relevant_at; their configs have {sorted(grades)}: "
            "give --relevant-at and --recall-relevant-at"
        )
    return grades.pop(), configs[0].seed


def systems(
    table: "Table", ids: pa.Array, judged: "Judgements", runs: list[Path], vectors: list[Path]
) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
    """By system the score of each document for each query, `[N]`; −∞ where the system does not retrieve it."""
    from q2s_tf.evaluation.collection import LEXICAL
    from q2s_tf.evaluation.rankers import Bm25, cosine_rows
    from q2s_tf.models import embed_catalogue, encode, load
    from q2s_tf.tables import open_documents

    names = [LEXICAL, *(path.resolve().name for path in (*vectors, *runs))]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"--run, --vectors: every folder must have a different name; {', '.join(twice)} occurs twice")
    queries = judged.queries["query"]
    yield LEXICAL, (np.where(row > 0, row, -np.inf) for row in Bm25(table).rows(queries))
    for folder in vectors:
        yield (
            folder.resolve().name,
            cosine_rows(
                read_vectors(folder / "queries.parquet", "query", pa.array(queries)),
                read_vectors(folder / "documents.parquet", "document_id", ids),
            ),
        )
    for path in runs:
        towers = load(path)
        catalogue = open_documents(table.path, towers.config.tower_inputs("document"), towers.config.vector_inputs())
        query, (_, document) = encode(towers.query, judged.queries), embed_catalogue(towers.document, catalogue)
        yield path.resolve().name, cosine_rows(query["embedding"], document)


def read_vectors(path: Path, key: str, wanted: pa.Array) -> np.ndarray:
    """Reads the vectors `[N, D]` of the given keys, scaled to unit length.

    Raises:
        InputError: the file does not exist or lacks a column, or a key has no vector.
    """
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"vectors {path}: there is no such file: make it with benchmarks/peers_minilm.py")
    table = pq.read_table(path)
    if absent := {key, "embedding"} - set(table.column_names):
        raise InputError(
            f"vectors {path}: needs the column {', '.join(absent)}; it has {', '.join(table.column_names)}"
        )
    indices = pc.index_in(wanted, table[key].combine_chunks())
    if indices.null_count:
        first = wanted.filter(pc.is_null(indices))[0]
        raise InputError(
            f"vectors {path}: every {key} needs a vector; {indices.null_count} have none, such as {first}: make "
            "them from these tables"
        )
    column = table["embedding"].combine_chunks()
    rows = column.flatten().to_numpy().reshape(len(column), -1)[indices.to_numpy()]
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def figure_cells(figures: dict[str, dict[str, dict[str, Any]]]) -> Cells:
    """One row per system: every metric with half of its interval; the highest value of a column is bold."""
    metrics = list(dict.fromkeys(metric for values in figures.values() for metric in values))
    best = {metric: max(values[metric]["value"] for values in figures.values()) for metric in metrics}
    cells = [["", *(HEADINGS.get(metric, metric) for metric in metrics)]]
    for system, values in figures.items():
        row = [system]
        for metric in metrics:
            value = short(values[metric]["value"])
            shown = f"**{value}**" if values[metric]["value"] == best[metric] else value
            row.append(f"{shown} ±{half_width(values[metric])}")
        cells.append(row)
    return cells


def test_cells(tests: list[dict[str, Any]]) -> Cells:
    """One row per pair of systems: by metric the difference, half of its interval, and p after Holm's correction."""
    metrics = list(dict.fromkeys(row["metric"] for row in tests))
    pairs = dict.fromkeys((row["a"], row["b"]) for row in tests)
    shown = {
        (
            row["a"],
            row["b"],
            row["metric"],
        ): f"{short(row['difference'], '+')} ±{half_width(row)} (p {short(row['p_holm'])})"
        for row in tests
    }
    cells = [["", *(HEADINGS.get(metric, metric) for metric in metrics)]]
    return cells + [[f"{a} − {b}", *(shown[a, b, metric] for metric in metrics)] for a, b in pairs]


def half_width(figure: dict[str, Any]) -> str:
    """Half the width of a 95 % interval."""
    return short((figure["high"] - figure["low"]) / 2)


def short(value: float, sign: str = "") -> str:
    """Three decimals without the leading zero."""
    return f"{value:{sign}.3f}".replace("0.", ".", 1)


def as_markdown(cells: Cells) -> str:
    """Cells as a Markdown table."""
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_table(cells: Cells) -> RichTable:
    """Cells as a table for the console."""
    table = RichTable(caption="± half of the 95 % interval over queries; p: paired bootstrap, Holm")
    for column, heading in enumerate(cells[0]):
        table.add_column(heading, no_wrap=column == 0)
    for row in cells[1:]:
        table.add_row(*(cell.replace("**", "") for cell in row))
    return table


if __name__ == "__main__":
    run_command(main)
