"""Evaluation of a run on judgements, beside BM25. What it returns and writes: see `q2s_tf.evaluation.evaluation`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from q2s_tf.cli import console, track
from q2s_tf.errors import InputError
from q2s_tf.evaluation.encoding import DEPTH, Encoded, Grades, choose_grades, encode, rank
from q2s_tf.evaluation.evaluation import FUSED, INDEX, LEXICAL, MODEL, Evaluation
from q2s_tf.evaluation.exported import find_retriever, search
from q2s_tf.evaluation.judgements import Judgements
from q2s_tf.evaluation.measures import Measures, measure
from q2s_tf.evaluation.metrics import Run, as_run, batch_hits, mean_by_query, overlap_at_k
from q2s_tf.evaluation.rankers import Bm25
from q2s_tf.evaluation.resampling import LEVEL, RESAMPLES, TEST_RESAMPLES
from q2s_tf.evaluation.slices import Slicing, cut
from q2s_tf.files import atomic_write
from q2s_tf.models import load
from q2s_tf.tables import open_documents, open_positives

SMALL = 30
"""A slice of fewer queries is flagged: its interval says little."""


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
) -> Evaluation:
    """Evaluates a run, BM25 and their fusion, and writes `OUT/metrics.json` and `OUT/per_query.parquet`.

    Args:
        run: a trained run directory.
        documents: the catalogue.
        judgements: rated pairs; or later positives, which stand against sampled negatives and give no nDCG.
        out: folder of the results.
        relevant_at: the grade from which a pair is relevant; the run's config when None.
        recall_relevant_at: the same for recall and MRR; the run's config when None.
        stage: 1 or 2; the last one that was trained when None.
        later: positives of later days, for recall of what people went on to choose.
        positives: what the run was trained on, to tell frequent queries from rare ones.
        models: folder of exported servables, to measure search through the index too.

    Raises:
        InputError: not a trained run, a table that breaks its contract, judgements of another catalogue, no export.
    """
    open_documents(documents)
    trained_on = open_positives(positives) if positives else None
    towers = load(run, stage)
    check_out(out)
    exported = find_retriever(models, towers) if models else None
    encoded = encode(towers, documents, judgements, later, towers.config.seed)
    judged, catalogue = encoded.judged, encoded.documents
    grades = choose_grades(towers.config, relevant_at, recall_relevant_at)
    scores, found = rank(encoded, Bm25(encoded.table))
    if exported:
        through_index = search(*exported, encoded.embeddings, catalogue.ids, DEPTH)
        found = {MODEL: found[MODEL], INDEX: through_index, **found}
    seed = towers.config.seed
    compared = [(MODEL, LEXICAL), (FUSED, MODEL)] + [(INDEX, MODEL)] * bool(exported)
    with console.status("measuring"):
        runs = {system: as_run(places) for system, places in found.items()}
        measures = measure(judged, *grades, encoded.later, scores, runs)
        _add_model_metrics(measures, encoded, found)
        figures, significance = measures.figures(seed), measures.differences(compared, seed)
        slicings = cut(judged.queries, catalogue, trained_on.read() if trained_on else None)
    results = {
        "run": run.resolve().name,
        "judgements": judgements.name,
        "later": later.name if later else None,
        "index": {key: exported[1][key] for key in ("version", "index")} if exported else None,
        **describe(encoded, grades),
        "systems": figures,
        "significance": significance,
        "slices": _measure_slices(slicings, measures, encoded, grades, runs),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(results, out / "metrics.json")
    query_slices = {each.name: each.query for each in slicings if each.query is not None and each.document is None}
    write_per_query(judged, measures, query_slices, out / "per_query.parquet")
    return Evaluation(
        run=run,
        towers=towers,
        table=encoded.table,
        documents=catalogue.texts,
        missing=catalogue.missing,
        document_embeddings=catalogue.embeddings,
        document_weights=catalogue.weights,
        query_embeddings=encoded.embeddings,
        query_weights=encoded.weights,
        judged=judged,
        relevant=measures.relevant,
        recall_relevant=judged.relevant(grades[1]),
        scores=scores,
        found=found,
        per_query=measures.per_query,
        query_slices=query_slices,
        results=results,
    )


def check_out(out: Path) -> None:
    """`InputError` if `--out` is a file."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: must be a folder; it is a file")


def write_json(results: dict[str, Any], path: Path) -> None:
    """Writes results as JSON, whole or not at all."""
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def write_per_query(judged: Judgements, measures: Measures, slices: dict[str, np.ndarray], path: Path) -> None:
    """Writes a row a query, whole or not at all: see `q2s_tf.evaluation.evaluation`."""
    columns: dict[str, Any] = {**judged.queries, **{f"slice/{name}": labels for name, labels in slices.items()}}
    columns["judged_pairs"] = np.bincount(measures.query, minlength=measures.num_queries)
    columns["relevant_pairs"] = np.bincount(measures.query[measures.relevant], minlength=measures.num_queries)
    for system, metrics in measures.per_query.items():
        for metric, values in metrics.items():
            columns[f"{system}/{metric}"] = pa.array(values, from_pandas=True)  # NaN becomes null
    with atomic_write(path) as aside:
        pq.write_table(pa.table(columns), aside)


def _add_model_metrics(measures: Measures, encoded: Encoded, found: dict[str, np.ndarray]) -> None:
    """Batch recall of the run, and what the index loses against exact search."""
    query, document = measures.query[measures.relevant], encoded.judged.document[measures.relevant]
    for k in (1, 10):
        hits = batch_hits(encoded.embeddings[query], encoded.documents.embeddings[document], k)
        measures.per_query[MODEL][f"batch_recall@{k}"] = mean_by_query(hits, query, measures.num_queries)
    if INDEX in found:
        for k in (10, DEPTH):
            measures.per_query[INDEX][f"index_recall@{k}"] = overlap_at_k(found[INDEX], found[MODEL], k)


def describe(encoded: Encoded, grades: Grades) -> dict[str, Any]:
    """What was measured on: sizes, thresholds, where the irrelevant pairs come from."""
    judged, later = encoded.judged, encoded.later
    return {
        "sizes": {
            "queries": len(np.unique(judged.query)),
            "pairs": len(judged.query),
            "relevant_pairs": int(judged.relevant(grades[0]).sum()),
            "left_out_pairs": judged.left_out,
            "documents": len(encoded.documents.ids),
            "later_queries": len(np.unique(later.query)) if later else 0,
            "later_pairs": len(later.query) if later else 0,
        },
        "thresholds": {
            "relevant_at": grades[0] if judged.rated else None,
            "recall_relevant_at": grades[1] if judged.rated else None,
        },
        "negatives": "rated" if judged.rated else "sampled",
        "bootstrap": {"resamples": RESAMPLES, "test_resamples": TEST_RESAMPLES, "level": LEVEL},
    }


def _measure_slices(
    slicings: list[Slicing],
    measures: Measures,
    encoded: Encoded,
    grades: Grades,
    runs: dict[str, Run],
) -> list[dict[str, Any]]:
    """Every slicing that has at least two slices, as `metrics.json` holds it."""
    told = []
    for slicing in track(slicings, "measuring slices"):
        names = slicing.names(encoded.judged)
        if len(names) == 1:
            continue
        values = []
        for label in names:
            part = _measure_slice(slicing, label, measures, encoded, grades, runs)
            queries = len(np.unique(part.query))
            sizes = {"queries": queries, "pairs": len(part.query), "relevant_pairs": int(part.relevant.sum())}
            figures = part.figures(encoded.towers.config.seed)
            values.append({"value": label, **sizes, "small": queries < SMALL, "systems": figures})
        told.append({"name": slicing.name, "about": slicing.about, "values": values})
    return told


def _measure_slice(
    slicing: Slicing,
    label: str,
    measures: Measures,
    encoded: Encoded,
    grades: Grades,
    runs: dict[str, Run],
) -> Measures:
    if slicing.document is None and slicing.query is not None:
        return measures.of_queries(slicing.query == label)
    pairs = slicing.labels(encoded.judged) == label
    judged = encoded.judged.select(pairs)
    later = encoded.later and encoded.later.select(slicing.labels(encoded.later) == label)
    scores = {system: values[pairs] for system, values in measures.scores.items()}
    part = measure(judged, *grades, later, scores, runs)
    return part.of_queries(np.isin(np.arange(part.num_queries), [*judged.query, *(later.query if later else [])]))
