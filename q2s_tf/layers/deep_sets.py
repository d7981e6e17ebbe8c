"""A set of vectors as one vector."""

from typing import Any

import keras
from keras import ops


class DeepSets(keras.layers.Layer):
    """Permutation-invariant pooling of any number of vectors: φ = ρ(Σⱼ g(xⱼ)), with g and ρ one dense layer each.

    Rows of zeros are padding and add nothing.

    Args:
        hidden_dim: width of g, which is shared by all vectors.
        dimension: D.

    Source: Zaheer et al., Deep Sets, NeurIPS 2017, eq. 2; Que2Search uses it over up to five image vectors.
    """

    def __init__(self, hidden_dim: int, dimension: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.dimension = dimension
        self.shared = keras.layers.Dense(hidden_dim, activation="gelu", name="shared")
        self.projection = keras.layers.Dense(dimension, name="projection")

    def build(self, vectors_shape: tuple[Any, ...]) -> None:
        """Builds both dense layers for vectors `[B, M, I]`."""
        self.shared.build(vectors_shape)
        self.projection.build((vectors_shape[0], self.hidden_dim))

    def call(self, vectors: Any) -> Any:
        """Pools `[B, M, I]` to `[B, D]`."""
        there = ops.any(vectors != 0, axis=-1, keepdims=True)
        return self.projection(ops.sum(self.shared(vectors) * ops.cast(there, vectors.dtype), axis=1))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "hidden_dim": self.hidden_dim, "dimension": self.dimension}
