"""Importance of channels by ablation: what a metric loses without a channel of one tower, the other tower unchanged."""

from typing import Any

import numpy as np

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
    """Importance of every channel of both towers by ablation.

    The channel vectors φ are computed once. An ablation masks a channel and repeats the fusion (eq. 1), so that the
    weights of the other channels adapt as they do when the channel is missing.

    Args:
        queries: rows of the query tower, those of `judged`.
        documents: rows of the document tower; recall searches all of them.
        judged: judged pairs of these rows.
        grades: the lowest relevant grades.
        seed: of the bootstrap.

    Returns:
        `roc_auc` and `recall@10` with all channels, as far as they are defined; and a row for each channel: `tower`,
        `channel`, `present` (share of the rows that have it), `losses`, by metric the paired test of the loss without
        the channel (`SystemMetrics.differences`), and `share`, the loss of ROC AUC as a share of all positive losses
        of the tower.

    Source: Que2Search, section on feature importance; the shares are normalised as in its figures.
    """
    pairs = {ALL: (queries.embedding, documents.embedding)}
    pairs |= {f"query {name}": (_without(queries, name), documents.embedding) for name in queries.names}
    pairs |= {f"document {name}": (queries.embedding, _without(documents, name)) for name in documents.names}
    by_query = zip(*(cosine_rows(*embeddings) for embeddings in pairs.values()), strict=True)
    rows = (dict(zip(pairs, systems, strict=True)) for systems in by_query)
    scores, retrieved = rank_documents(judged, rows, "measuring the importance of channels")
    metrics = measure_systems(judged, grades, None, scores, {name: as_run(rows) for name, rows in retrieved.items()})
    tests = metrics.differences([(ALL, system) for system in pairs if system != ALL], seed, RESAMPLES)
    importance: list[dict[str, Any]] = []
    for tower, channels in (("query", queries), ("document", documents)):
        losses = {
            name: {
                test["metric"]: test for test in tests if test["b"] == f"{tower} {name}" and test["metric"] in METRICS
            }
            for name in channels.names
        }
        positive = {name: max(0, loss.get("roc_auc", {}).get("difference", 0)) for name, loss in losses.items()}
        total = sum(positive.values()) or 1
        for name, present in zip(channels.names, channels.present.mean(axis=0).tolist(), strict=True):
            row = {"tower": tower, "channel": name, "present": present}
            importance.append({**row, "losses": losses[name], "share": positive[name] / total})
    full = metrics.values(ALL)
    return {name: full[name] for name in METRICS if name in full}, importance


def _without(channels: ChannelVectors, name: str) -> np.ndarray:
    """The embeddings `[B, D]` without one channel."""
    present = channels.present & (np.array(channels.names) != name)
    return fuse(channels.fusion, channels.vectors * present[..., None], present)[0]
