"""What an evaluation found, and how it is written down.

`OUT/metrics.json` has this layout. A metric that a system does not have, or that the data do not define, is absent.

    {
      "run": name of the run directory, "judgements": file name, "later": file name or null,
      "index": null, or what `--models` held: {"version": 3, "index": {"kind": …, …}},
      "sizes": {"queries", "pairs", "relevant_pairs", "left_out_pairs", "documents", "later_queries", "later_pairs"},
      "thresholds": {"relevant_at", "recall_relevant_at"},       null each where the judgements have no ratings
      "negatives": "rated", or "sampled" where the judgements are positives,
      "bootstrap": {"resamples": 1000, "test_resamples": 5000, "level": 0.95},
      "systems": {system: {metric: {"value", "low", "high", "queries"}}},
      "significance": [{"metric", "a", "b", "difference", "low", "high", "p", "p_holm", "wins", "losses", "ties"}],
      "slices": [{"name", "about", "values": [{"value", "queries", "pairs", "relevant_pairs", "small",
                                               "systems": {system: {metric: {"value", "low", "high", "queries"}}}}]}]
    }

Systems, in this order: `q2s_tf` (exact search over the run's embeddings), `q2s_tf index` (the same through the exported
index, if one is given), `BM25`, `RRF` (reciprocal-rank fusion of q2s_tf and BM25).

Metrics: `roc_auc`, `ndcg@10` (judged pairs); `mrr@100`, `recall@10`, `recall@100` (the whole catalogue);
`later_recall@10`, `later_recall@100` (the same on later positives); `batch_recall@1`, `batch_recall@10` (q2s_tf alone);
`index_recall@10`, `index_recall@100` (what share of exact search's first k the index finds).

Slices by query: `language`, `script`, `country`, `length` (characters), `words`, `frequency` (in the training
positives, if they are given). Slices by document: `document_language`, `missing_<input>`; by both: `language_pair`.
A slice by document measures the pairs of the slice alone, without batch and index recall. Slicings with one slice are
left out; `small` flags fewer than 30 queries.

`OUT/per_query.parquet` has a row a query: `query`, `country`, `judged_pairs`, `relevant_pairs`, its slice in every
slicing by query as `slice/<name>`, and `<system>/<metric>` for every metric that a query has (all but `roc_auc`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table as RichTable

from q2s_tf.evaluation.judgements import Judgements
from q2s_tf.models import Towers
from q2s_tf.tables import Table

MODEL, INDEX, LEXICAL, FUSED = "q2s_tf", "q2s_tf index", "BM25", "RRF"
"""Names of the systems."""


@dataclass
class Evaluation:
    """Everything an evaluation computed, so that reports need not compute it again. N documents, Q queries, J pairs.

    Attributes:
        run: the run directory.
        towers: the trained towers.
        table: the catalogue, to be read again where a report needs more of it.
        documents: the catalogue's texts `[N]`: `document_id`, `title`, `description`, `language`, `country`.
        missing: by input of the document tower which documents lack it, bool `[N]`.
        document_embeddings: `[N, D]`, unit length.
        document_weights: channel weights of the documents, `[N, channels]`, in the order of `towers.document.channels`.
        query_embeddings: `[Q, D]`, unit length.
        query_weights: channel weights of the queries, in the order of `towers.query.channels`.
        judged: the judged pairs and the queries (those of later positives too).
        relevant: which judged pairs are relevant in ROC AUC, bool `[J]`.
        recall_relevant: which are relevant in recall and MRR, bool `[J]`.
        scores: by system the score of each judged pair, float `[J]`.
        found: by system the first 100 documents of each query, int `[Q, 100]`: places in the catalogue, then −1.
        per_query: by system and metric the value of each query, float `[Q]`, NaN where it is not defined.
        query_slices: by slicing the value of each query, `[Q]`.
        results: what `metrics.json` holds.
    """

    run: Path
    towers: Towers
    table: Table
    documents: pa.Table
    missing: dict[str, np.ndarray]
    document_embeddings: np.ndarray
    document_weights: np.ndarray
    query_embeddings: np.ndarray
    query_weights: np.ndarray
    judged: Judgements
    relevant: np.ndarray
    recall_relevant: np.ndarray
    scores: dict[str, np.ndarray]
    found: dict[str, np.ndarray]
    per_query: dict[str, dict[str, np.ndarray]]
    query_slices: dict[str, np.ndarray]
    results: dict[str, Any]


def metrics_table(results: dict[str, Any]) -> RichTable:
    """The figures of `metrics.json` as a table for the console, each with half the width of its interval."""
    kind, sizes = "later positives against sampled negatives", results["sizes"]
    if results["negatives"] == "rated":
        at = results["thresholds"]
        kind = f"relevant from {at['relevant_at']:g}, for recall from {at['recall_relevant_at']:g}"
    title = f"{sizes['pairs']:,} pairs of {sizes['queries']:,} queries, {sizes['documents']:,} documents\n{kind}"
    table = RichTable(title=title, caption="± half of the 95 % interval over queries", min_width=60)
    table.add_column("metric", no_wrap=True)
    for system in results["systems"]:
        table.add_column(system, justify="right")
    for metric in dict.fromkeys(metric for figures in results["systems"].values() for metric in figures):
        table.add_row(metric, *(_shown(figures.get(metric)) for figures in results["systems"].values()))
    return table


def _shown(figure: dict[str, float] | None) -> str:
    if figure is None:
        return "–"
    return f"{figure['value']:.4f} ±{(figure['high'] - figure['low']) / 2:.3f}".replace("±0.", "±.")
