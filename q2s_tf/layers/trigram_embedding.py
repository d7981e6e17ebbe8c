"""A bag of hashed 3-grams as one vector."""

from typing import Any

import keras
import tensorflow as tf

ALIGNED_SEED = 3
"""Seed of every table's first rows, whatever the seed of the run."""


class TrigramEmbedding(keras.layers.Layer):
    """Sum of the embeddings of a text's 3-grams: φ = Σ_g E[g], over the ids that are not padding.

    The sum is a segment sum over the table's rows, in training over those that occur, so neither `[B, G, D]` nor a
    dense gradient of the table is ever made. Every table of the same size starts from the same random rows: before any
    training the cosine of two sums is then close to the share of 3-grams that the texts have in common, across channels
    and towers, which is a far better start than noise (measured in docs/results.md). The tables are separate weights
    all the same.

    Args:
        buckets: number of hash buckets; ids run from 1 to `buckets`.
        dimension: D.

    Source: Que2Search, section on 3-gram features (one table a field, sum pooling).
    """

    def __init__(self, buckets: int, dimension: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.buckets = buckets
        self.dimension = dimension

    def build(self, ids_shape: tuple[Any, ...]) -> None:
        """Makes the table `[buckets + 1, D]`; row 0 is never read."""
        self.table = self.add_weight(
            name="table",
            shape=(self.buckets + 1, self.dimension),
            initializer=keras.initializers.RandomNormal(stddev=self.dimension**-0.5, seed=ALIGNED_SEED),
        )

    def call(self, ids: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Pools int32 ids `[B, G]` (0 = padding) to `[B, D]`; a row of padding alone gives 0."""
        places = tf.where(ids != 0)
        which = tf.gather_nd(ids, places)
        if training:  # reads these rows, not a table whose updates would have to wait for it
            occurring, which = tf.unique(which)
            rows = tf.gather(self.table.value, occurring)
        else:  # the fewest ops
            rows = tf.convert_to_tensor(self.table)
        return tf.sparse.segment_sum(
            rows,
            which,
            places[:, 0],
            num_segments=tf.shape(ids, out_type=tf.int64)[0],
            sparse_gradient=not training,
        )

    def compute_output_shape(self, ids_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """`[B, D]`."""
        return (ids_shape[0], self.dimension)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "buckets": self.buckets, "dimension": self.dimension}
