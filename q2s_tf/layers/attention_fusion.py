"""Late fusion of the channels of a tower (Que2Search, eq. 1)."""

from typing import Any

import keras
from keras import ops

MASKED_LOGIT = -1e9
"""Added to the logit of a missing channel. Its weight is then 0 in float32."""


@keras.saving.register_keras_serializable(package="q2s_tf")
class AttentionFusion(keras.layers.Layer):
    """Weights the channel vectors of a tower by a softmax over all of them.

    For channel vectors φ₁ … φ_N in R^D, with missing ones set to 0:

        Φ = φ₁ ‖ … ‖ φ_N;   a = softmax(Φ W + b), W in R^{ND×N}, b in R^N;   f = Σ aᵢ φᵢ

    A missing channel has a = 0. W and b are initialised to 0, which gives equal a. With a negative bᵢ a channel begins
    with little weight, beside a channel that needs no training.

    The channel vectors differ in length, so that a large aᵢ of a short φᵢ can mean little. The layer therefore returns
    the weights w of the unit vectors of the channels, which have the same direction of f:

        f / |f| = Σ wᵢ φᵢ/|φᵢ| / |Σ wᵢ φᵢ/|φᵢ||,   wᵢ = aᵢ|φᵢ| / Σⱼ aⱼ|φⱼ|

    The weight of a missing channel is exactly 0 and the weights sum to 1. A row without any channel has zero weights
    and f = 0.

    Softmax and weights are computed in float32 under every dtype policy.

    Args:
        use_bias: whether there is a b; without, b = 0, as in the paper.

    Source: Liu et al., Que2Search, KDD 2021, eq. 1. The paper describes neither missing channels nor the lengths of the
    channel vectors; mask, b and w are additions.
    """

    def __init__(self, use_bias: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.use_bias = use_bias
        self.supports_masking = True

    def build(self, channels_shape: tuple[Any, ...]) -> None:
        """Creates W and b for channels `[batch, N, D]`. One channel needs no weights."""
        _, num_channels, dimension = channels_shape
        self.kernel = self.bias = None
        if num_channels > 1:
            shape = (num_channels * dimension, num_channels)
            self.kernel = self.add_weight(name="kernel", shape=shape, initializer="zeros")
            if self.use_bias:
                self.bias = self.add_weight(name="bias", shape=(num_channels,), initializer="zeros")

    def call(self, channels: Any, mask: Any = None) -> tuple[Any, Any]:
        """Fuses channels.

        Args:
            channels: channel vectors `[batch, N, D]`.
            mask: bool `[batch, N]`, False where a channel is missing; None if no channel is missing.

        Returns:
            f `[batch, D]` and the weights w `[batch, N]`.
        """
        _, num_channels, dimension = channels.shape
        if mask is None:
            mask = ops.ones_like(channels[..., 0], dtype="bool")
        present = ops.cast(mask, channels.dtype)
        channels = channels * present[..., None]
        attention = ops.cast(present, "float32")
        if self.kernel is not None:
            logits = ops.matmul(ops.reshape(channels, (-1, num_channels * dimension)), self.kernel)
            if self.bias is not None:
                logits = logits + self.bias
            attention *= ops.softmax(ops.cast(logits, "float32") + MASKED_LOGIT * (1 - attention), axis=-1)
        fused = ops.sum(ops.cast(attention, channels.dtype)[..., None] * channels, axis=1)
        lengths = attention * ops.norm(ops.cast(channels, "float32"), axis=-1)
        weights = ops.divide_no_nan(lengths, ops.sum(lengths, axis=-1, keepdims=True))
        return fused, ops.cast(weights, channels.dtype)

    def compute_mask(self, channels: Any, mask: Any = None) -> tuple[None, None]:
        """No mask: the channel axis is summed out."""
        return None, None

    def compute_output_shape(self, channels_shape: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """`[batch, D]` and `[batch, N]`."""
        batch, num_channels, dimension = channels_shape
        return (batch, dimension), (batch, num_channels)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "use_bias": self.use_bias}
