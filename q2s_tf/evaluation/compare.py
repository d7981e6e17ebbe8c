"""Two runs on the same judgements: which one is better, by how much, how surely, and on which queries."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table as RichTable

from q2s_tf.cli import console
from q2s_tf.errors import InputError
from q2s_tf.evaluation.encoding import Encoded, choose_grades, encode, rank
from q2s_tf.evaluation.evaluate import check_out, describe, write_json, write_per_query
from q2s_tf.evaluation.evaluation import MODEL
from q2s_tf.evaluation.measures import Measures, measure
from q2s_tf.evaluation.metrics import as_run
from q2s_tf.models import load
from q2s_tf.tables import open_documents

A, B = "A", "B"
MOVERS = 10
"""How many queries are told that gained, and that lost, most."""


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
    """Measures two runs anew on one catalogue and the same judged pairs.

    Args:
        run_a: a trained run directory, the one that is there.
        run_b: another one, the one that might replace it.
        documents: the catalogue.
        judgements: rated pairs, or positives.
        out: folder for `comparison.json` and `per_query.parquet`; nothing is written when None.
        later: positives of later days.
        relevant_at: the grade from which a pair is relevant; what the runs' configs agree on when None.
        recall_relevant_at: the same for recall and MRR.
        stage_a: 1 or 2, of the first run; its last stage when None.
        stage_b: the same of the other run.

    Returns:
        `runs` (names of A and B), sizes, thresholds, `systems` and `significance` (b = A against a = B) as in
        `metrics.json`, and `movers`: `metric`, `gained` and `lost`, the queries whose value changed most, with the
        values of A and B.

    Raises:
        InputError: not a trained run, a table that breaks its contract, thresholds that differ.
    """
    open_documents(documents)
    if out:
        check_out(out)
    towers = {A: load(run_a, stage_a), B: load(run_b, stage_b)}
    grades = {name: choose_grades(each.config, relevant_at, recall_relevant_at) for name, each in towers.items()}
    if grades[A] != grades[B]:
        raise InputError(
            f"{run_a} and {run_b}: must agree on relevant_at and recall_relevant_at; their configs say {grades[A]} and "
            f"{grades[B]}: give --relevant-at and --recall-relevant-at"
        )
    seed = towers[A].config.seed
    scores, runs = {}, {}
    for name in (A, B):
        encoded = encode(towers[name], documents, judgements, later, seed)
        scored, found = rank(encoded, None)
        scores[name], runs[name] = scored[MODEL], as_run(found[MODEL])
    measures = measure(encoded.judged, *grades[A], encoded.later, scores, runs)
    with console.status("measuring"):
        figures, significance = measures.figures(seed), measures.differences([(B, A)], seed)
    results = {
        "runs": {A: _name(run_a, stage_a), B: _name(run_b, stage_b)},
        "judgements": judgements.name,
        "later": later.name if later else None,
        **describe(encoded, grades[A]),
        "systems": figures,
        "significance": significance,
        "movers": find_movers(measures, encoded),
    }
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_json(results, out / "comparison.json")
        write_per_query(encoded.judged, measures, {}, out / "per_query.parquet")
    return results


def find_movers(measures: Measures, encoded: Encoded) -> dict[str, Any]:
    """The queries whose nDCG@10 (recall@10 where there are no ratings) differs most between A and B."""
    metric = "ndcg@10" if encoded.judged.rated else "recall@10"
    a, b = measures.per_query[A][metric], measures.per_query[B][metric]
    change = np.nan_to_num(b - a)
    order = np.argsort(-change, kind="stable")
    queries = encoded.judged.queries

    def tell(places: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"query": queries["query"][at], "country": queries["country"][at], A: float(a[at]), B: float(b[at])}
            for at in places[:MOVERS]
        ]

    gained, lost = order[change[order] > 0], order[::-1][change[order[::-1]] < 0]
    return {"metric": metric, "gained": tell(gained), "lost": tell(lost)}


def _name(run: Path, stage: int | None) -> str:
    return run.resolve().name + (f" (stage {stage})" if stage else "")


def comparison_tables(results: dict[str, Any]) -> list[RichTable]:
    """The results of `compare` as tables for the console: the metrics, then the queries that moved most."""
    sizes, names = results["sizes"], results["runs"]
    title = f"A {names[A]}, B {names[B]}: {sizes['pairs']:,} pairs of {sizes['queries']:,} queries"
    table = RichTable(
        title=escape(title), caption="± half of the 95 % interval; p: paired bootstrap over queries, Holm"
    )
    for heading in ("metric", A, B, "B − A", "p", "better/worse/same"):
        first = heading == "metric"
        table.add_column(heading, justify="left" if first else "right", no_wrap=first)
    for row in results["significance"]:
        value = {name: f"{results['systems'][name][row['metric']]['value']:.4f}" for name in (A, B)}
        counts = "–" if row["wins"] is None else f"{row['wins']}/{row['losses']}/{row['ties']}"
        change = f"{row['difference']:+.4f} ±{(row['high'] - row['low']) / 2:.4f}"
        table.add_row(row["metric"], value[A], value[B], change, f"{row['p_holm']:.4f}", counts)
    return [table, *(_movers_table(results["movers"], which) for which in ("gained", "lost"))]


def _movers_table(movers: dict[str, Any], which: str) -> RichTable:
    table = RichTable(title=f"queries that {which} most in {movers['metric']}", title_justify="left")
    for heading in ("query", "country", A, B):
        table.add_column(heading, justify="right" if heading in (A, B) else "left")
    for row in movers[which]:
        table.add_row(escape(row["query"]), escape(row["country"] or "–"), f"{row[A]:.3f}", f"{row[B]:.3f}")
    return table
