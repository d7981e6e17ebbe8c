"""Partitions around k-means centres, in core TensorFlow ops only, which a stock TF Serving has."""

from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.cluster import KMeans

from q2s_tf.cli import console, track
from q2s_tf.index.effort import calibrate, draw_sample
from q2s_tf.index.exact import Index
from q2s_tf.index.search_ops import gather

STORAGES = ("float32", "bfloat16", "int8")
PARTITIONS_PER_ROOT = 4
"""Partitions per √N. With √N partitions, twice the rows are scored for the same recall."""
MIN_ROWS = 16
"""Least documents of a partition on average, which limits the partitions of a small catalogue."""
TRAINING_ROWS = 32
"""Documents that k-means is trained on, for each centre."""
BATCH = 8_192


class PartitionedIndex(Index):
    """Scores the documents of the `effort` partitions whose centres are nearest to the query.

    Rows are sorted by partition, so each partition is a range of rows and the scan is one gather. In float32 the scores
    are exact. In bfloat16 (half the memory) and int8 (a quarter; each row has its own scale) only the rounded rows are
    kept, and the scores are those of the rounded rows.

    Args:
        centres: Unit vectors `[P, D]`.
        starts: int32 `[P + 1]`, the first row of each partition, then the number of rows.
        embeddings: Rows `[N, D]` in their storage dtype, sorted by partition.
        scales: float32 `[N]` for int8 rows, else None.
        parameters: Facts for the manifest; `default_effort` is used here.
    """

    def __init__(
        self,
        centres: np.ndarray,
        starts: np.ndarray,
        embeddings: np.ndarray,
        scales: np.ndarray | None,
        parameters: dict[str, Any],
    ):
        super().__init__(parameters)
        self.centres = tf.Variable(centres, trainable=False, name="centres")
        self.starts = tf.Variable(starts, trainable=False, name="starts")
        self.embeddings = tf.Variable(embeddings, trainable=False, name="embeddings")
        self.scales = None if scales is None else tf.Variable(scales, trainable=False, name="scales")

    def candidates(self, query: tf.Tensor, count: tf.Tensor, effort: tf.Tensor) -> tf.Tensor:
        """Return the rows of the nearest partitions; see `Index.candidates`."""
        effort = tf.clip_by_value(effort, 1, self.centres.shape[0])
        similarities = tf.matmul(query, self.centres, transpose_b=True)[0]
        nearest = tf.math.top_k(similarities, effort, sorted=False).indices
        starts, limits = gather(self.starts, nearest), gather(self.starts, nearest + 1)
        # `tf.ragged.range` wraps this op in more ops, and each op adds to the time of a single query.
        return tf.raw_ops.RaggedRange(starts=starts, limits=limits, deltas=1).rt_dense_values


def build_partitioned(
    embeddings: np.ndarray, seed: int, recall: float, storage: str = "float32", queries: np.ndarray | None = None
) -> tuple[PartitionedIndex, np.ndarray]:
    """Partition a catalogue and calibrate the default effort; see `build_index` for the arguments and the result."""
    count = max(1, min(round(PARTITIONS_PER_ROOT * len(embeddings) ** 0.5), len(embeddings) // MIN_ROWS))
    centres = _find_centres(embeddings, count, seed)
    batches = track(range(0, len(embeddings), BATCH), f"sorting documents into {count:,} partitions")
    nearest = [np.argmax(embeddings[start : start + BATCH] @ centres.T, axis=1) for start in batches]
    partitions = np.concatenate(nearest)
    order = np.argsort(partitions, kind="stable").astype(np.int32)
    starts = np.append(0, np.cumsum(np.bincount(partitions, minlength=count))).astype(np.int32)
    ordered = embeddings[order]
    parameters = {"kind": "partitioned", "storage": storage, "partitions": count}
    index = PartitionedIndex(centres, starts, *_to_storage(ordered, storage), parameters)
    with console.status("choosing the effort"):
        calibration = calibrate(index.search, draw_sample(ordered, seed, queries), count, recall)
    index.parameters = {**parameters, **calibration}
    return index, order


def _find_centres(embeddings: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Centres `[P, D]` by k-means on a sample, scaled to unit length so that long centres do not attract queries."""
    sample = np.random.default_rng(seed).permutation(len(embeddings))[: TRAINING_ROWS * count]
    clusters = KMeans(count, init="random", n_init=1, max_iter=8, random_state=seed)
    with console.status(f"finding the centres of {count:,} partitions"):
        centres = clusters.fit(embeddings[np.sort(sample)]).cluster_centers_
    return (centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _to_storage(embeddings: np.ndarray, storage: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows in their storage dtype, and the scales of int8 rows."""
    if storage != "int8":
        return embeddings.astype(tf.as_dtype(storage).as_numpy_dtype), None
    scales = np.maximum(np.abs(embeddings).max(axis=1), 1e-12) / 127
    return np.round(embeddings / scales[:, np.newaxis]).astype(np.int8), scales.astype(np.float32)
