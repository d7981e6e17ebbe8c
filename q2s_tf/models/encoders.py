"""A tower as a Keras functional model, built from the channels that the config declares."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import keras
from keras import ops

from q2s_tf.config import Channel, Config, Encoder
from q2s_tf.layers import AttentionFusion, ConcatFusion, DeepSets, Embedding, TextEncoder, TrigramEmbedding

SILENT = "zeros"
"""First weights of what starts with nothing to say. An untrained transformer gives every text nearly the same [CLS]; a
tower whose sum such a vector dominates starts with all its embeddings alike, and was seen to stay there."""

FUSIONS: dict[str, type[keras.layers.Layer]] = {"attention": AttentionFusion, "concat_mlp": ConcatFusion}
"""By what `config.fusion` says."""

ALIGNED_SEED = 3
"""Seed of every `aligned_projection`, whatever the seed of the run."""


def build_encoder(config: Config, tower: str, vocabulary_sizes: Mapping[str, int]) -> keras.Model:
    """Builds one tower, from prepared channel inputs to a unit vector.

    Each channel becomes φᵢ in R^D; the fusion (eq. 1, or what `config.fusion` says) makes f of them; the embedding is
    f / |f|, and 0 for a row with no channel at all.

    Args:
        config: the channels, D, and the geometry of the encoders.
        tower: "query" or "document".
        vocabulary_sizes: of the tokenizers, by encoder.

    Returns:
        A model from `{channel: ids or vectors}` (see `Preprocessor`) to `embedding` `[B, D]` and `channel_weights`
        `[B, N]`.
    """
    channels = config.tower_channels(tower)
    text_encoders = _build_text_encoders(config, tower, vocabulary_sizes)
    inputs, vectors, present = {}, [], []
    for name, channel in channels.items():
        inputs[name] = _input(name, channel)
        vectors.append(_channel_layer(name, channel, config, text_encoders)(inputs[name]))
        present.append(_Present(name=f"{name}_present")(inputs[name]))
    stacked = ops.stack(vectors, axis=1)
    fusion = FUSIONS[config.fusion](name="fusion")
    fused, weights = fusion(stacked, ops.stack(present, axis=1))
    embedding = keras.layers.UnitNormalization(name="embedding")(fused)
    return keras.Model(inputs, {"embedding": embedding, "channel_weights": weights}, name=f"{tower}_encoder")


class EncoderParts(NamedTuple):
    """One tower's encoder in two."""

    channels: keras.Model
    """From prepared inputs to the channel vectors `[B, N, D]`, and which of them are present, bool `[B, N]`. For every
    frozen channel there is one input more, `encoded_input(channel)`: what its text encoder says, `[B, H]`."""
    fuse: Callable[[Any, Any], tuple[Any, Any]]
    """From these two to the embedding `[B, D]` and the channel weights `[B, N]`."""


def split_encoder(encoder: keras.Model, frozen: Iterable[str] = ()) -> EncoderParts:
    """The two parts of what `build_encoder` made, on the same weights: what a channel says, and what is made of it.

    Args:
        encoder: of one tower.
        frozen: text channels whose encoder is left out, see `EncoderParts.channels`.
    """
    fusion, unit = encoder.get_layer("fusion"), encoder.get_layer("embedding")

    def fuse(stacked: Any, present: Any) -> tuple[Any, Any]:
        fused, weights = fusion(stacked, present)
        return unit(fused), weights

    encoded = {encoded_input(name): encoder.get_layer(f"{name}_vector").input for name in frozen}
    return EncoderParts(keras.Model({**encoder.input, **encoded}, fusion.input), fuse)


def encoded_input(channel: str) -> str:
    """Name of the input that takes the place of a frozen text encoder; no channel can have it."""
    return f"{channel}.encoded"


def _build_text_encoders(config: Config, tower: str, vocabulary_sizes: Mapping[str, int]) -> dict[str, TextEncoder]:
    """One encoder a name, long enough for every channel that shares it."""
    return {
        name: build_text_encoder(config.encoders[name], vocabulary_sizes[name], length, f"{name}_text_encoder")
        for name, length in config.longest_texts(tower).items()
    }


def build_text_encoder(settings: Encoder, vocabulary_size: int, max_tokens: int, name: str) -> TextEncoder:
    """The layer that a table under `encoders` declares, with fresh weights."""
    constants = settings.pretrained.model_dump(include={"activation", "epsilon"}) if settings.pretrained else {}
    geometry = settings.model_dump(exclude={"preset", "pretrained", "learning_rate_factor", "frozen"})
    encoder = TextEncoder(vocabulary_size, max_tokens, **geometry, **constants, name=name)
    encoder.trainable = not settings.frozen
    return encoder


def aligned_projection() -> keras.initializers.Initializer:
    """First weights of what projects the vectors of a pretrained encoder, which has something to say: orthogonal.

    The same ones in both towers: the cosines of the encoder's vectors stay as they are if D is not less than their
    width, and nearly so otherwise.
    """
    return keras.initializers.Orthogonal(seed=ALIGNED_SEED)


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
    start = aligned_projection() if config.encoders[channel.encoder].pretrained else SILENT
    project = keras.layers.Dense(dimension, kernel_initializer=start, name=f"{name}_vector")

    def vector(ids: Any) -> Any:
        encoded = text_encoders[channel.encoder](ids)
        encoded.name = encoded_input(name)  # Keras wants it where `split_encoder` makes an input of it
        return project(encoded)

    return vector


class _Present(keras.layers.Layer):
    """True where a channel's input is not all zeros: `[B, …]` to bool `[B]`."""

    def call(self, inputs: Any) -> Any:
        return ops.any(inputs != 0, axis=tuple(range(1, len(inputs.shape))))
