"""Evaluation of a run on judgements, beside BM25: metrics on the judged pairs and over the whole catalogue."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table as RichTable

from q2s_tf.cli import track
from q2s_tf.errors import InputError
from q2s_tf.evaluation.judgements import Judgements, read_judgements
from q2s_tf.evaluation.metrics import batch_recall_at_k, ndcg, recall_at_k, roc_auc
from q2s_tf.evaluation.rankers import Bm25, cosine_ranker
from q2s_tf.tables import open_documents, open_judgements
from q2s_tf.towers import embed_catalogue, load

DEPTHS = (10, 100)
MODEL = "q2s_tf"


def evaluate(
    run: Path,
    documents: Path,
    judgements: Path,
    out: Path,
    relevant_at: float | None = None,
    recall_relevant_at: float | None = None,
    stage: int | None = None,
) -> dict[str, Any]:
    """Evaluates a run, and BM25, and writes `OUT/metrics.json`.

    `roc_auc` and `ndcg@10` are over the judged pairs, `recall@k` over the whole catalogue by exact search, and
    `batch_recall@k` over the relevant pairs in batches of 768 (the model alone).

    Args:
        run: a trained run directory.
        documents: the catalogue.
        judgements: rated pairs; or later positives, which stand against sampled negatives and give no nDCG.
        out: folder of the results.
        relevant_at: the grade from which a pair is relevant; the run's config when None.
        recall_relevant_at: the same for recall; the run's config when None.
        stage: 1 or 2; the last one that was trained when None.

    Returns:
        What was written: sizes, thresholds, and by system the metrics (None where a metric is not defined).

    Raises:
        InputError: not a trained run, a table that breaks its contract, judgements of another catalogue.
    """
    table = open_documents(documents)
    rated_pairs = open_judgements(judgements)
    towers = load(run, stage)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: must be a folder; it is a file")
    settings = towers.config.evaluation
    table = open_documents(documents, towers.document.preprocessor.inputs, towers.config.vector_inputs())
    ids, embeddings = embed_catalogue(towers.document, table)
    judged = read_judgements(rated_pairs, ids, towers.config.seed)
    pair_at = settings.relevant_at if relevant_at is None else relevant_at
    recall_grades = (recall_relevant_at, relevant_at, settings.recall_relevant_at, settings.relevant_at)
    recall_at = next(grade for grade in recall_grades if grade is not None)
    relevant = judged.relevant(pair_at)
    queries = towers.query.predict(judged.queries)["embedding"]
    bm25 = Bm25(table)
    systems = {
        MODEL: _measure(cosine_ranker(queries, embeddings), judged, relevant, recall_at, MODEL),
        "BM25": _measure(bm25.scores(judged.queries["query"]), judged, relevant, recall_at, "BM25"),
    }
    for k in (1, 10):
        recall = batch_recall_at_k(queries[judged.query[relevant]], embeddings[judged.document[relevant]], k)
        systems[MODEL][f"batch_recall@{k}"] = _defined(recall)
    results = {
        "run": run.resolve().name,
        "judgements": judgements.name,
        "queries": len(judged.queries["query"]),
        "pairs": len(judged.query),
        "relevant_pairs": int(relevant.sum()),
        "left_out_pairs": judged.left_out,
        "documents": len(ids),
        "relevant_at": pair_at if judged.rated else None,
        "recall_relevant_at": recall_at if judged.rated else None,
        "negatives": "rated" if judged.rated else "sampled",
        "systems": systems,
    }
    out.mkdir(parents=True, exist_ok=True)
    aside = out / "partial.metrics.json"
    aside.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, out / "metrics.json")
    return results


def metrics_table(results: dict[str, Any]) -> RichTable:
    """The results of `evaluate` as a table for the console."""
    kind = "later positives against sampled negatives"
    if results["negatives"] == "rated":
        kind = f"relevant from {results['relevant_at']:g}, for recall from {results['recall_relevant_at']:g}"
    title = f"{results['pairs']:,} pairs of {results['queries']:,} queries, {results['documents']:,} documents\n{kind}"
    table = RichTable(title=title, min_width=60)
    table.add_column("metric")
    for system in results["systems"]:
        table.add_column(system, justify="right")
    for metric in results["systems"][MODEL]:
        values = [figures.get(metric) for figures in results["systems"].values()]
        table.add_row(metric, *("–" if value is None else f"{value:.4f}" for value in values))
    return table


def _measure(
    scores: Iterator[np.ndarray], judged: Judgements, relevant: np.ndarray, recall_at: float, name: str
) -> dict[str, float | None]:
    """Every metric of one system, from its scores `[C, N]` a chunk of queries at a time."""
    by_query = judged.by_query()
    pair_scores = np.empty(len(judged.query))
    retrieved: list[list[int]] = []
    rows = track((row for chunk in scores for row in chunk), f"scoring with {name}", len(by_query))
    for pairs, row in zip(by_query, rows, strict=True):
        pair_scores[pairs] = row[judged.document[pairs]]
        retrieved.append(_best(row, max(DEPTHS)).tolist())
    found = judged.relevant(recall_at)
    wanted = [set(judged.document[pairs[found[pairs]]]) for pairs in by_query]
    metrics: dict[str, float | None] = {"roc_auc": _defined(roc_auc(pair_scores, relevant))}
    graded = [judged.relevance[pairs] for pairs in by_query] if judged.rated else []
    metrics["ndcg@10"] = _defined(ndcg([pair_scores[pairs] for pairs in by_query[: len(graded)]], graded))
    for k in DEPTHS:
        metrics[f"recall@{k}"] = _defined(recall_at_k(retrieved, wanted, k))
    return metrics


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k highest scores, falling; equal scores by row."""
    if k < len(scores):
        threshold = np.partition(scores, -k)[-k]
        candidates = np.flatnonzero(scores >= threshold)
    else:
        candidates = np.arange(len(scores))
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value
