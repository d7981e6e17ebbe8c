"""A text through a transformer."""

from typing import Any

import keras
import keras_hub
import tensorflow as tf
from keras import ops

from q2s_tf.layers.token_rows import PackedRows, PaddedRows

Rows = PackedRows | PaddedRows


class TextEncoder(keras.layers.Layer):
    """One vector of a text from an XLM-R encoder (KerasHub's backbone): the last layer's of [CLS], or its mean.

    BERT is the same computation with other constants, and its segment embedding added to those of the places: see
    `q2s_tf.training.pretrained`, which copies the weights of either.

    Args:
        vocabulary_size: token ids run from 0 (padding) to `vocabulary_size` - 1.
        max_tokens: the longest row.
        num_layers, num_heads, hidden_dim, intermediate_dim, dropout: the geometry; Que2Search's query encoder is
            2 layers, 4 heads, 128, 384, 0.1, its document encoder 6 layers.
        pooling: "cls", the paper's, or "mean", over the tokens that are not padding.
        activation: "gelu", x Φ(x), or "gelu_approximate", its form by tanh.
        epsilon: ε of the layer normalisations.

    Attributes:
        training_dtype: what the products of training are computed in, "float32" or "bfloat16". The weights, the
            residual sums, normalisations and softmaxes are float32, and so is everything outside of training.
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
        pooling: str = "cls",
        activation: str = "gelu",
        epsilon: float = 1e-5,
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
        self.pooling = pooling
        self.activation = activation
        self.epsilon = epsilon
        self.training_dtype = "float32"
        self.backbone = keras_hub.models.XLMRobertaBackbone(
            **self.geometry, max_sequence_length=max_tokens, name="backbone"
        )

    def call(self, ids: Any, training: bool | None = None) -> Any:
        """Encodes int32 token ids `[B, L]` (0 = padding) to `[B, hidden_dim]`.

        It is what `self.backbone` computes, with its weights, at less cost: products of two matrices where the backbone
        multiplies batch by batch, and for [CLS] only that token in the last layer. In training padding costs next to
        nothing; else there are few ops. A text of padding alone gives 0 in training and as its mean, and nothing of
        meaning for [CLS] otherwise.
        """
        rows = PackedRows(ids) if training else PaddedRows(ids)
        dtype = self.training_dtype if training else "float32"
        hidden = self._embed(rows, training)
        layers = list(self.backbone.transformer_layers)
        last = layers.pop() if self.pooling == "cls" else None
        for layer in layers:
            attended = _attend(layer._self_attention_layer, rows, tf.cast(hidden, dtype), training)
            hidden = self._transform(layer, hidden, attended, training)
        if last is None:
            return rows.unpack(rows.mean(hidden))
        first = rows.first(hidden)
        tokens, asking = tf.cast(hidden, dtype), tf.cast(first, dtype)
        attended = _attend_from_first(last._self_attention_layer, rows, tokens, asking, training)
        return rows.unpack(self._transform(last, first, attended, training))

    def _embed(self, rows: Rows, training: bool | None) -> Any:
        """Tokens and their places, normalised: `[T, H]`."""
        embeddings = self.backbone.embeddings
        tokens, places = embeddings.token_embedding.embeddings, embeddings.position_embedding.position_embeddings
        hidden = _normalise(self.backbone.embeddings_layer_norm, rows.embed(tokens.value, places.value), self.epsilon)
        return self.backbone.embeddings_dropout(hidden, training=training)

    def _transform(self, layer: Any, tokens: Any, attended: Any, training: bool | None) -> Any:
        """What follows the attention in a transformer layer, for tokens `[T, H]` and what they attended to `[T, H]`.

        Tokens are float32, and the products of the dtype of `attended`.
        """
        dropped = layer._self_attention_dropout(tf.cast(attended, tokens.dtype), training=training)
        tokens = _normalise(layer._self_attention_layer_norm, tokens + dropped, self.epsilon)
        inner, outer = layer._feedforward_intermediate_dense, layer._feedforward_output_dense
        activate = _gelu if self.activation == "gelu" else _gelu_approximate
        hidden = activate(_product(tf.cast(tokens, attended.dtype), inner.kernel, inner.bias))
        forward = tf.cast(_product(hidden, outer.kernel, outer.bias), tokens.dtype)
        forward = layer._feedforward_dropout(forward, training=training)
        return _normalise(layer._feedforward_layer_norm, tokens + forward, self.epsilon)

    def compute_output_shape(self, ids_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """`[B, hidden_dim]`."""
        return (ids_shape[0], self.geometry["hidden_dim"])

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        constants = {"pooling": self.pooling, "activation": self.activation, "epsilon": self.epsilon}
        return {**super().get_config(), **self.geometry, "max_tokens": self.max_tokens, **constants}


def _attend(attention: Any, rows: Rows, tokens: Any, training: bool | None) -> Any:
    """Multi-head attention of tokens `[T, H]` among those of their text: `[T, H]`."""
    heads, width = attention._num_heads, attention._key_dim
    projected = _project(tokens, [_query(attention), _key(attention), _value(attention)])
    groups = zip(rows.spread(projected, [3, heads, width]), rows.biases, strict=True)
    mixed = [_mix(attention, _unstack(group), bias, training) for group, bias in groups]
    return _merge(attention, rows.collect([ops.swapaxes(each, 1, 2) for each in mixed], heads * width))


def _attend_from_first(attention: Any, rows: Rows, tokens: Any, first: Any, training: bool | None) -> Any:
    """Multi-head attention of one token a text, `[R, H]`, among all tokens `[T, H]` of it: `[R, H]`."""
    heads, width = attention._num_heads, attention._key_dim
    queries = rows.split(_project(first, [_query(attention)]))
    pairs = rows.spread(_project(tokens, [_key(attention), _value(attention)]), [2, heads, width])
    mixed = [
        _mix(attention, [tf.reshape(query, [-1, heads, 1, width]), *_unstack(pair)], bias, training)
        for query, pair, bias in zip(queries, pairs, rows.biases, strict=True)
    ]
    return _merge(attention, tf.concat([tf.reshape(each, [-1, heads * width]) for each in mixed], 0))


def _mix(attention: Any, projections: list[Any], bias: Any, training: bool | None) -> Any:
    """softmax(q kᵀ + bias) v of every head: `[n, heads, m, width]` for q of this shape, k and v of l tokens."""
    query, key, value = projections
    scores = tf.cast(tf.matmul(query, key, transpose_b=True), bias.dtype)
    weights = attention._dropout_layer(tf.nn.softmax(scores + bias), training=training)
    return tf.matmul(tf.cast(weights, value.dtype), value)


def _merge(attention: Any, mixed: Any) -> Any:
    """The output projection of the heads, which stand beside each other: `[T, heads * width]` to `[T, H]`."""
    dense = attention._output_dense
    return _product(mixed, ops.reshape(dense.kernel, (mixed.shape[-1], -1)), dense.bias)


def _query(attention: Any) -> tuple[Any, Any]:
    """Kernel `[H, heads, width]` and bias of the queries, which divide them by √width: the scale of the scores."""
    scale = attention._key_dim**-0.5
    return attention._query_dense.kernel * scale, attention._query_dense.bias * scale


def _key(attention: Any) -> tuple[Any, Any]:
    return attention._key_dense.kernel, attention._key_dense.bias


def _value(attention: Any) -> tuple[Any, Any]:
    return attention._value_dense.kernel, attention._value_dense.bias


def _project(tokens: Any, projections: list[tuple[Any, Any]]) -> Any:
    """Projections of tokens `[T, H]` beside each other, all in one product: `[T, projections * heads * width]`."""
    kernel = ops.concatenate([ops.reshape(kernel, (kernel.shape[0], -1)) for kernel, _ in projections], axis=1)
    bias = ops.concatenate([ops.reshape(bias, (-1,)) for _, bias in projections])
    return _product(tokens, kernel, bias)


def _unstack(projected: Any) -> list[Any]:
    """The projections `[n, l, projections, heads, width]` of texts, one by one: each `[n, heads, l, width]`."""
    return tf.unstack(tf.transpose(projected, [2, 0, 3, 1, 4]), projected.shape[2])


def _product(tokens: Any, kernel: Any, bias: Any) -> Any:
    """A dense layer without activation, x W + b, for `[T, I]`, computed in the dtype of the tokens."""
    return tf.nn.bias_add(tf.matmul(tokens, tf.cast(kernel, tokens.dtype)), tf.cast(bias, tokens.dtype))


def _gelu(tokens: Any) -> Any:
    """GELU, x Φ(x), by the error function."""
    return tokens * (0.5 * tf.math.erfc(-(0.5**0.5) * tokens))


def _gelu_approximate(tokens: Any) -> Any:
    """GELU by tanh, as BERT was first trained."""
    return tf.nn.gelu(tokens, approximate=True)


def _normalise(layer: Any, tokens: Any, epsilon: float) -> Any:
    """Layer normalisation (x - mean) / √(variance + ε) · γ + β over the last axis, in fewer ops than `layer` takes."""
    centred = tokens - ops.mean(tokens, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    return tf.nn.bias_add(centred * ops.rsqrt(variance + epsilon) * layer.gamma, layer.beta)
