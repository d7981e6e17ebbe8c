"""Pooling of a set of vectors."""

from typing import Any

import keras
from keras import ops

from q2s_tf.layers.aligned_projection import aligned_projection
from q2s_tf.layers.configured_layer import ConfiguredLayer


@keras.saving.register_keras_serializable(package="q2s_tf")
class DeepSets(ConfiguredLayer):
    """Pools any number of vectors into one, independently of their order: φ = ρ(Σⱼ g(xⱼ)).

    g is a dense layer with GELU that all vectors share, ρ is a dense layer. Without g, φ = ρ(Σⱼ xⱼ), and ρ is at first
    the `aligned_projection`, which keeps cosines.

    Args:
        hidden_dim: width of g; 0 for no g.
        dimension: D, width of the output.

    Source: Zaheer et al., Deep Sets, NeurIPS 2017, eq. 2. Que2Search applies it to up to five image vectors.
    """

    def __init__(self, hidden_dim: int, dimension: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.hidden_dim = hidden_dim
        self.dimension = dimension
        options = {"dtype": self.dtype_policy}
        self.shared = keras.layers.Dense(hidden_dim, "gelu", name="shared", **options) if hidden_dim else None
        initializer = "glorot_uniform" if hidden_dim else aligned_projection()
        self.projection = keras.layers.Dense(dimension, kernel_initializer=initializer, name="projection", **options)

    def build(self, vectors_shape: tuple[Any, ...]) -> None:
        """Builds the dense layers for vectors `[batch, M, I]`."""
        if self.shared:
            self.shared.build(vectors_shape)
        self.projection.build((vectors_shape[0], self.hidden_dim or vectors_shape[2]))

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
        hidden = self.shared(vectors) if self.shared else vectors
        return self.projection(ops.sum(hidden * ops.cast(mask, vectors.dtype)[..., None], axis=1))

    def compute_mask(self, vectors: Any, mask: Any = None) -> None:
        """No mask: the set axis is summed out."""
        return None

    def compute_output_shape(self, vectors_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """`[batch, D]`."""
        return (vectors_shape[0], self.dimension)
