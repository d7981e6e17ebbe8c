"""A text through a transformer."""

from typing import Any

import keras
import keras_hub
import tensorflow as tf
from keras import ops

PADDING = -1e9
"""Added to the attention to a padding token, which leaves nothing of it."""


class TextEncoder(keras.layers.Layer):
    """The last layer's vector of [CLS] from an XLM-R encoder (KerasHub's backbone), trained from scratch.

    Args:
        vocabulary_size: token ids run from 0 (padding) to `vocabulary_size` - 1.
        max_tokens: the longest row.
        num_layers, num_heads, hidden_dim, intermediate_dim, dropout: the geometry; Que2Search's query encoder is
            2 layers, 4 heads, 128, 384, 0.1, its document encoder 6 layers.
    """

    def __init__(
        self,
        vocabulary_size: int,
        max_tokens: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        intermediate_dim: int,
        dropout: float,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.geometry = {
            "vocabulary_size": vocabulary_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "hidden_dim": hidden_dim,
            "intermediate_dim": intermediate_dim,
            "dropout": dropout,
        }
        self.max_tokens = max_tokens
        self.backbone = keras_hub.models.XLMRobertaBackbone(
            **self.geometry, max_sequence_length=max_tokens, name="backbone"
        )

    def call(self, ids: Any, training: bool | None = None) -> Any:
        """Encodes int32 token ids `[B, L]` (0 = padding) to `[B, hidden_dim]`.

        It is what `self.backbone` computes for the first token, with its weights, at less cost: few ops, products of
        two matrices where the backbone multiplies batch by batch, and only [CLS] in the last layer.
        """
        hidden, length = self._embed(ids, training)
        bias = PADDING * ops.cast(ids == 0, hidden.dtype)[:, None, None, :]
        *layers, last = self.backbone.transformer_layers
        for layer in layers:
            attention = layer._self_attention_layer
            query, key, value = _heads(hidden, length, [_query(attention), _key(attention), _value(attention)])
            hidden = _transform(layer, hidden, _attend(attention, query, key, value, bias, training), training)
        attention = last._self_attention_layer
        key, value = _heads(hidden, length, [_key(attention), _value(attention)])
        first = ops.reshape(hidden[::length], (-1, hidden.shape[-1]))  # [CLS] of every row
        query = _heads_of_one(first, _query(attention))
        return _transform(last, first, _attend(attention, query, key, value, bias, training), training)

    def _embed(self, ids: Any, training: bool | None) -> tuple[Any, Any]:
        """Tokens and their places, normalised: `[B * L, H]`, the rows of the batch below each other; and L."""
        length = tf.shape(ids)[1]
        tokens = tf.gather(self.backbone.embeddings.token_embedding.embeddings.value, ids)
        places = self.backbone.embeddings.position_embedding.position_embeddings[:length]
        hidden = ops.reshape(tokens + places, (-1, tokens.shape[-1]))
        hidden = _normalise(self.backbone.embeddings_layer_norm, hidden)
        return self.backbone.embeddings_dropout(hidden, training=training), length

    def compute_output_shape(self, ids_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """`[B, hidden_dim]`."""
        return (ids_shape[0], self.geometry["hidden_dim"])

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), **self.geometry, "max_tokens": self.max_tokens}


def _transform(layer: Any, tokens: Any, attended: Any, training: bool | None) -> Any:
    """What follows the attention in a transformer layer, for tokens `[T, H]` and what they attended to `[T, H]`."""
    attended = layer._self_attention_dropout(attended, training=training)
    tokens = _normalise(layer._self_attention_layer_norm, tokens + attended)
    inner, outer = layer._feedforward_intermediate_dense, layer._feedforward_output_dense
    forward = _product(_gelu(_product(tokens, inner.kernel, inner.bias)), outer.kernel, outer.bias)
    return _normalise(layer._feedforward_layer_norm, tokens + layer._feedforward_dropout(forward, training=training))


def _attend(attention: Any, query: Any, key: Any, value: Any, bias: Any, training: bool | None) -> Any:
    """Multi-head attention, softmax(q kᵀ + bias) v, projected: `[B * T, H]` for a query `[B, heads, T, width]`."""
    weights = ops.softmax(ops.matmul(query, ops.swapaxes(key, -1, -2)) + bias)
    mixed = ops.matmul(attention._dropout_layer(weights, training=training), value)
    if query.shape[2] != 1:  # heads beside each other; those of a single token are already
        mixed = ops.swapaxes(mixed, 1, 2)
    kernel, bias = attention._output_dense.kernel, attention._output_dense.bias
    width = kernel.shape[0] * kernel.shape[1]
    return _product(ops.reshape(mixed, (-1, width)), ops.reshape(kernel, (width, -1)), bias)


def _query(attention: Any) -> tuple[Any, Any]:
    """Kernel `[H, heads, width]` and bias of the queries, which divide them by √width: the scale of the scores."""
    scale = attention._key_dim**-0.5
    return attention._query_dense.kernel * scale, attention._query_dense.bias * scale


def _key(attention: Any) -> tuple[Any, Any]:
    return attention._key_dense.kernel, attention._key_dense.bias


def _value(attention: Any) -> tuple[Any, Any]:
    return attention._value_dense.kernel, attention._value_dense.bias


def _heads(tokens: Any, length: Any, projections: list[tuple[Any, Any]]) -> list[Any]:
    """Projections of tokens `[B * L, H]`, all in one product: each `[B, heads, L, width]`."""
    dimension, heads, width = projections[0][0].shape
    kernel = ops.concatenate([ops.reshape(kernel, (dimension, -1)) for kernel, _ in projections], axis=1)
    bias = ops.concatenate([ops.reshape(bias, (-1,)) for _, bias in projections])
    split = ops.reshape(_product(tokens, kernel, bias), (-1, length, len(projections), heads, width))
    return ops.unstack(ops.transpose(split, (2, 0, 3, 1, 4)), len(projections))


def _heads_of_one(tokens: Any, projection: tuple[Any, Any]) -> Any:
    """What `_heads` gives for one token a row, `[B, H]`: `[B, heads, 1, width]`."""
    kernel, bias = projection
    dimension, heads, width = kernel.shape
    projected = _product(tokens, ops.reshape(kernel, (dimension, -1)), ops.reshape(bias, (-1,)))
    return ops.reshape(projected, (-1, heads, 1, width))


def _product(tokens: Any, kernel: Any, bias: Any) -> Any:
    """A dense layer without activation, x W + b, for `[T, I]`."""
    return tf.nn.bias_add(tf.matmul(tokens, kernel), bias)


def _gelu(tokens: Any) -> Any:
    """GELU, x Φ(x), by the error function."""
    return tokens * (0.5 * tf.math.erfc(-(0.5**0.5) * tokens))


def _normalise(layer: Any, tokens: Any) -> Any:
    """Layer normalisation (x - mean) / √(variance + ε) · γ + β over the last axis, in fewer ops than `layer` takes."""
    centred = tokens - ops.mean(tokens, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    return tf.nn.bias_add(centred * ops.rsqrt(variance + layer.epsilon) * layer.gamma, layer.beta)
