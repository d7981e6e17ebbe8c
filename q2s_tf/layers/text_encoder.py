"""Transformer encoder of a text."""

from typing import Any

import keras
import tensorflow as tf

from q2s_tf.layers.configured_layer import ConfiguredLayer
from q2s_tf.layers.token_layout import PackedTokens, PaddedTokens

Layout = PackedTokens | PaddedTokens
Weights = dict[str, keras.Variable]


@keras.saving.register_keras_serializable(package="q2s_tf")
class TextEncoder(ConfiguredLayer):
    """Encodes a text as one vector with the transformer of XLM-R: the last layer's [CLS], or the mean over the tokens.

    For token embeddings E, position embeddings P and num_layers layers with post-normalisation:

        h₀ = LN(E[id] + P);   u = LN(h + MHA(h));   h' = LN(u + W₂ act(W₁ u + b₁) + b₂)

    BERT is the same computation with other constants, if the embedding of its first segment is added to P. See
    `q2s_tf.models.pretrained`, which copies the weights of either model.

    In training the tokens are packed, so that padding costs little. Otherwise the computation has few ops: the products
    of query, key and value are one, and with [CLS] pooling the last layer is computed for that token alone. Both give
    the same vectors up to rounding.

    Under a mixed dtype policy the matrix products have the compute dtype; normalisations, residual sums and softmaxes
    are float32.

    Args:
        vocabulary_size: token ids run from 0 (padding) to `vocabulary_size` - 1.
        max_tokens: length of the longest row.
        num_layers: number of layers; Que2Search has 2 for queries and 6 for documents.
        num_heads: attention heads; 4 in the query encoder of Que2Search.
        hidden_dim: H, width of the token vectors; 128 in the query encoder of Que2Search.
        intermediate_dim: width of the feed-forward layer; 384 in the query encoder of Que2Search.
        dropout: dropout rate; 0.1 in Que2Search.
        pooling: "cls" as in the paper, or "mean" over the tokens that are not padding.
        activation: "gelu", x Φ(x), or "gelu_approximate", its approximation by tanh.
        epsilon: ε of the layer normalisations.

    Source: Conneau et al., XLM-R, 2019; Devlin et al., BERT, 2018.
    """

    def __init__(
        self,
        vocabulary_size: int,
        max_tokens: int,
        num_layers: int = 2,
        num_heads: int = 4,
        hidden_dim: int = 128,
        intermediate_dim: int = 384,
        dropout: float = 0.1,
        pooling: str = "cls",
        activation: str = "gelu",
        epsilon: float = 1e-5,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim must be a multiple of num_heads; got {hidden_dim} and {num_heads}")
        if pooling not in ("cls", "mean"):
            raise ValueError(f'pooling must be "cls" or "mean"; got {pooling!r}')
        if activation not in ("gelu", "gelu_approximate"):
            raise ValueError(f'activation must be "gelu" or "gelu_approximate"; got {activation!r}')
        self.vocabulary_size = vocabulary_size
        self.max_tokens = max_tokens
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.pooling = pooling
        self.activation = activation
        self.epsilon = epsilon
        self.supports_jit = False  # the packed layout of training has ops of dynamic output size
        self._dropout = keras.layers.Dropout(dropout, dtype="float32", name="dropout")

    def build(self, ids_shape: tuple[Any, ...]) -> None:
        """Creates the embedding tables and the weights of every layer."""
        width, inner = self.hidden_dim, self.intermediate_dim
        self.embeddings: Weights = {
            "token_table": self._weight("token_table", (self.vocabulary_size, width)),
            "position_table": self._weight("position_table", (self.max_tokens, width)),
            **self._normalisation("embedding"),
        }
        self.blocks: list[Weights] = [
            {
                **self._dense(f"layer_{number}_qkv", "qkv", width, 3 * width),
                **self._dense(f"layer_{number}_attention", "attention", width, width),
                **self._normalisation(f"layer_{number}_attention", "attention_"),
                **self._dense(f"layer_{number}_inner", "inner", width, inner),
                **self._dense(f"layer_{number}_outer", "outer", inner, width),
                **self._normalisation(f"layer_{number}_output", "output_"),
            }
            for number in range(self.num_layers)
        ]

    def call(self, ids: Any, training: bool | None = None) -> Any:
        """Encodes int32 token ids `[batch, L]`, where 0 is padding, as `[batch, H]`.

        A row of padding gives 0 in training and with mean pooling. With [CLS] pooling its vector has no meaning
        otherwise; mask it.
        """
        ids = tf.cast(ids, tf.int32)
        tokens: Layout = PackedTokens(ids) if training else PaddedTokens(ids)
        table, positions = self.embeddings["token_table"].value, self.embeddings["position_table"].value
        hidden = self._drop(self._normalise(tokens.embed(table, positions), self.embeddings), training)
        blocks = self.blocks if self.pooling == "mean" else self.blocks[:-1]
        for weights in blocks:
            hidden = self._transform(weights, hidden, self._attend(weights, tokens, hidden, training), training)
        if self.pooling == "mean":
            pooled = tokens.mean(hidden)
        else:
            first, weights = tokens.first(hidden), self.blocks[-1]
            attended = self._attend_from_first(weights, tokens, hidden, first, training)
            pooled = self._transform(weights, first, attended, training)
        return tf.cast(tokens.restore(pooled), self.compute_dtype)

    def _attend(self, weights: Weights, tokens: Layout, hidden: Any, training: bool | None) -> Any:
        """Multi-head attention of tokens `[T, H]` over the tokens of their texts: `[T, H]`."""
        heads, width = self.num_heads, self.hidden_dim // self.num_heads
        projected = self._product(hidden, *self._scaled_qkv(weights))
        groups = zip(tokens.pad(projected, [3, heads, width]), tokens.biases, strict=True)
        mixed = [self._mix(_unstack(group, 3), bias, training) for group, bias in groups]
        packed = tokens.pack([tf.transpose(group, [0, 2, 1, 3]) for group in mixed], heads * width)
        return self._product(packed, weights["attention_kernel"], weights["attention_bias"])

    def _attend_from_first(
        self, weights: Weights, tokens: Layout, hidden: Any, first: Any, training: bool | None
    ) -> Any:
        """Multi-head attention of the first token of each text `[R, H]` over all its tokens `[T, H]`: `[R, H]`."""
        heads, width, size = self.num_heads, self.hidden_dim // self.num_heads, self.hidden_dim
        kernel, bias = self._scaled_qkv(weights)
        queries = tokens.split(self._product(first, kernel[:, :size], bias[:size]))
        pairs = tokens.pad(self._product(hidden, kernel[:, size:], bias[size:]), [2, heads, width])
        mixed = [
            self._mix([tf.reshape(query, [-1, heads, 1, width]), *_unstack(pair, 2)], bias, training)
            for query, pair, bias in zip(queries, pairs, tokens.biases, strict=True)
        ]
        packed = tf.concat([tf.reshape(group, [-1, heads * width]) for group in mixed], 0)
        return self._product(packed, weights["attention_kernel"], weights["attention_bias"])

    def _scaled_qkv(self, weights: Weights) -> tuple[Any, Any]:
        """Kernel `[H, 3H]` and bias `[3H]` of query, key and value; queries are divided by √(H / num_heads)."""
        scale = (self.hidden_dim // self.num_heads) ** -0.5
        scales = tf.constant([scale] * self.hidden_dim + [1.0] * (2 * self.hidden_dim))
        return weights["qkv_kernel"].value * scales, weights["qkv_bias"].value * scales

    def _mix(self, projections: list[Any], bias: Any, training: bool | None) -> Any:
        """softmax(q kᵀ + bias) v for each head: `[n, heads, m, width]`, for m queries and l keys and values."""
        query, key, value = projections
        scores = tf.cast(tf.matmul(query, key, transpose_b=True), bias.dtype)
        attention = self._drop(tf.nn.softmax(scores + bias), training)
        return tf.matmul(tf.cast(attention, value.dtype), value)

    def _transform(self, weights: Weights, tokens: Any, attended: Any, training: bool | None) -> Any:
        """The part of a layer after attention, for tokens `[T, H]` and their attention outputs `[T, H]`."""
        attended = self._drop(tf.cast(attended, tf.float32), training)
        tokens = self._normalise(tokens + attended, weights, "attention_")
        hidden = self._product(tokens, weights["inner_kernel"], weights["inner_bias"])
        kernel = weights["outer_kernel"].value
        if self.activation == "gelu":  # x Φ(x) = x erfc(-x / √2) / 2; the half is folded into the kernel
            hidden, kernel = hidden * tf.math.erfc(-(0.5**0.5) * hidden), 0.5 * kernel
        else:
            hidden = tf.nn.gelu(hidden, approximate=True)
        output = tf.cast(self._product(hidden, kernel, weights["outer_bias"]), tf.float32)
        return self._normalise(tokens + self._drop(output, training), weights, "output_")

    def _drop(self, values: Any, training: bool | None) -> Any:
        return self._dropout(values, training=training) if training else values

    def _product(self, rows: Any, kernel: Any, bias: Any) -> Any:
        """X W + b in the compute dtype, for rows `[T, I]`."""
        rows, kernel, bias = (tf.cast(part, self.compute_dtype) for part in (rows, kernel, bias))
        return tf.nn.bias_add(tf.matmul(rows, kernel), bias)

    def _normalise(self, values: Any, weights: Weights, prefix: str = "") -> Any:
        """(x - mean) / √(variance + ε) · γ + β over the last axis, in fewer ops than a layer of Keras."""
        centred = values - tf.reduce_mean(values, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        scaled = centred * tf.math.rsqrt(variance + self.epsilon) * weights[f"{prefix}gamma"].value
        return tf.nn.bias_add(scaled, weights[f"{prefix}beta"].value)

    def _weight(self, name: str, shape: tuple[int, ...], initializer: Any = None) -> keras.Variable:
        initializer = initializer or keras.initializers.TruncatedNormal(stddev=0.02)
        return self.add_weight(name=name, shape=shape, initializer=initializer, autocast=False)

    def _dense(self, name: str, key: str, inputs: int, outputs: int) -> Weights:
        return {
            f"{key}_kernel": self._weight(f"{name}_kernel", (inputs, outputs)),
            f"{key}_bias": self._weight(f"{name}_bias", (outputs,), "zeros"),
        }

    def _normalisation(self, name: str, prefix: str = "") -> Weights:
        return {
            f"{prefix}gamma": self._weight(f"{name}_gamma", (self.hidden_dim,), "ones"),
            f"{prefix}beta": self._weight(f"{name}_beta", (self.hidden_dim,), "zeros"),
        }

    def compute_output_shape(self, ids_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """`[batch, H]`."""
        return (ids_shape[0], self.hidden_dim)


def _unstack(projected: Any, count: int) -> list[Any]:
    """Projections `[n, l, count, heads, width]` of texts one by one: `count` tensors `[n, heads, l, width]`."""
    return tf.unstack(tf.transpose(projected, [2, 0, 3, 1, 4]), count)
