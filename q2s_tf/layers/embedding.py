"""A category as one vector."""

from typing import Any

import keras
import tensorflow as tf


class Embedding(keras.layers.Layer):
    """The vector of a category's value: φ = E[id].

    Args:
        size: rows of the table; ids run from 0, a missing value, to `size` - 1.
        dimension: D.
        initializer: of the table.
    """

    def __init__(self, size: int, dimension: int, initializer: str = "zeros", **kwargs: Any):
        super().__init__(**kwargs)
        self.size = size
        self.dimension = dimension
        self.initializer = initializer

    def build(self, ids_shape: tuple[Any, ...]) -> None:
        """Makes the table `[size, D]`."""
        self.table = self.add_weight(name="table", shape=(self.size, self.dimension), initializer=self.initializer)

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        """Looks int32 ids `[B, 1]` up: `[B, D]`."""
        return tf.gather(self.table.value, ids[:, 0])

    def compute_output_shape(self, ids_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """`[B, D]`."""
        return (ids_shape[0], self.dimension)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        config = {"size": self.size, "dimension": self.dimension, "initializer": self.initializer}
        return {**super().get_config(), **config}
