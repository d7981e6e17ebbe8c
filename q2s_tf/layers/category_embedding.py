"""Embedding of a category."""

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="q2s_tf")
class CategoryEmbedding(keras.layers.Embedding):
    """`keras.layers.Embedding` as one gather: φ = E[id], without the ops that Keras adds for negative ids."""

    def call(self, ids: Any) -> Any:
        """Looks up integer ids of any shape, 0 to `input_dim` - 1: `[*ids.shape, output_dim]`."""
        return tf.cast(tf.gather(self.embeddings.value, tf.cast(ids, tf.int32)), self.compute_dtype)
