"""A text through a transformer."""

from typing import Any

import keras
import keras_hub
import tensorflow as tf
from keras import ops


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

        It is what `self.backbone` computes for the first token, with its weights, at less cost: products of two
        matrices where the backbone multiplies batch by batch, and only [CLS] in the last layer.
        """
        embeddings = self.backbone.embeddings
        hidden = tf.gather(embeddings.token_embedding.embeddings.value, ids)  # reads these rows, not the table
        hidden = self.backbone.embeddings_layer_norm(hidden + embeddings.position_embedding(hidden))
        hidden = self.backbone.embeddings_dropout(hidden, training=training)
        bias = ops.where(ids != 0, 0.0, -1e9)[:, None, None, :]
        *layers, last = self.backbone.transformer_layers
        for layer in layers:
            hidden = _transform(layer, hidden, hidden, bias, training)
        return _transform(last, hidden[:, :1], hidden, bias, training)[:, 0]

    def compute_output_shape(self, ids_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """`[B, hidden_dim]`."""
        return (ids_shape[0], self.geometry["hidden_dim"])

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), **self.geometry, "max_tokens": self.max_tokens}


def _transform(layer: Any, tokens: Any, context: Any, bias: Any, training: bool | None) -> Any:
    """One transformer layer for `tokens` `[B, T, H]`, which attend to `context` `[B, L, H]`."""
    attended = _attend(layer._self_attention_layer, tokens, context, bias, training)
    attended = layer._self_attention_dropout(attended, training=training)
    tokens = layer._self_attention_layer_norm(tokens + attended)
    forward = layer._feedforward_output_dense(layer._feedforward_intermediate_dense(tokens))
    return layer._feedforward_layer_norm(tokens + layer._feedforward_dropout(forward, training=training))


def _attend(attention: Any, tokens: Any, context: Any, bias: Any, training: bool | None) -> Any:
    """Multi-head attention: softmax(q kᵀ / √d + bias) v, projected; `[B, T, H]`."""
    heads, width = attention._num_heads, attention._key_dim
    (query,) = _project([attention._query_dense], tokens, heads, width)
    key, value = _project([attention._key_dense, attention._value_dense], context, heads, width)
    scores = ops.matmul(query * width**-0.5, ops.swapaxes(key, -1, -2)) + bias
    weights = attention._dropout_layer(ops.softmax(scores), training=training)
    mixed = ops.reshape(ops.swapaxes(ops.matmul(weights, value), 1, 2), (-1, heads * width))
    output = attention._output_dense
    result = ops.matmul(mixed, ops.reshape(output.kernel, (heads * width, -1))) + output.bias
    return ops.reshape(result, (-1, ops.shape(tokens)[1], tokens.shape[-1]))


def _project(layers: list[Any], tokens: Any, heads: int, width: int) -> list[Any]:
    """The projections of several layers by one product: each `[B, heads, L, width]`."""
    dimension, count = tokens.shape[-1], len(layers)
    kernel = ops.concatenate([ops.reshape(layer.kernel, (dimension, -1)) for layer in layers], axis=1)
    bias = ops.concatenate([ops.reshape(layer.bias, (-1,)) for layer in layers])
    projected = ops.matmul(ops.reshape(tokens, (-1, dimension)), kernel) + bias
    split = ops.reshape(projected, (-1, ops.shape(tokens)[1], count, heads, width))
    return ops.unstack(ops.transpose(split, (2, 0, 3, 1, 4)), count)
