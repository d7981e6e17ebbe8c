"""Retrieval metrics. Each is one function over plain arrays, on a library where one has it."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import ndcg_score, roc_auc_score


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


def ndcg(scores: Sequence[np.ndarray], grades: Sequence[np.ndarray], k: int = 10) -> float:
    """Mean nDCG@k over queries, on the judged documents of each.

        DCG@k = Σ_{r ≤ k} gain(g_r) / log₂(r + 1),  gain(g) = max(0, 2^(g−1) − 1);  nDCG = DCG / the best DCG

    Tied scores share the mean of the gains they compete for. A query with one judged document, or whose every grade has
    gain 0, orders nothing and is left out.

    Args:
        scores: by query, a score for each judged document.
        grades: by query, their grades.
        k: rank of the cut.

    Returns:
        0 to 1; NaN if no query is left.
    """
    values = []
    for score, grade in zip(scores, grades, strict=True):
        gain = np.maximum(0.0, np.exp2(np.asarray(grade, float) - 1) - 1)
        if len(gain) > 1 and gain.any():
            values.append(ndcg_score(gain[None], np.asarray(score)[None], k=k))
    return float(np.mean(values)) if values else float("nan")


def recall_at_k(retrieved: Sequence[Sequence[int]], relevant: Sequence[set[int]], k: int) -> float:
    """Mean over queries of |first k retrieved ∩ relevant| / |relevant|; queries with nothing relevant are left out.

    Returns:
        0 to 1; NaN if no query has a relevant document.
    """
    shares = [
        len(wanted.intersection(found[:k])) / len(wanted)
        for found, wanted in zip(retrieved, relevant, strict=True)
        if wanted
    ]
    return float(np.mean(shares)) if shares else float("nan")


def batch_recall_at_k(queries: np.ndarray, documents: np.ndarray, k: int, batch_size: int = 768) -> float:
    """Share of positives whose own document is among the k best of its batch, by cosine (ties count against it).

    Args:
        queries: unit vectors `[P, D]`.
        documents: unit vectors `[P, D]`, row i answering query i.
        k: rank of the cut.
        batch_size: rows that compete; the last batch may be smaller.

    Returns:
        0 to 1; NaN without rows.
    """
    hits = 0
    for start in range(0, len(queries), batch_size):
        scores = queries[start : start + batch_size] @ documents[start : start + batch_size].T
        own = np.diagonal(scores)[:, None]
        hits += int(((scores >= own).sum(axis=1) <= k).sum())
    return hits / len(queries) if len(queries) else float("nan")
