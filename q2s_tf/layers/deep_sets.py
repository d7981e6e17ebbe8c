"""Pooling of a set of vectors."""

from typing import Any

import keras
from keras import ops

from q2s_tf.layers.configured_layer import ConfiguredLayer


@keras.saving.register_keras_serializable(package="q2s_tf")
class DeepSets(ConfiguredLayer):
    """Pools any number of vectors into one, independently of their order: φ = ρ(Σⱼ g(xⱼ)).

    g is a dense layer with GELU that all vectors share, ρ is a dense layer.

    Args:
        hidden_dim: width of g.
        dimension: D, width of the output.

    Source: Zaheer et al., Deep Sets, NeurIPS 2017, eq. 2. Que2Search applies it to up to five image vectors.
    """

    def __init__(self, hidden_dim: int, dimension: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.hidden_dim = hidden_dim
        self.dimension = dimension
        self.shared = keras.layers.Dense(hidden_dim, activation="gelu", dtype=self.dtype_policy, name="shared")
        self.projection = keras.layers.Dense(dimension, dtype=self.dtype_policy, name="projection")

    def build(self, vectors_shape: tuple[Any, ...]) -> None:
        """Builds both dense layers for vectors `[batch, M, I]`."""
        self.shared.build(vectors_shape)
        self.projection.build((vectors_shape[0], self.hidden_dim))

    def call(self, vectors: Any, mask: Any = None) -> Any:
        """Pools vectors.

        Args:
            vectors: `[batch, M, I]`.
            mask: bool `[batch, M]`, False for padding; None to treat vectors of zeros as padding.

        Returns:
            `[batch, D]`.
        """
        if mask is None:
            mask = ops.any(vectors != 0, axis=-1)
        return self.projection(ops.sum(self.shared(vectors) * ops.cast(mask, vectors.dtype)[..., None], axis=1))

    def compute_mask(self, vectors: Any, mask: Any = None) -> None:
        """No mask: the set axis is summed out."""
        return None

    def compute_output_shape(self, vectors_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """`[batch, D]`."""
        return (vectors_shape[0], self.dimension)
