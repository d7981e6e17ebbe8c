"""Partitions around k-means centres, in core TensorFlow ops only, which a stock TF Serving has."""

from typing import Any

import numpy as np
import tensorflow as tf

from q2s_tf.cli import console
from q2s_tf.index.blocks import Vectors, store_rows
from q2s_tf.index.centres import find_centres, nearest_centres
from q2s_tf.index.effort import calibrate, draw_sample
from q2s_tf.index.exact import Index
from q2s_tf.index.search_ops import gather

PARTITIONS_PER_ROOT = 4
"""Partitions per √N. With √N partitions, twice the rows are scored for the same recall."""
MIN_ROWS = 16
"""Least documents of a partition on average, which limits the partitions of a small catalogue."""


class PartitionedIndex(Index):
    """Scores the documents of the `effort` partitions whose centres are nearest to the query.

    Rows are sorted by partition, so each partition is a range of rows and the scan is one gather. In float32 the scores
    are exact. In bfloat16 (half the memory) and int8 (a quarter; each row has its own scale) only the rounded rows are
    kept, and the scores are those of the rounded rows.

    Args:
        centres: Unit vectors `[P, D]`.
        starts: int32 `[P + 1]`, the first row of each partition, then the number of rows.
        embeddings: Rows `[N, D]` in their storage dtype, sorted by partition. The variable shares a tensor's memory.
        scales: float32 `[N]` for int8 rows, else None.
        parameters: Facts for the manifest; `default_effort` is used here.
    """

    def __init__(
        self,
        centres: np.ndarray,
        starts: np.ndarray,
        embeddings: np.ndarray | tf.Tensor,
        scales: np.ndarray | tf.Tensor | None,
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
    embeddings: Vectors, seed: int, recall: float, storage: str = "float32", queries: np.ndarray | None = None
) -> tuple[PartitionedIndex, np.ndarray]:
    """Partition a catalogue and calibrate the default effort; see `build_index` for the arguments and the result."""
    count = max(1, min(round(PARTITIONS_PER_ROOT * len(embeddings) ** 0.5), len(embeddings) // MIN_ROWS))
    with console.status(f"finding the centres of {count:,} partitions"):
        centres = find_centres(embeddings, count, seed)
    partitions = nearest_centres(embeddings, centres, seed, f"sorting documents into {count:,} partitions")
    starts = np.append(0, np.cumsum(np.bincount(partitions, minlength=count))).astype(np.int32)
    order = np.argsort(partitions, kind="stable").astype(np.int32)
    positions = np.empty_like(order)
    positions[order] = np.arange(len(order), dtype=np.int32)
    parameters = {"kind": "partitioned", "storage": storage, "partitions": count}
    index = PartitionedIndex(centres, starts, *store_rows(embeddings, storage, positions), parameters)
    sample = draw_sample(embeddings, seed, queries)
    least = _least_effort(sample.queries @ centres.T, partitions[sample.nearest], recall)
    sample = sample._replace(nearest=positions[sample.nearest])
    with console.status("choosing the effort"):
        index.parameters = {**parameters, **calibrate(index.search, sample, count, recall, least)}
    return index, order


def _least_effort(similarities: np.ndarray, partitions: np.ndarray, recall: float) -> int:
    """The least effort whose partitions hold a share of the documents that queries look for.

    Args:
        similarities: Cosines `[Q, P]` of queries and centres.
        partitions: The partitions int `[Q, K]` of each query's documents.
        recall: The share.
    """
    wanted = np.take_along_axis(similarities, partitions, axis=1)
    ranked = np.sort(similarities, axis=1)
    # The partitions of a query that are nearer than the one of the document.
    nearer = [len(row) - np.searchsorted(row, some, side="right") for row, some in zip(ranked, wanted, strict=True)]
    return int(np.quantile(nearer, recall, method="inverted_cdf")) + 1
