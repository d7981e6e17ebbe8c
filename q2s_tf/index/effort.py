"""How hard an index searches when a request does not say: the least effort that reaches a recall on sample queries."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

DEFAULT_RECALL = 0.95
SAMPLE = 256
NEIGHBOURS = 100
LIKENESS = 0.7
"""Cosine of a made-up query to the document it is made from."""
ROWS = 8
"""Queries at a time: what is held in memory stays small."""

Search = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""From queries `[B, D]`, k and effort to scores and rows `[B, k]`."""


class Sample(NamedTuple):
    """Queries `[Q, D]` and the rows of their exact nearest documents `[Q, K]`, in no order."""

    queries: np.ndarray
    nearest: np.ndarray


def draw_sample(embeddings: np.ndarray, seed: int, queries: np.ndarray | None = None) -> Sample:
    """At most `SAMPLE` queries and their exact nearest documents.

    Real queries lie farther from the documents than the documents from each other. Where none are given, sample
    documents are turned away by noise until their cosine to what they were is `LIKENESS`.

    Args:
        embeddings: unit vectors `[N, D]`.
        seed: of the draw.
        queries: unit vectors `[Q, D]` of real queries.
    """
    generator = np.random.default_rng(seed)
    source = embeddings if queries is None else queries
    drawn = source[np.sort(generator.permutation(len(source))[:SAMPLE])]
    if queries is None:
        noise = generator.standard_normal(drawn.shape, np.float32)
        noise -= np.sum(noise * drawn, axis=1, keepdims=True) * drawn
        noise /= np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), 1e-12)
        drawn = LIKENESS * drawn + np.float32((1 - LIKENESS**2) ** 0.5) * noise
        drawn /= np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), 1e-12)
    k = min(NEIGHBOURS, len(embeddings))
    blocks = [drawn[start : start + ROWS] @ embeddings.T for start in range(0, len(drawn), ROWS)]
    return Sample(drawn, np.concatenate([np.argpartition(-scores, k - 1, axis=1)[:, :k] for scores in blocks]))


def measure_recall(search: Search, sample: Sample, effort: int) -> float:
    """The share of the sample's exact nearest documents that the search finds at an effort."""
    k, found = sample.nearest.shape[1], 0
    for start in range(0, len(sample.queries), ROWS):
        _, rows = search(tf.constant(sample.queries[start : start + ROWS]), tf.constant(k), tf.constant(effort))
        nearest = sample.nearest[start : start + ROWS]
        found += sum(len(np.intersect1d(mine, exact)) for mine, exact in zip(rows.numpy(), nearest, strict=True))
    return found / sample.nearest.size


def choose_effort(search: Search, sample: Sample, partitions: int, target: float) -> tuple[int, float]:
    """The least effort, to a twentieth, that finds the target's share of the exact top 100.

    Args:
        search: of the index.
        sample: what it is tried on.
        partitions: the largest effort.
        target: the recall to be reached.

    Returns:
        The effort, and the recall of the sample at it; all partitions if less does not reach the target.
    """
    search = tf.function(search, autograph=False, reduce_retracing=True)
    missed, effort = 0, 1
    while (recall := measure_recall(search, sample, effort)) < target and effort < partitions:
        missed, effort = effort, min(partitions, max(effort + 1, effort * 3 // 2))
    while recall >= target and effort - missed > max(1, effort // 20):
        middle = (missed + effort) // 2
        if (measured := measure_recall(search, sample, middle)) >= target:
            effort, recall = middle, measured
        else:
            missed = middle
    return effort, round(recall, 4)
