"""How much each channel matters: what is lost when it is taken away, the other tower held fixed."""

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
    """What one channel is worth.

    Attributes:
        tower: "query" or "document".
        channel: its name.
        present: share of rows that have it.
        method: "missing" (the channel is masked out) or "permuted" (it comes from another row).
        roc_auc_drop: ROC AUC with everything, less ROC AUC without; below 0 where the channel does harm.
        recall_drop: the same for recall@10 over the sampled documents. Either is None where it is not defined.
        share: `roc_auc_drop` as a share of the tower's positive drops by this method; 0 where it is not positive.
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

    The channel vectors φ are computed once; an ablation changes one of them and fuses again (eq. 1), so that the
    weights of the others adapt as they do when the channel is missing.

    Args:
        queries: rows of the query tower.
        documents: rows of the document tower; recall looks for the wanted ones among all of them.
        pairs: judged pairs of these rows.
        seed: of the permutations.

    Returns:
        `roc_auc` and `recall@10` with everything, and two rows (both methods) a channel.

    Source: Que2Search, section on feature importance; the shares are normalised as its figures are.
    """
    base = _measure(queries.embedding, documents.embedding, pairs)
    found: list[Importance] = []
    for tower, channels in (("query", queries), ("document", documents)):
        for method in METHODS:
            drops = np.zeros((len(channels.names), 2))
            for place in range(len(channels.names)):
                ablated = [
                    _measure(*((each, documents.embedding) if tower == "query" else (queries.embedding, each)), pairs)
                    for each in _ablations(channels, place, method, seed)
                ]
                drops[place] = base - np.mean(ablated, axis=0)
            found += _describe(tower, channels, method, drops)
    return {"roc_auc": _defined(base[0]), f"recall@{DEPTH}": _defined(base[1])}, found


def _describe(tower: str, channels: ChannelVectors, method: str, drops: np.ndarray) -> list[Importance]:
    """The drops `[N, 2]` of one tower by one method, with their shares."""
    gains = np.nan_to_num(np.maximum(drops[:, 0], 0))
    shares = gains / gains.sum() if gains.any() else gains
    present = channels.present.mean(axis=0)
    return [
        Importance(tower, name, float(here), method, _defined(auc), _defined(recall), float(share))
        for name, here, (auc, recall), share in zip(channels.names, present, drops, shares, strict=True)
    ]


def _ablations(channels: ChannelVectors, place: int, method: str, seed: int) -> list[np.ndarray]:
    """Embeddings `[B, D]` with one channel taken away: one array, or one a permutation."""
    if method == "missing":
        vectors, present = channels.vectors.copy(), channels.present.copy()
        vectors[:, place], present[:, place] = 0, False
        return [fuse(channels.fusion, vectors, present)[0]]
    generator = np.random.default_rng(seed)
    embeddings = []
    for _ in range(ROUNDS):
        other = _other_rows(len(channels.vectors), generator)
        vectors, present = channels.vectors.copy(), channels.present.copy()
        vectors[:, place], present[:, place] = vectors[other, place], present[other, place]
        embeddings.append(fuse(channels.fusion, vectors, present)[0])
    return embeddings


def _other_rows(rows: int, generator: np.random.Generator) -> np.ndarray:
    """For each row another one, each used once: the next in a random round."""
    round_ = generator.permutation(rows)
    other = np.empty(rows, int)
    other[round_] = np.roll(round_, 1)
    return other


def _measure(queries: np.ndarray, documents: np.ndarray, pairs: Pairs) -> np.ndarray:
    """ROC AUC over the pairs and recall@10 over the documents."""
    auc = roc_auc(np.einsum("jd,jd->j", queries[pairs.query], documents[pairs.document]), pairs.relevant)
    return np.array([auc, _recall(queries, documents, pairs)])


def _recall(queries: np.ndarray, documents: np.ndarray, pairs: Pairs) -> float:
    """Mean over queries of the share of wanted documents that are among the 10 best; ties count against them."""
    query, document = pairs.query[pairs.wanted], pairs.document[pairs.wanted]
    if not len(query):
        return float("nan")
    asked, which = np.unique(query, return_inverse=True)
    if len(documents) <= DEPTH:
        return 1.0
    found = np.zeros(len(query), bool)
    for start in range(0, len(asked), 256):
        scores = queries[asked[start : start + 256]] @ documents.T
        next_best = np.partition(scores, -DEPTH - 1, axis=1)[:, -DEPTH - 1]
        mine = (which >= start) & (which < start + 256)
        found[mine] = scores[which[mine] - start, document[mine]] > next_best[which[mine] - start]
    return float((np.bincount(which, found) / np.bincount(which)).mean())


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
