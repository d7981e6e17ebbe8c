"""How many partitions an index searches when a request does not say."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

TARGET_RECALL = 0.95
SAMPLE = 128
ROWS = 8
"""Queries at a time: what is held in memory stays small."""


def choose_effort(search: Callable[..., Any], embeddings: np.ndarray, partitions: int, seed: int) -> tuple[int, float]:
    """The least effort, in steps of a third, that finds `TARGET_RECALL` of the exact top 100.

    The queries are a sample of the documents: there are no others when an index is built. Real queries lie farther from
    the documents, so their recall is somewhat lower.

    Args:
        search: of the index, from queries `[B, D]`, k and effort to scores and rows.
        embeddings: unit vectors `[N, D]`.
        partitions: the largest effort.
        seed: of the sample.

    Returns:
        The effort, and the recall of the sample at it.
    """
    search = tf.function(search, autograph=False, reduce_retracing=True)
    sample = embeddings[np.random.default_rng(seed).permutation(len(embeddings))[:SAMPLE]]
    k = min(100, len(embeddings))
    exact = np.argpartition(-(sample @ embeddings.T), k - 1, axis=1)[:, :k]
    effort = 1
    while True:
        found = [
            row
            for start in range(0, len(sample), ROWS)
            for row in search(tf.constant(sample[start : start + ROWS]), tf.constant(k), tf.constant(effort))[1].numpy()
        ]
        shares = [len(np.intersect1d(a, b)) / k for a, b in zip(exact, found, strict=True)]
        recall = float(np.mean(shares))
        if recall >= TARGET_RECALL or effort >= partitions:
            return effort, recall
        effort = min(partitions, max(effort + 1, effort * 4 // 3))
