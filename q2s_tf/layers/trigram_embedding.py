"""Embedding of a bag of hashed 3-grams."""

from typing import Any

import keras
import tensorflow as tf

from q2s_tf.layers.configured_layer import ConfiguredLayer

ALIGNED_SEED = 3
"""Seed of the initial rows of every table, independent of the seed of the run."""


@keras.saving.register_keras_serializable(package="q2s_tf")
class TrigramEmbedding(ConfiguredLayer):
    """Sums the embeddings of the 3-grams of a text: φ = Σ_g E[g] over the ids that are not padding.

    All tables of the same size have the same random initial rows. Before training, the cosine of two sums is then close
    to the share of 3-grams that two texts have in common, across channels and towers. The tables are separate weights.

    The sum is a segment sum over the rows of the table, in training over the rows that occur. Neither a tensor
    `[batch, G, D]` nor a dense gradient of the table is created. Sums are float32 and are cast to the compute dtype.

    Args:
        buckets: number of hash buckets; ids run from 1 to `buckets`, 0 is padding.
        dimension: D, width of the output.

    Source: Que2Search, section on 3-gram features (one table for each field, sum pooling).
    """

    def __init__(self, buckets: int, dimension: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.buckets = buckets
        self.dimension = dimension
        self.supports_jit = False  # XLA has no op of dynamic output size, which tf.where and tf.unique are

    def build(self, ids_shape: tuple[Any, ...]) -> None:
        """Creates the table `[buckets + 1, D]`; row 0 is not used."""
        self.table = self.add_weight(
            name="table",
            shape=(self.buckets + 1, self.dimension),
            initializer=keras.initializers.RandomNormal(stddev=self.dimension**-0.5, seed=ALIGNED_SEED),
            autocast=False,
        )

    def call(self, ids: Any, training: bool | None = None) -> Any:
        """Pools int32 ids `[batch, G]` to `[batch, D]`. A row of padding gives 0."""
        ids = tf.cast(ids, tf.int32)
        positions = tf.where(ids != 0)
        rows = tf.gather_nd(ids, positions)
        if training:  # gather the rows that occur, so that the next step need not wait for an update of the table
            occurring, rows = tf.unique(rows)
            table = tf.gather(self.table.value, occurring)
        else:
            table = tf.convert_to_tensor(self.table)
        summed = tf.sparse.segment_sum(
            table,
            rows,
            positions[:, 0],
            num_segments=tf.shape(ids, out_type=tf.int64)[0],
            sparse_gradient=not training,
        )
        return tf.cast(summed, self.compute_dtype)

    def compute_output_shape(self, ids_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """`[batch, D]`."""
        return (ids_shape[0], self.dimension)
