"""Variants of the model that exist only to be compared with: another fusion, and stage 2 with the loss of stage 1."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import keras
from keras import ops


class ConcatFusion(keras.layers.Layer):
    """A hidden layer over the concatenated channel vectors, added to their mean.

    For channel vectors φ₁ … φ_N in R^D, of which missing ones are 0 and n are present,

        Φ = φ₁ ‖ … ‖ φ_N;   f = (1/n) Σ φᵢ + W₂ gelu(W₁ Φ + b₁), W₁ in R^{D×ND}, W₂ in R^{D×D}

    A row without any channel has f = 0. W₂ is initialised to 0, so that f starts as the mean, as in `AttentionFusion`:
    with a random W₂ the vectors of the two towers would not be aligned at the start. Que2Search names concatenation and
    an MLP as the alternative to attention and does not describe it; the mean is an addition.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, channels_shape: tuple[Any, ...]) -> None:
        """Creates W₁, b₁ and W₂ for channels `[batch, N, D]`."""
        _, num_channels, dimension = channels_shape
        self.hidden = keras.layers.Dense(dimension, activation="gelu", name="hidden")
        self.hidden.build((None, num_channels * dimension))
        self.projection = keras.layers.Dense(dimension, use_bias=False, kernel_initializer="zeros", name="projection")
        self.projection.build((None, dimension))

    def call(self, channels: Any, mask: Any) -> tuple[Any, Any]:
        """F `[batch, D]` of channels `[batch, N, D]`, and 1/n for each present channel, `[batch, N]`."""
        _, num_channels, dimension = channels.shape
        present = ops.cast(mask, channels.dtype)
        channels = channels * present[..., None]
        count = ops.sum(present, axis=1, keepdims=True)
        shares = present / ops.maximum(count, 1)
        correction = self.projection(self.hidden(ops.reshape(channels, (-1, num_channels * dimension))))
        return ops.sum(shares[..., None] * channels, axis=1) + ops.minimum(count, 1) * correction, shares


@contextmanager
def comparison(techniques: Collection[str]) -> Iterator[None]:
    """Trains and loads towers with `ConcatFusion` for "concat", and with stage 1's loss in stage 2 for "continued"."""
    from q2s_tf.models import Tower
    from q2s_tf.training.retrieval_model import RetrievalModel, compile_stage

    def continue_stage1(model: RetrievalModel, stage: int, steps_per_epoch: int) -> None:
        compile_stage(model, stage, steps_per_epoch)
        if stage == 2:
            model.compile(model.optimizer, scale=model.config.stage1.scale)

    with ExitStack() as stack:
        if "concat" in techniques:
            stack.enter_context(patch.object(Tower, "fusion_class", ConcatFusion))
        if "continued" in techniques:
            module = import_module("q2s_tf.training.train")
            stack.enter_context(patch.object(module, "compile_stage", continue_stage1))
        yield
