"""Evaluation of a run on judgements, compared with BM25 and with the fusion of both."""

from pathlib import Path
from typing import Any

import numpy as np

from q2s_tf.cli import console, track
from q2s_tf.evaluation.collection import (
    DEPTH,
    FUSED,
    INDEX,
    LEXICAL,
    MODEL,
    Collection,
    Grades,
    choose_grades,
    embed_collection,
    rank_documents,
    score_documents,
)
from q2s_tf.evaluation.exported_index import find_retriever, search_index
from q2s_tf.evaluation.metrics import Run, as_run, batch_hits, mean_by_query, overlap_at_k
from q2s_tf.evaluation.rankers import Bm25
from q2s_tf.evaluation.results import RunEvaluation, check_out, describe, write_json, write_per_query
from q2s_tf.evaluation.slices import Slicing, make_slicings
from q2s_tf.evaluation.system_metrics import SystemMetrics, measure_systems
from q2s_tf.models import load
from q2s_tf.tables import open_documents, open_positives

SMALL = 30
"""A slice with fewer queries is marked as small: its interval is too wide for a conclusion."""


def evaluate(
    run: Path,
    documents: Path,
    judgements: Path,
    out: Path,
    relevant_at: float | None = None,
    recall_relevant_at: float | None = None,
    stage: int | None = None,
    later: Path | None = None,
    positives: Path | None = None,
    models: Path | None = None,
) -> RunEvaluation:
    """Evaluates a run, BM25 and their fusion; writes `OUT/metrics.json` and `OUT/per_query.parquet`.

    `q2s_tf.evaluation.results` describes the files.

    Args:
        run: a trained run directory.
        documents: the catalogue.
        judgements: rated pairs; or later positives, which are measured against sampled negatives and without nDCG.
        out: folder of the results.
        relevant_at: lowest relevant grade; that of the config of the run when None.
        recall_relevant_at: the same for recall and MRR.
        stage: 1 or 2; the last trained stage when None.
        later: positives of later days, for recall of what users chose afterwards.
        positives: the training positives, for slices by the frequency of a query.
        models: folder of exported servables, to measure search through the index too.

    Raises:
        InputError: not a trained run, a table that breaks its contract, judgements of another catalogue, no export.
    """
    open_documents(documents)
    trained_on = open_positives(positives) if positives else None
    towers = load(run, stage)
    check_out(out)
    exported = find_retriever(models, towers) if models else None
    seed, grades = towers.config.seed, choose_grades(towers.config, relevant_at, recall_relevant_at)
    collection = embed_collection(towers, documents, judgements, later, seed)
    judged = collection.judged
    scores, retrieved = rank_documents(judged, score_documents(collection, Bm25(collection.table)))
    compared = [(MODEL, LEXICAL), (FUSED, MODEL), (FUSED, LEXICAL)]
    if exported:
        from_index = search_index(*exported, collection.query_embeddings, collection.document_ids, DEPTH)
        retrieved = {MODEL: retrieved[MODEL], INDEX: from_index, **retrieved}
        compared.append((INDEX, MODEL))
    with console.status("measuring"):
        runs = {system: as_run(rows) for system, rows in retrieved.items()}
        metrics = measure_systems(judged, grades, collection.later, scores, runs)
        _add_model_metrics(metrics, collection, retrieved)
        figures, significance = metrics.figures(seed), metrics.differences(compared, seed)
        slicings = make_slicings(collection, trained_on.read() if trained_on else None)
    results = {
        "run": run.resolve().name,
        "judgements": judgements.name,
        "later": later.name if later else None,
        "index": {key: exported[1][key] for key in ("version", "index")} if exported else None,
        **describe(collection, grades),
        "systems": figures,
        "significance": significance,
        "slices": _measure_slices(slicings, metrics, collection, grades, runs),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(results, out / "metrics.json")
    query_slices = {cut.name: cut.query for cut in slicings if cut.query is not None and cut.document is None}
    write_per_query(judged, metrics, query_slices, out / "per_query.parquet")
    return RunEvaluation(
        **vars(collection),
        run=run,
        relevant=metrics.relevant,
        recall_relevant=judged.relevant(grades[1]),
        scores=scores,
        retrieved=retrieved,
        per_query=metrics.per_query,
        query_slices=query_slices,
        results=results,
    )


def _add_model_metrics(metrics: SystemMetrics, collection: Collection, retrieved: dict[str, np.ndarray]) -> None:
    """Adds batch recall of the run, and the overlap of the index with exact search."""
    query, document = metrics.query[metrics.relevant], collection.judged.document[metrics.relevant]
    for k in (1, 10):
        hits = batch_hits(collection.query_embeddings[query], collection.document_embeddings[document], k)
        metrics.per_query[MODEL][f"batch_recall@{k}"] = mean_by_query(hits, query, metrics.num_queries)
    if INDEX in retrieved:
        for k in (10, DEPTH):
            overlap = overlap_at_k(retrieved[INDEX], retrieved[MODEL], k)
            metrics.per_query[INDEX][f"index_recall@{k}"] = overlap


def _measure_slices(
    slicings: list[Slicing], metrics: SystemMetrics, collection: Collection, grades: Grades, runs: dict[str, Run]
) -> list[dict[str, Any]]:
    """The entry `slices` of `metrics.json`."""
    entries = []
    for slicing in track(slicings, "measuring slices"):
        values = []
        for label in slicing.names(collection.judged):
            if slicing.query is not None and slicing.document is None:
                part = metrics.select_queries(slicing.query == label)
            else:
                part = _measure_pairs(slicing, label, metrics, collection, grades, runs)
            queries = len(np.unique(part.query))
            sizes = {"queries": queries, "pairs": len(part.query), "relevant_pairs": int(part.relevant.sum())}
            figures = part.figures(collection.towers.config.seed)
            values.append({"value": label, **sizes, "small": queries < SMALL, "systems": figures})
        if len(values) > 1:
            entries.append({"name": slicing.name, "about": slicing.about, "values": values})
    return entries


def _measure_pairs(
    slicing: Slicing,
    label: str,
    metrics: SystemMetrics,
    collection: Collection,
    grades: Grades,
    runs: dict[str, Run],
) -> SystemMetrics:
    """The metrics of the judged pairs and later positives of one slice."""
    pairs = slicing.labels(collection.judged) == label
    judged, later = collection.judged.select(pairs), collection.later
    later = later and later.select(slicing.labels(later) == label)
    scores = {system: values[pairs] for system, values in metrics.scores.items()}
    part = measure_systems(judged, grades, later, scores, runs)
    return part.select_queries(np.isin(np.arange(part.num_queries), [*judged.query, *(later.query if later else [])]))
