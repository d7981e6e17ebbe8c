"""Retrieval metrics over plain arrays: by query, so that they can be averaged, resampled and compared.

A system is known by its score of every judged pair, and by the documents it found first: places in the catalogue,
`[Q, K]`, best first, −1 where there is none.
"""

import ir_measures
import numpy as np
from ir_measures import RR, R
from sklearn.metrics import roc_auc_score

Run = dict[str, dict[str, float]]
RETRIEVAL = {"mrr@100": RR, "recall@10": R @ 10, "recall@100": R @ 100}
"""Measures over the first 100 found, as `ir_measures` knows them."""


def roc_auc(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a relevant pair scores above an irrelevant one, ties counting half.

    Args:
        scores: float `[J]`, a score for each judged pair.
        relevant: bool `[J]`.

    Returns:
        0 to 1; NaN if the pairs are all relevant or all irrelevant.
    """
    if relevant.all() or not relevant.any():
        return float("nan")
    return float(roc_auc_score(relevant, scores))


def ndcg(query: np.ndarray, scores: np.ndarray, grades: np.ndarray, num_queries: int, k: int = 10) -> np.ndarray:
    """nDCG@k of each query, on its judged documents.

        DCG@k = Σ_{r ≤ k} gain(g_r) / log₂(r + 1),  gain(g) = max(0, 2^(g−1) − 1);  nDCG = DCG / the best DCG

    Tied scores share the mean of the gains they compete for. `sklearn.metrics.ndcg_score` computes the same, but only
    the mean of queries with equally many documents.

    Args:
        query: int `[J]`, the query of each judged pair.
        scores: float `[J]`.
        grades: float `[J]`, not rounded.
        num_queries: Q.
        k: rank of the cut.

    Returns:
        float `[Q]`, 0 to 1; NaN where nothing is ordered: one judged document, or no grade above 1.
    """
    gain = np.maximum(0.0, np.exp2(grades - 1) - 1)
    best = _dcg(query, gain, gain, num_queries, k)
    ordered = (best > 0) & (np.bincount(query, minlength=num_queries) > 1)
    return np.divide(_dcg(query, scores, gain, num_queries, k), best, where=ordered, out=np.full(num_queries, np.nan))


def _dcg(query: np.ndarray, scores: np.ndarray, gain: np.ndarray, num_queries: int, k: int) -> np.ndarray:
    order = np.lexsort((-scores, query))
    query, scores, gain = query[order], scores[order], gain[order]
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    discount = np.where(rank < k, 1 / np.log2(rank + 2), 0.0)
    tie = np.cumsum((np.diff(query, prepend=-1) != 0) | (np.diff(scores, prepend=np.nan) != 0)) - 1
    shared = np.bincount(tie, discount) / np.bincount(tie)
    return np.bincount(query, gain * shared[tie], minlength=num_queries)


def as_run(found: np.ndarray) -> Run:
    """What a system found, int `[Q, K]`, as `ir_measures` takes it: by query and document a score, falling.

    A place without a document keeps its rank, as one that nobody asked for.
    """
    names = [str(place) for place in range(found.max(initial=-1) + 1)]
    return {
        str(number): {names[place] if place >= 0 else f"−{rank}": -float(rank) for rank, place in enumerate(row)}
        for number, row in enumerate(found.tolist())
    }


def retrieval(run: Run, query: np.ndarray, document: np.ndarray) -> dict[str, np.ndarray]:
    """Reciprocal rank of the first relevant document, and recall, of each query over the whole catalogue.

        MRR@100 = 1 / rank of the first relevant one among 100, else 0;  recall@k = |first k ∩ relevant| / |relevant|

    Args:
        run: the first 100 documents of each of Q queries (`as_run`).
        query: int `[P]`, the query of each relevant pair.
        document: int `[P]`, its document.

    Returns:
        By metric float `[Q]`, NaN where a query has no relevant document.
    """
    relevant: dict[str, dict[str, int]] = {}
    for number, place in zip(query.tolist(), document.tolist(), strict=True):
        relevant.setdefault(str(number), {})[str(place)] = 1
    values = {name: np.full(len(run), np.nan) for name in RETRIEVAL}
    names = {measure: name for name, measure in RETRIEVAL.items()}
    for metric in ir_measures.iter_calc(list(names), relevant, {number: run[number] for number in relevant}):
        values[names[metric.measure]][int(metric.query_id)] = metric.value
    return values


def overlap_at_k(found: np.ndarray, exact: np.ndarray, k: int) -> np.ndarray:
    """What share of exact search's first k another search finds among its own first k, by query.

    Args:
        found: int `[Q, K]`, K ≥ k.
        exact: int `[Q, K]`.
        k: rank of the cut.

    Returns:
        float `[Q]`, NaN where exact search finds nothing.
    """
    values = np.full(len(exact), np.nan)
    for number, (mine, theirs) in enumerate(zip(found[:, :k], exact[:, :k], strict=True)):
        wanted = theirs[theirs >= 0]
        if len(wanted):
            values[number] = np.isin(wanted, mine).mean()
    return values


def batch_hits(queries: np.ndarray, documents: np.ndarray, k: int, batch_size: int = 768) -> np.ndarray:
    """Which positives find their own document among the k best of their batch, by cosine (ties count against them).

    Their share is batch recall@k.

    Args:
        queries: unit vectors `[P, D]`.
        documents: unit vectors `[P, D]`, row i answering query i.
        k: rank of the cut.
        batch_size: rows that compete; the last batch may be smaller.

    Returns:
        bool `[P]`.
    """
    hits = np.zeros(len(queries), bool)
    for start in range(0, len(queries), batch_size):
        rows = slice(start, start + batch_size)
        scores = queries[rows] @ documents[rows].T
        hits[rows] = (scores >= np.diagonal(scores)[:, None]).sum(axis=1) <= k
    return hits


def mean_by_query(values: np.ndarray, query: np.ndarray, num_queries: int) -> np.ndarray:
    """The mean of values `[P]` over each query's pairs, float `[Q]`; NaN where a query has none."""
    pairs = np.bincount(query, minlength=num_queries)
    return np.divide(
        np.bincount(query, values, minlength=num_queries), pairs, where=pairs > 0, out=np.full(num_queries, np.nan)
    )
