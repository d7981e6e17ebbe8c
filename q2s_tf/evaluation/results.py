"""The results of an evaluation, and the files that hold them.

Layout of `OUT/metrics.json`. A metric that a system does not have, or that the data do not define, is absent.

    {
      "run": name of the run directory, "judgements": file name, "later": file name or null,
      "index": null, or the retriever of `--models`: {"version": 3, "index": {"kind": …, …}},
      "sizes": {"queries", "pairs", "relevant_pairs", "left_out_pairs", "documents", "later_queries", "later_pairs"},
      "thresholds": {"relevant_at", "recall_relevant_at"},       both null if the judgements have no ratings
      "negatives": "rated", or "sampled" if the judgements are positives,
      "bootstrap": {"resamples": 1000, "test_resamples": 5000, "level": 0.95},
      "systems": {system: {metric: {"value", "low", "high", "queries"}}},
      "significance": [{"metric", "a", "b", "difference", "low", "high", "p", "p_holm", "wins", "losses", "ties"}],
      "slices": [{"name", "about", "values": [{"value", "queries", "pairs", "relevant_pairs", "small",
                                               "systems": {system: {metric: {"value", "low", "high", "queries"}}}}]}]
    }

Systems, in this order: `q2s_tf` (exact search over the embeddings of the run), `q2s_tf index` (search through the
exported index, if one is given), `BM25`, `RRF` (reciprocal-rank fusion of q2s_tf and BM25).

Metrics: `roc_auc`, `ndcg@10` (judged pairs); `mrr@100`, `recall@10`, `recall@100` (the whole catalogue);
`later_recall@10`, `later_recall@100` (the same on later positives); `batch_recall@1`, `batch_recall@10` (q2s_tf only);
`index_recall@10`, `index_recall@100` (the share of the first k of exact search that the index retrieves).

Slices by query: `language`, `script`, `country`, `length` (characters), `words`, `frequency` (in the training
positives, if given). Slices by document: `document_language`, `missing_<input>`. By both: `language_pair`. A slice by
document measures only the pairs of the slice, without batch and index recall. A slicing with a single slice is left
out. `small` marks a slice with fewer than 30 queries.

`OUT/per_query.parquet` has one row per query: `query`, `country`, `judged_pairs`, `relevant_pairs`, its slice in each
slicing by query as `slice/<name>`, and `<system>/<metric>` for every metric with a value per query (all but `roc_auc`).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table as RichTable

from q2s_tf.errors import InputError
from q2s_tf.evaluation.collection import Collection, Grades
from q2s_tf.evaluation.judgements import Judgements
from q2s_tf.evaluation.resampling import LEVEL, RESAMPLES, TEST_RESAMPLES
from q2s_tf.evaluation.system_metrics import SystemMetrics
from q2s_tf.files import atomic_write


@dataclass
class RunEvaluation(Collection):
    """An embedded test collection (see `Collection`) and what was measured on it.

    Attributes:
        run: the run directory.
        relevant: which judged pairs are relevant in ROC AUC, bool `[J]`.
        recall_relevant: which judged pairs are relevant in recall and MRR, bool `[J]`.
        scores: by system the score of each judged pair, float `[J]`.
        retrieved: by system the first 100 documents of each query, int `[Q, 100]`: rows of the catalogue, then −1.
        per_query: by system and metric the value of each query, float `[Q]`, NaN where it is undefined.
        query_slices: by slicing the slice of each query, `[Q]`.
        results: the content of `metrics.json`.
    """

    run: Path
    relevant: np.ndarray
    recall_relevant: np.ndarray
    scores: dict[str, np.ndarray]
    retrieved: dict[str, np.ndarray]
    per_query: dict[str, dict[str, np.ndarray]]
    query_slices: dict[str, np.ndarray]
    results: dict[str, Any]


def describe(collection: Collection, grades: Grades) -> dict[str, Any]:
    """The entries of `metrics.json` about the data: sizes, thresholds, negatives, bootstrap."""
    judged, later = collection.judged, collection.later
    return {
        "sizes": {
            "queries": len(np.unique(judged.query)),
            "pairs": len(judged.query),
            "relevant_pairs": int(judged.relevant(grades[0]).sum()),
            "left_out_pairs": judged.left_out,
            "documents": len(collection.documents),
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


def check_out(out: Path) -> None:
    """Raises `InputError` if the output folder is a file."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: must be a folder; it is a file")


def write_json(results: dict[str, Any], path: Path) -> None:
    """Writes results as JSON, atomically."""
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def write_per_query(judged: Judgements, metrics: SystemMetrics, slices: dict[str, np.ndarray], path: Path) -> None:
    """Writes one row per query, atomically, in the layout of `per_query.parquet`."""
    columns: dict[str, Any] = {**judged.queries, **{f"slice/{name}": labels for name, labels in slices.items()}}
    columns["judged_pairs"] = np.bincount(metrics.query, minlength=metrics.num_queries)
    columns["relevant_pairs"] = np.bincount(metrics.query[metrics.relevant], minlength=metrics.num_queries)
    for system, by_metric in metrics.per_query.items():
        for metric, values in by_metric.items():
            columns[f"{system}/{metric}"] = pa.array(values, from_pandas=True)  # NaN becomes null
    with atomic_write(path) as aside:
        pq.write_table(pa.table(columns), aside)


def metrics_table(results: dict[str, Any]) -> RichTable:
    """The figures of `metrics.json` as a table for the console, each with half the width of its interval."""
    basis, sizes, grades = "later positives and sampled negatives", results["sizes"], results["thresholds"]
    if results["negatives"] == "rated":
        basis = f"relevant from grade {grades['relevant_at']:g}, for recall from {grades['recall_relevant_at']:g}"
    title = f"{sizes['pairs']:,} pairs of {sizes['queries']:,} queries, {sizes['documents']:,} documents\n{basis}"
    table = RichTable(title=title, caption="± half of the 95 % interval over queries", min_width=60)
    table.add_column("metric", no_wrap=True)
    for system in results["systems"]:
        table.add_column(system, justify="right")
    for metric in dict.fromkeys(metric for figures in results["systems"].values() for metric in figures):
        row = [figures.get(metric) for figures in results["systems"].values()]
        table.add_row(metric, *(f"{f['value']:.4f} ±{(f['high'] - f['low']) / 2:.3f}" if f else "–" for f in row))
    return table
