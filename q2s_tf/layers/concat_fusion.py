"""Fusion by concatenation: what attention is compared with."""

from typing import Any

import keras
from keras import ops


class ConcatFusion(keras.layers.Layer):
    """A hidden layer over all channel vectors beside each other, added to their mean.

    For channel vectors φ₁ … φ_N in R^D, of which those that are missing count as 0 and n are there,

        Φ = φ₁ ‖ … ‖ φ_N;   f = (1/n) Σ φᵢ + W₂ gelu(W₁ Φ + b₁), W₁ in R^{D×ND}, W₂ in R^{D×D}

    A row with no channel at all has f = 0.

    W₂ starts at 0, that is with the mean, as `AttentionFusion` does: a random W₂ would turn the vectors of the two
    towers away from each other, and with them the 3-gram sums, which are aligned before any training. The mean is ours
    for this reason; Que2Search names concatenation and an MLP as what attention is better than, and says no more.
    """

    def build(self, channels_shape: tuple[Any, ...], present_shape: tuple[Any, ...]) -> None:
        """Makes W₁, b₁ and W₂ for `channels_shape` = `[B, N, D]`."""
        _, number, dimension = channels_shape
        self.hidden = keras.layers.Dense(dimension, activation="gelu", name="hidden")
        self.hidden.build((None, number * dimension))
        self.projection = keras.layers.Dense(dimension, use_bias=False, kernel_initializer="zeros", name="projection")
        self.projection.build((None, dimension))

    def call(self, channels: Any, present: Any) -> tuple[Any, Any]:
        """Fuses channels.

        Args:
            channels: `[B, N, D]`.
            present: bool `[B, N]`, False where a channel is missing.

        Returns:
            f `[B, D]`, and `[B, N]` 1/n for the n channels that are there: their share in the mean. The hidden layer
            has no weight of a channel.
        """
        _, number, dimension = channels.shape
        there = ops.cast(present, channels.dtype)
        channels = channels * there[..., None]
        count = ops.sum(there, axis=1, keepdims=True)
        shares = there / ops.maximum(count, 1)
        together = self.projection(self.hidden(ops.reshape(channels, (-1, number * dimension))))
        return ops.sum(shares[..., None] * channels, axis=1) + ops.minimum(count, 1) * together, shares
