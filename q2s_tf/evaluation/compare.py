"""Comparison of two runs on the same judgements, with significance tests and the queries that changed most."""

from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from q2s_tf.cli import console, printable
from q2s_tf.errors import InputError
from q2s_tf.evaluation.collection import (
    MODEL,
    choose_grades,
    embed_collection,
    rank_documents,
    read_judged,
    score_documents,
)
from q2s_tf.evaluation.judgements import Judgements
from q2s_tf.evaluation.metrics import as_run
from q2s_tf.evaluation.results import check_out, describe, replace_files, write_json, write_per_query
from q2s_tf.evaluation.system_metrics import SystemMetrics, measure_systems
from q2s_tf.models import load
from q2s_tf.tables import open_documents

A, B = "A", "B"
MOVERS = 10
"""Queries that are listed among those that gained most, and among those that lost most."""


def compare(
    run_a: Path,
    run_b: Path,
    documents: Path,
    judgements: Path,
    out: Path | None = None,
    later: Path | None = None,
    relevant_at: float | None = None,
    recall_relevant_at: float | None = None,
    stage_a: int | None = None,
    stage_b: int | None = None,
) -> dict[str, Any]:
    """Evaluates two runs on one catalogue and the same judged pairs.

    Args:
        run_a: a trained run directory, the current one.
        run_b: another one, which may replace it.
        documents: the catalogue.
        judgements: rated pairs, or positives.
        out: folder for `comparison.json` and `per_query.parquet`; nothing is written when None.
        later: positives of later days.
        relevant_at: lowest relevant grade; that of the configs, which must be equal, when None.
        recall_relevant_at: the same for recall and MRR.
        stage_a: stage of the first run, 1 or 2; its last stage when None.
        stage_b: the same for the second run.

    Returns:
        `runs` (names of A and B), sizes, thresholds, `systems` and `significance` (B − A) as in `metrics.json`, and
        `movers`: `metric`, `gained` and `lost`, the queries whose value changed most, with the values of A and B.

    Raises:
        InputError: not a trained run, a table that breaks its contract, thresholds that differ, no relevant pair, a
            folder that cannot be written.
    """
    open_documents(documents)
    if out:
        check_out(out)
    towers = {A: load(run_a, stage_a), B: load(run_b, stage_b)}
    grades, grades_b = (choose_grades(pair.config, relevant_at, recall_relevant_at) for pair in towers.values())
    if grades != grades_b:
        raise InputError(
            f"{run_a} and {run_b}: must have the same relevant_at and recall_relevant_at; their configs have {grades} "
            f"and {grades_b}: give --relevant-at and --recall-relevant-at"
        )
    seed, need_grades = towers[A].config.seed, (relevant_at, recall_relevant_at) != (None, None)
    judged, later_positives = read_judged(documents, judgements, later, seed, grades, need_grades)
    scores, runs = {}, {}
    for name in (A, B):
        collection = embed_collection(towers[name], documents, judged, later_positives)
        scored, retrieved = rank_documents(judged, score_documents(collection))
        scores[name], runs[name] = scored[MODEL], as_run(retrieved[MODEL])
    metrics = measure_systems(judged, grades, later_positives, scores, runs)
    with console.status("measuring"):
        figures, significance = metrics.figures(seed), metrics.differences([(B, A)], seed)
    names = (
        path.resolve().name + (f" (stage {stage})" if stage else "")
        for path, stage in ((run_a, stage_a), (run_b, stage_b))
    )
    results = {
        "runs": dict(zip((A, B), names, strict=True)),
        "judgements": judgements.name,
        "later": later.name if later else None,
        **describe(collection, grades),
        "systems": figures,
        "significance": significance,
        "movers": find_movers(metrics, judged),
    }
    if out:
        with replace_files(out) as folder:
            write_json(results, folder / "comparison.json")
            write_per_query(judged, metrics, {}, folder / "per_query.parquet")
    return results


def find_movers(metrics: SystemMetrics, judged: Judgements) -> dict[str, Any]:
    """The queries whose nDCG@10 (recall@10 without ratings) changed most from A to B."""
    metric = "ndcg@10" if judged.rated else "recall@10"
    a, b = metrics.per_query[A][metric], metrics.per_query[B][metric]
    movers: dict[str, Any] = {"metric": metric}
    for name, rows in zip(("gained", "lost"), metrics.movers(metric, A, B, MOVERS), strict=True):
        movers[name] = [
            {**{column: values[row] for column, values in judged.queries.items()}, A: float(a[row]), B: float(b[row])}
            for row in rows
        ]
    return movers


def comparison_tables(results: dict[str, Any]) -> list[RichTable]:
    """The results of `compare` as tables for the console: the metrics, then the queries that changed most."""
    sizes, names, movers = results["sizes"], results["runs"], results["movers"]
    title = f"A {names[A]}, B {names[B]}: {sizes['pairs']:,} pairs of {sizes['queries']:,} queries"
    metrics = RichTable(
        title=printable(title), caption="± half of the 95 % interval; p: paired bootstrap over queries, Holm"
    )
    metrics.add_column("metric", no_wrap=True)
    for heading in (A, B, "B − A", "p", "better/worse/same"):
        metrics.add_column(heading, justify="right")
    for row in results["significance"]:
        values = (f"{results['systems'][name][row['metric']]['value']:.4f}" for name in (A, B))
        counts = "–" if row["wins"] is None else f"{row['wins']}/{row['losses']}/{row['ties']}"
        change = f"{row['difference']:+.4f} ±{(row['high'] - row['low']) / 2:.4f}"
        metrics.add_row(row["metric"], *values, change, f"{row['p_holm']:.4f}", counts)
    tables = [metrics]
    for name in ("gained", "lost"):
        table = RichTable("query", "country", title=f"queries that {name} most in {movers['metric']}")
        for heading in (A, B):
            table.add_column(heading, justify="right")
        for row in movers[name]:
            texts = printable(row["query"]), printable(row["country"] or "–")
            table.add_row(*texts, f"{row[A]:.3f}", f"{row[B]:.3f}")
        tables.append(table)
    return tables
