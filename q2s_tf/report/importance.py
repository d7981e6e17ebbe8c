"""Importance of channels by ablation: what a change of one channel costs, with the other tower unchanged."""

from typing import Any

import numpy as np
from scipy.stats import spearmanr

from q2s_tf.evaluation.collection import Grades, rank_documents
from q2s_tf.evaluation.judgements import Judgements
from q2s_tf.evaluation.metrics import as_run
from q2s_tf.evaluation.rankers import cosine_rows
from q2s_tf.evaluation.resampling import RESAMPLES
from q2s_tf.evaluation.system_metrics import measure_systems
from q2s_tf.report.channels import ChannelVectors, fuse

ALL = "all channels"
METRICS = ("roc_auc", "recall@10")


def measure_importance(
    queries: ChannelVectors, documents: ChannelVectors, judged: Judgements, grades: Grades, seed: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Importance of every channel of both towers by two ablations, and their mean weights.

    The channel vectors φ are computed once. The first ablation masks a channel and repeats the fusion (eq. 1), so that
    the weights of the other channels adapt as they do when the channel is missing. This is what the tower would lose
    without the channel; it is small for one of two channels that read the same text. The second one gives each row the
    channel of another row. This is how much the scores depend on the channel.

    Args:
        queries: rows of the query tower, those of `judged`.
        documents: rows of the document tower; recall searches all of them.
        judged: judged pairs of these rows.
        grades: the lowest relevant grades.
        seed: of the bootstrap, and of the other rows.

    Returns:
        `roc_auc` and `recall@10` with all channels, as far as they are defined; and a row for each channel: `tower`,
        `channel`, `present` (share of the rows that have it), `weight` (mean over the rows that have any channel),
        `losses`, by metric the paired test of the loss without the channel (`SystemMetrics.differences`), `share`, the
        loss of ROC AUC as a share of all positive losses of the tower, and `dependence`, by metric the test of the loss
        with the channel of another row.

    Source: Que2Search, section on feature importance, which names both ablations; the shares are normalised as in its
    figures. The second ablation: Breiman, Random Forests, 2001, section 10.
    """
    pairs = {ALL: (queries.embedding, documents.embedding)}
    other_query, other_document = (
        np.random.default_rng(seed).permutation(len(channels.vectors)) for channels in (queries, documents)
    )
    for name in queries.names:
        pairs[f"query {name}"] = _without(queries, name), documents.embedding
        pairs[f"query {name} of another row"] = _exchanged(queries, name, other_query), documents.embedding
    for name in documents.names:
        pairs[f"document {name}"] = queries.embedding, _without(documents, name)
        pairs[f"document {name} of another row"] = queries.embedding, _exchanged(documents, name, other_document)
    by_query = zip(*(cosine_rows(*embeddings) for embeddings in pairs.values()), strict=True)
    rows = (dict(zip(pairs, systems, strict=True)) for systems in by_query)
    scores, retrieved = rank_documents(judged, rows, "measuring the importance of channels")
    metrics = measure_systems(judged, grades, None, scores, {name: as_run(rows) for name, rows in retrieved.items()})
    tests = metrics.differences([(ALL, system) for system in pairs if system != ALL], seed, RESAMPLES)
    importance: list[dict[str, Any]] = []
    for tower, channels in (("query", queries), ("document", documents)):
        losses, dependence = (
            {name: _tests_of(tests, f"{tower} {name}{change}") for name in channels.names}
            for change in ("", " of another row")
        )
        positive = {name: max(0, loss.get("roc_auc", {}).get("difference", 0)) for name, loss in losses.items()}
        total = sum(positive.values()) or 1
        presence = channels.present.mean(axis=0).tolist()
        weights = (channels.weights.sum(axis=0) / max(1, channels.present.any(axis=1).sum())).tolist()
        for name, present, weight in zip(channels.names, presence, weights, strict=True):
            row = {"tower": tower, "channel": name, "present": present, "weight": weight}
            row |= {"losses": losses[name], "share": positive[name] / total, "dependence": dependence[name]}
            importance.append(row)
    full = metrics.values(ALL)
    return {name: full[name] for name in METRICS if name in full}, importance


def weight_agreement(importance: list[dict[str, Any]]) -> dict[str, float]:
    """Spearman's rank correlation of mean weight and loss of ROC AUC with another row's channel, by tower.

    A tower with one channel, or where all weights or losses are equal, has none.
    """
    agreement = {}
    for tower in ("query", "document"):
        rows = [row for row in importance if row["tower"] == tower and "roc_auc" in row["dependence"]]
        weights = [row["weight"] for row in rows]
        losses = [row["dependence"]["roc_auc"]["difference"] for row in rows]
        if len(set(weights)) > 1 and len(set(losses)) > 1:
            agreement[tower] = float(spearmanr(weights, losses).statistic)
    return agreement


def _tests_of(tests: list[dict[str, Any]], system: str) -> dict[str, dict[str, Any]]:
    return {test["metric"]: test for test in tests if test["b"] == system and test["metric"] in METRICS}


def _exchanged(channels: ChannelVectors, name: str, other: np.ndarray) -> np.ndarray:
    """The embeddings `[B, D]` with one channel of the rows `other`, int `[B]`, or without it where these lack it."""
    column = channels.names.index(name)
    vectors, present = channels.vectors.copy(), channels.present.copy()
    vectors[:, column], present[:, column] = vectors[other, column], present[other, column]
    return fuse(channels.fusion, vectors, present)[0]


def _without(channels: ChannelVectors, name: str) -> np.ndarray:
    """The embeddings `[B, D]` without one channel."""
    present = channels.present & (np.array(channels.names) != name)
    return fuse(channels.fusion, channels.vectors * present[..., None], present)[0]
