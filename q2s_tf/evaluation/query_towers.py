"""Comparison of the query towers of two runs with the same document tower: quality, size, and time of a query."""

from dataclasses import replace
from pathlib import Path

from rich.table import Table as RichTable

from q2s_tf.cli import console
from q2s_tf.evaluation.collection import (
    MODEL,
    choose_grades,
    embed_collection,
    rank_documents,
    read_judged,
    score_documents,
)
from q2s_tf.evaluation.metrics import as_run
from q2s_tf.evaluation.query_time import query_seconds
from q2s_tf.evaluation.system_metrics import measure_systems
from q2s_tf.models import encode, load

FIGURES = ("recall@10", "recall@100", "mrr@100", "ndcg@10", "roc_auc")
TIMED = 100
"""Queries that are timed."""

QueryTowerFigures = dict[str, dict[str, float]]
"""By name of a query tower: `FIGURES` that are defined, `weights` (their number) and `µs` for one query."""


def compare_query_towers(teacher: Path, student: Path, documents: Path, judgements: Path) -> QueryTowerFigures:
    """Measures the query towers of the runs `teacher` and `student` on judged pairs and over the whole catalogue.

    Args:
        teacher: a run directory, whose documents are embedded.
        student: a run directory with the same document tower.
        documents: the catalogue.
        judgements: rated pairs, or positives.

    Raises:
        InputError: not a trained run, a table that breaks its contract, no relevant pair.
    """
    paths = {"teacher": teacher, "student": student}
    towers = {name: load(path) for name, path in paths.items()}
    config = towers["teacher"].config
    grades = choose_grades(config, None, None)
    judged, _ = read_judged(documents, judgements, None, config.seed, grades)
    collection = embed_collection(towers["teacher"], documents, judged, None)
    scores, runs = {}, {}
    for name, pair in towers.items():
        embeddings = encode(pair.query, judged.queries)["embedding"]
        scored, retrieved = rank_documents(judged, score_documents(replace(collection, query_embeddings=embeddings)))
        scores[name], runs[name] = scored[MODEL], as_run(retrieved[MODEL])
    metrics = measure_systems(judged, grades, None, scores, runs)
    with console.status("timing queries"):
        seconds = query_seconds(list(paths.values()), [query or "" for query in judged.queries["query"][:TIMED]])
    return {
        name: {**metrics.values(name), "weights": pair.query.count_params(), "µs": 1e6 * median}
        for (name, pair), median in zip(towers.items(), seconds, strict=True)
    }


def query_towers_table(figures: QueryTowerFigures) -> RichTable:
    """The figures of `compare_query_towers` as a table for the console."""
    table = RichTable(caption="weights: of the query tower\nµs: median from text to vector, one query, one thread")
    table.add_column("", no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right")
    for metric in (*FIGURES, "weights", "µs"):
        row = [values[metric] for values in figures.values() if metric in values]
        if row:
            table.add_row(metric, *(f"{value:.4f}" if metric in FIGURES else f"{value:,.0f}" for value in row))
    return table
