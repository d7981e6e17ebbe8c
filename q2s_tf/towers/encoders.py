"""A tower as a Keras functional model, built from the channels that the config declares."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from q2s_tf.config import Channel, Config
from q2s_tf.layers import AttentionFusion, DeepSets, Embedding, TextEncoder, TrigramEmbedding

SILENT = "zeros"
"""First weights of what starts with nothing to say. An untrained transformer gives every text nearly the same [CLS]; a
tower whose sum such a vector dominates starts with all its embeddings alike, and was seen to stay there."""


def build_encoder(config: Config, tower: str, vocabulary_size: int) -> keras.Model:
    """Builds one tower, from prepared channel inputs to a unit vector.

    Each channel becomes φᵢ in R^D; `AttentionFusion` (eq. 1) makes f of them; the embedding is f / |f|, and 0 for a row
    with no channel at all.

    Args:
        config: the channels, D, and the geometry of the encoders.
        tower: "query" or "document".
        vocabulary_size: of the tokenizer.

    Returns:
        A model from `{channel: ids or vectors}` (see `Preprocessor`) to `embedding` `[B, D]` and `channel_weights`
        `[B, N]`.
    """
    channels = config.tower_channels(tower)
    text_encoders = _build_text_encoders(config, channels, vocabulary_size)
    inputs, vectors, present = {}, [], []
    for name, channel in channels.items():
        inputs[name] = _input(name, channel)
        vectors.append(_channel_layer(name, channel, config, text_encoders)(inputs[name]))
        present.append(_Present(name=f"{name}_present")(inputs[name]))
    stacked = ops.stack(vectors, axis=1)
    fused, weights = AttentionFusion(name="fusion")(stacked, ops.stack(present, axis=1))
    embedding = keras.layers.UnitNormalization(name="embedding")(fused)
    return keras.Model(inputs, {"embedding": embedding, "channel_weights": weights}, name=f"{tower}_encoder")


class EncoderParts(NamedTuple):
    """One tower's encoder in two."""

    channels: keras.Model
    """From prepared inputs to the channel vectors `[B, N, D]`, and which of them are present, bool `[B, N]`."""
    fuse: Callable[[Any, Any], tuple[Any, Any]]
    """From these two to the embedding `[B, D]` and the channel weights `[B, N]`."""


def split_encoder(encoder: keras.Model) -> EncoderParts:
    """The two parts of what `build_encoder` made, on the same weights: what a channel says, and what is made of it."""
    fusion, unit = encoder.get_layer("fusion"), encoder.get_layer("embedding")

    def fuse(stacked: Any, present: Any) -> tuple[Any, Any]:
        fused, weights = fusion(stacked, present)
        return unit(fused), weights

    return EncoderParts(keras.Model(encoder.input, fusion.input), fuse)


def _build_text_encoders(config: Config, channels: dict[str, Channel], vocabulary_size: int) -> dict[str, TextEncoder]:
    """One encoder a name, long enough for every channel that shares it."""
    max_tokens: dict[str, int] = {}
    for channel in channels.values():
        if channel.kind == "text":
            max_tokens[channel.encoder] = max(channel.max_tokens, max_tokens.get(channel.encoder, 0))
    return {
        name: TextEncoder(vocabulary_size, length, **config.encoders[name].model_dump(), name=f"{name}_text_encoder")
        for name, length in max_tokens.items()
    }


def _input(name: str, channel: Channel) -> keras.KerasTensor:
    if channel.kind == "vectors":
        return keras.Input((None, channel.dimension), dtype="float32", name=name)
    return keras.Input((1 if channel.kind == "categorical" else None,), dtype="int32", name=name)


def _channel_layer(
    name: str, channel: Channel, config: Config, text_encoders: dict[str, TextEncoder]
) -> Callable[[Any], Any]:
    """What makes φᵢ `[B, D]` of the channel's input."""
    dimension = config.dimension
    if channel.kind == "trigrams":
        return TrigramEmbedding(channel.buckets, dimension, name=f"{name}_vector")
    if channel.kind == "vectors":
        return DeepSets(channel.hidden_dim, dimension, name=f"{name}_vector")
    if channel.kind == "categorical":
        return Embedding(len(channel.values) + 1, dimension, SILENT, name=f"{name}_vector")
    project = keras.layers.Dense(dimension, kernel_initializer=SILENT, name=f"{name}_vector")
    return lambda ids: project(text_encoders[channel.encoder](ids))


class _Present(keras.layers.Layer):
    """True where a channel's input is not all zeros: `[B, …]` to bool `[B]`."""

    def call(self, inputs: Any) -> Any:
        return ops.any(inputs != 0, axis=tuple(range(1, len(inputs.shape))))
