"""Importance of channels by ablation: what a metric loses without a channel of one tower, the other tower unchanged."""

from dataclasses import dataclass

import numpy as np

from q2s_tf.evaluation.metrics import roc_auc
from q2s_tf.report.channels import ChannelVectors, fuse

DEPTH = 10
METHODS = ("missing", "permuted")
ROUNDS = 3
"""Permutations whose losses are averaged."""


@dataclass(frozen=True)
class Pairs:
    """Judged pairs of the rows of both towers.

    Attributes:
        query: int `[J]`, row of the query.
        document: int `[J]`, row of the document.
        relevant: bool `[J]`, for ROC AUC.
        wanted: bool `[J]`, for recall.
    """

    query: np.ndarray
    document: np.ndarray
    relevant: np.ndarray
    wanted: np.ndarray


@dataclass(frozen=True)
class Importance:
    """Importance of one channel.

    Attributes:
        tower: "query" or "document".
        channel: its name.
        present: share of rows that have it.
        method: "missing" (the channel is masked out) or "permuted" (it comes from another row).
        roc_auc_drop: ROC AUC with all channels minus ROC AUC without this one; None if undefined.
        recall_drop: the same for recall@10 over the sampled documents.
        share: `roc_auc_drop` as a share of all positive drops of the tower by this method; 0 if it is not positive.
    """

    tower: str
    channel: str
    present: float
    method: str
    roc_auc_drop: float | None
    recall_drop: float | None
    share: float


def measure_importance(
    queries: ChannelVectors, documents: ChannelVectors, pairs: Pairs, seed: int
) -> tuple[dict[str, float | None], list[Importance]]:
    """Importance of every channel of both towers by ablation.

    The channel vectors φ are computed once. An ablation changes one of them and repeats the fusion (eq. 1), so that the
    weights of the other channels adapt as they do when the channel is missing.

    Args:
        queries: rows of the query tower.
        documents: rows of the document tower; recall searches all of them.
        pairs: judged pairs of these rows.
        seed: of the permutations.

    Returns:
        `roc_auc` and `recall@10` with all channels, and two rows (one per method) for each channel.

    Source: Que2Search, section on feature importance; the shares are normalised as in its figures.
    """
    base = _measure(queries.embedding, documents.embedding, pairs)
    importance: list[Importance] = []
    for tower, channels in (("query", queries), ("document", documents)):
        present = channels.present.mean(axis=0).tolist()
        for method in METHODS:
            drops = np.zeros((len(channels.names), 2))
            for channel in range(len(channels.names)):
                ablated = [
                    _measure(changed, documents.embedding, pairs)
                    if tower == "query"
                    else _measure(queries.embedding, changed, pairs)
                    for changed in _ablate(channels, channel, method, seed)
                ]
                drops[channel] = base - np.mean(ablated, axis=0)
            positive = np.nan_to_num(np.maximum(drops[:, 0], 0))
            shares = (positive / (positive.sum() or 1)).tolist()
            importance += [
                Importance(tower, name, rate, method, _defined(auc), _defined(recall), share)
                for name, rate, (auc, recall), share in zip(channels.names, present, drops, shares, strict=True)
            ]
    return {"roc_auc": _defined(base[0]), f"recall@{DEPTH}": _defined(base[1])}, importance


def _ablate(channels: ChannelVectors, channel: int, method: str, seed: int) -> list[np.ndarray]:
    """Embeddings `[B, D]` without one channel, or with that of another row, once per permutation."""
    generator, embeddings = np.random.default_rng(seed), []
    for _ in range(ROUNDS if method == "permuted" else 1):
        vectors, present = channels.vectors.copy(), channels.present.copy()
        if method == "missing":
            vectors[:, channel], present[:, channel] = 0, False
        else:
            # Each row takes the value of the next row in a random cycle, so that no row keeps its own.
            cycle = generator.permutation(len(vectors))
            other = np.empty_like(cycle)
            other[cycle] = np.roll(cycle, 1)
            vectors[:, channel], present[:, channel] = vectors[other, channel], present[other, channel]
        embeddings.append(fuse(channels.fusion, vectors, present)[0])
    return embeddings


def _measure(queries: np.ndarray, documents: np.ndarray, pairs: Pairs) -> np.ndarray:
    """ROC AUC over the pairs and recall@10 over the documents."""
    auc = roc_auc(np.einsum("jd,jd->j", queries[pairs.query], documents[pairs.document]), pairs.relevant)
    return np.array([auc, _recall(queries, documents, pairs)])


def _recall(queries: np.ndarray, documents: np.ndarray, pairs: Pairs) -> float:
    """Mean over queries of the share of wanted documents that are among the 10 best; a tie counts as a miss."""
    query, document = pairs.query[pairs.wanted], pairs.document[pairs.wanted]
    if not len(query):
        return float("nan")
    if len(documents) <= DEPTH:
        return 1.0
    unique, index = np.unique(query, return_inverse=True)
    hits = np.zeros(len(query), bool)
    for start in range(0, len(unique), 256):
        scores = queries[unique[start : start + 256]] @ documents.T
        next_best = np.partition(scores, -DEPTH - 1, axis=1)[:, -DEPTH - 1]
        chunk = (index >= start) & (index < start + 256)
        hits[chunk] = scores[index[chunk] - start, document[chunk]] > next_best[index[chunk] - start]
    return float((np.bincount(index, hits) / np.bincount(index)).mean())


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
