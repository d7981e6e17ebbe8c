"""Late fusion of a tower's channels (Que2Search, eq. 1)."""

from typing import Any

import keras
from keras import ops

MISSING = -1e9
"""Added to the logit of a missing channel: next to it, no other logit is seen and the weight is 0."""


class AttentionFusion(keras.layers.Layer):
    """Weighs the channels of a tower by what all of them say together.

    For channel vectors φ₁ … φ_N in R^D, of which those that are missing count as 0,

        Φ = φ₁ ‖ … ‖ φ_N;   a = softmax(Φ W), W in R^{ND×N};   f = Σ aᵢ φᵢ

    A missing channel has weight exactly 0 and the others share 1. A row with no channel at all has only zero weights
    and f = 0.

    W starts at 0, that is with equal weights.

    Source: Liu et al., Que2Search, KDD 2021, eq. 1. The mask is ours: the paper does not speak of missing channels.
    """

    def build(self, channels_shape: tuple[Any, ...], present_shape: tuple[Any, ...]) -> None:
        """Makes W for `channels_shape` = `[B, N, D]`, N > 1."""
        _, number, dimension = channels_shape
        if number == 1:
            return  # nothing to weigh: the weight of the one channel is 1
        self.kernel = self.add_weight(name="kernel", shape=(number * dimension, number), initializer="zeros")

    def call(self, channels: Any, present: Any) -> tuple[Any, Any]:
        """Fuses channels.

        Args:
            channels: `[B, N, D]`.
            present: bool `[B, N]`, False where a channel is missing.

        Returns:
            f `[B, D]` and the weights a `[B, N]`.
        """
        _, number, dimension = channels.shape
        there = ops.cast(present, channels.dtype)
        channels = channels * there[..., None]
        weights = there
        if number > 1:
            logits = ops.matmul(ops.reshape(channels, (-1, number * dimension)), self.kernel)
            weights = there * ops.softmax(logits + MISSING * (1 - there), axis=-1)
        return ops.sum(weights[..., None] * channels, axis=1), weights
