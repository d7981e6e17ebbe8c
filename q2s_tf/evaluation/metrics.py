"""Retrieval metrics on plain arrays, with one value per query, so that they can be averaged, resampled and compared.

The input of a metric is the score of every judged pair, or the retrieved documents of each query: indices of catalogue
rows `[Q, K]`, best first, −1 where there is none.
"""

import ir_measures
import numpy as np
import tensorflow as tf
from ir_measures import RR, R
from sklearn.metrics import roc_auc_score

Run = dict[str, dict[str, float]]
"""By query and document the retrieval score, as `ir_measures` takes it."""
RETRIEVAL = {"mrr@100": RR, "recall@10": R @ 10, "recall@100": R @ 100}


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Element-wise quotient; NaN where the denominator is not positive."""
    return np.divide(numerator, denominator, where=denominator > 0, out=np.full(len(numerator), np.nan))


def roc_auc(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Area under the ROC curve: the probability that a relevant pair outscores an irrelevant one; ties count half.

    From scores `[J]` and which of them are relevant, bool `[J]`; NaN if all are or none is.
    """
    if relevant.all() or not relevant.any():
        return float("nan")
    return float(roc_auc_score(relevant, scores))


def ndcg(query: np.ndarray, scores: np.ndarray, gains: np.ndarray, num_queries: int, k: int = 10) -> np.ndarray:
    """nDCG@k of each query on its judged documents.

        DCG@k = Σ_{r ≤ k} gain_r / log₂(r + 1);  nDCG = DCG / the best DCG

    Documents with tied scores share the mean discount of their ranks. `sklearn.metrics.ndcg_score` computes the same,
    but only the mean over queries with equally many documents.

    Args:
        query: int `[J]`, the query of each judged pair.
        scores: float `[J]`.
        gains: float `[J]`, at least 0 (`Judgements.gains`).
        num_queries: Q.
        k: rank of the cut.

    Returns:
        Float `[Q]`; NaN for a query with fewer than two judged documents or without a gain.
    """
    best = _dcg(query, gains, gains, num_queries, k)
    best[np.bincount(query, minlength=num_queries) < 2] = 0
    return divide(_dcg(query, scores, gains, num_queries, k), best)


def _dcg(query: np.ndarray, scores: np.ndarray, gains: np.ndarray, num_queries: int, k: int) -> np.ndarray:
    order = np.lexsort((-scores, query))
    query, scores, gains = query[order], scores[order], gains[order]
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    discount = np.where(rank < k, 1 / np.log2(rank + 2), 0.0)
    tie = np.cumsum((np.diff(query, prepend=-1) != 0) | (np.diff(scores, prepend=np.nan) != 0)) - 1
    shared = np.bincount(tie, discount) / np.bincount(tie)
    return np.bincount(query, gains * shared[tie], minlength=num_queries)


def as_run(retrieved: np.ndarray) -> Run:
    """Retrieved documents, int `[Q, K]`, in the format of `ir_measures`. A −1 keeps its rank and is never relevant."""
    names = [str(row) for row in range(retrieved.max(initial=-1) + 1)]
    return {
        str(number): {names[row] if row >= 0 else f"−{rank}": -float(rank) for rank, row in enumerate(rows)}
        for number, rows in enumerate(retrieved.tolist())
    }


def retrieval(run: Run, query: np.ndarray, document: np.ndarray) -> dict[str, np.ndarray]:
    """Reciprocal rank of the first relevant document, and recall, of each query over the whole catalogue.

        MRR@100 = 1 / rank of the first relevant document in the first 100, else 0
        recall@k = |first k ∩ relevant| / |relevant|

    From the first 100 documents of each query (`as_run`), and query and document of each relevant pair, int `[P]`.
    Returns by metric float `[Q]`, NaN where a query has no relevant document.
    """
    relevant: dict[str, dict[str, int]] = {}
    for number, row in zip(query.tolist(), document.tolist(), strict=True):
        relevant.setdefault(str(number), {})[str(row)] = 1
    values = {name: np.full(len(run), np.nan) for name in RETRIEVAL}
    names = {measure: name for name, measure in RETRIEVAL.items()}
    for metric in ir_measures.iter_calc(list(names), relevant, {number: run[number] for number in relevant}):
        values[names[metric.measure]][int(metric.query_id)] = metric.value
    return values


def overlap_at_k(retrieved: np.ndarray, exact: np.ndarray, k: int) -> np.ndarray:
    """The share of the first k documents of exact search that another search has among its first k, float `[Q]`.

    NaN where exact search retrieves nothing.
    """
    wanted = exact[:, :k] >= 0
    hits = wanted & (exact[:, :k, None] == retrieved[:, None, :k]).any(axis=2)
    return divide(hits.sum(axis=1), wanted.sum(axis=1))


def batch_hits(query: tf.Tensor, document: tf.Tensor, mask: tf.Tensor, k: int) -> tf.Tensor:
    """Whether each query of a batch has its own document among the k best by cosine; a tie counts as a miss.

    The mean is batch recall@k, in training and in evaluation.

    Args:
        query: unit vectors `[B, D]`.
        document: unit vectors `[C, D]`; row i < B is relevant to query i, the others to none.
        mask: bool `[B, C]`, False where document j is another positive of query i; the diagonal is True.
        k: rank of the cut.
    """
    scores = tf.where(mask, tf.matmul(query, document, transpose_b=True), -np.inf)
    own = tf.linalg.diag_part(scores)[:, tf.newaxis]
    return tf.reduce_sum(tf.cast(scores >= own, tf.int32), axis=1) <= k


def mean_by_query(values: np.ndarray, query: np.ndarray, num_queries: int) -> np.ndarray:
    """The mean of values `[P]` over the pairs of each query, float `[Q]`; NaN where a query has none."""
    return divide(np.bincount(query, values, minlength=num_queries), np.bincount(query, minlength=num_queries))
