"""Calibration of an index: the least effort that reaches a recall on sample queries."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from q2s_tf.index.blocks import Vectors, read_blocks, read_rows

DEFAULT_RECALL = 0.95
MAX_QUERIES = 256
NEIGHBOURS = 100
NOISY_COSINE = 0.7
"""Cosine between a document and the artificial query that is made from it."""
BATCH = 8
"""Queries that are scored at a time, which bounds the memory."""

Search = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""From queries `[B, D]`, k and effort to scores and rows `[B, k]`."""


class Sample(NamedTuple):
    """Queries `[Q, D]`, the rows of their exact nearest documents `[Q, K]` in any order, and the queries' source."""

    queries: np.ndarray
    nearest: np.ndarray
    source: str


def draw_sample(embeddings: Vectors, seed: int, queries: np.ndarray | None = None) -> Sample:
    """Draw at most `MAX_QUERIES` queries and find their exact nearest documents.

    Args:
        embeddings: Unit vectors `[N, D]`.
        seed: Seed of the draw.
        queries: Unit vectors `[Q, D]` of real queries. None: documents with so much noise that the cosine to the
            original is `NOISY_COSINE`, because queries are farther from documents than documents from each other.
    """
    generator = np.random.default_rng(seed)
    source = embeddings if queries is None else queries
    drawn = read_rows(source, np.sort(generator.permutation(len(source))[:MAX_QUERIES]))
    if queries is None:
        noise = generator.standard_normal(drawn.shape, np.float32)
        noise -= np.sum(noise * drawn, axis=1, keepdims=True) * drawn
        noise /= np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), 1e-12)
        drawn = NOISY_COSINE * drawn + np.float32((1 - NOISY_COSINE**2) ** 0.5) * noise
        drawn /= np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), 1e-12)
    nearest = exact_nearest(embeddings, drawn)
    return Sample(drawn, nearest, "documents with noise" if queries is None else "queries")


def exact_nearest(embeddings: Vectors, queries: np.ndarray) -> np.ndarray:
    """Find the rows of the `NEIGHBOURS` documents with the highest cosines to queries `[Q, D]`, int32 `[Q, K]`."""
    scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int32)
    for block_rows, block in read_blocks(embeddings, "finding the exact nearest documents of sample queries"):
        some = tf.math.top_k(queries @ block.T, min(NEIGHBOURS, len(block)))
        scores = np.concatenate([scores, some.values], axis=1)
        rows = np.concatenate([rows, block_rows.start + some.indices], axis=1)
        best = tf.math.top_k(scores, min(NEIGHBOURS, scores.shape[1]))
        scores, rows = best.values.numpy(), np.take_along_axis(rows, best.indices.numpy(), axis=1)
    return rows


def calibrate(search: Search, sample: Sample, partitions: int, target: float, least: int = 1) -> dict[str, Any]:
    """Find the least effort, within 5%, that returns the target share of the sample's nearest documents.

    Args:
        search: The search of the index.
        sample: Queries with their nearest documents.
        partitions: The largest effort. It is chosen if no other effort reaches the target.
        target: The recall to reach.
        least: An effort that every smaller one misses the target with. The search for the effort starts here.

    Returns:
        Parameters of the index: `default_effort`, `target_recall`, `sample` (the source of the queries) and
        `sample_recall_at_100`, the recall that was measured at the default effort.
    """
    search = tf.function(search, autograph=False, reduce_retracing=True)
    k = tf.constant(sample.nearest.shape[1])

    def measure_recall(effort: int) -> float:
        hits = 0
        for start in range(0, len(sample.queries), BATCH):
            _, rows = search(tf.constant(sample.queries[start : start + BATCH]), k, tf.constant(effort))
            nearest = sample.nearest[start : start + BATCH]
            hits += sum(len(np.intersect1d(*pair)) for pair in zip(rows.numpy(), nearest, strict=True))
        return hits / sample.nearest.size

    too_low, effort, step = least - 1, least, max(1, least // 20)
    while (recall := measure_recall(effort)) < target and effort < partitions:
        too_low, effort, step = effort, min(partitions, effort + step), 2 * step
    while recall >= target and effort - too_low > max(1, effort // 20):
        middle = (too_low + effort) // 2
        if (measured := measure_recall(middle)) >= target:
            effort, recall = middle, measured
        else:
            too_low = middle
    return {
        "default_effort": effort,
        "target_recall": target,
        "sample": sample.source,
        "sample_recall_at_100": round(recall, 4),
    }
