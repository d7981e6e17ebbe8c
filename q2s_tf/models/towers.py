"""The query tower and the document tower as Keras models."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from q2s_tf.config import IMAGES, Channel, Config, Encoder
from q2s_tf.errors import InputError
from q2s_tf.layers import (
    AttentionFusion,
    CategoryEmbedding,
    CategoryIds,
    DeepSets,
    TextEncoder,
    TextNormalization,
    TokenIds,
    TrigramEmbedding,
    TrigramIds,
    VectorSet,
    aligned_projection,
)
from q2s_tf.models.plain_data import BATCH_SIZE, as_columns, encode, text_tensor, vector_tensor


@keras.saving.register_keras_serializable(package="q2s_tf")
class Tower(keras.Model):
    """One tower: a functional model from raw inputs to a unit vector.

    Each channel i becomes a vector φᵢ in R^D: 3-grams by `TrigramEmbedding`, a category by `CategoryEmbedding`, a text
    by `TextEncoder` and a projection, image vectors by `DeepSets`. If both towers have pretrained encoders, the vectors
    of texts beside other channels have unit length. `AttentionFusion` (eq. 1) combines them to f,
    and the embedding is f / |f|, or 0 for a row without any channel.

    A missing input is "" or an empty set of vectors; its channel is masked. `towers.query` has the inputs `query` and
    `country`; `towers.document` has `title`, `description`, `language`, `country` (strings `[batch]`) and
    `image_embeddings` (float `[batch, M, I]`, vectors of zeros are padding), and both have every other input of a
    channel. `as_inputs` makes these of lists, data frames and tables with missing values.

    The outputs are `embedding` `[batch, D]` and `channel_weights` `[batch, N]`, in the order of `channel_names`, in
    float32 under every dtype policy.

    Args:
        config: a `Config` or its dict.
        side: "query" or "document".
        vocabulary_sizes: number of token ids of each text encoder, by encoder; by default those of `tokenizers`.
        tokenizers: serialised tokenizer of each text encoder, by encoder; None if the assets of a `.keras` file follow.
        text_encoders: text encoders of the other tower, by encoder, for the channels of both that share one.

    Attributes:
        channel_names: names of the channels.
        preprocessor: model from raw inputs to channel inputs: ids `[batch, L]` or vectors `[batch, M, I]`, by channel.
        text_encoders: `TextEncoder` by encoder.
        channel_layers: the last layer of each channel, whose output is φᵢ, by channel.
        fusion: the fusion layer, of `fusion_class`.
    """

    fusion_class: type[keras.layers.Layer] = AttentionFusion

    def __init__(
        self,
        config: Config | Mapping[str, Any],
        side: str,
        vocabulary_sizes: Mapping[str, int] | None = None,
        tokenizers: Mapping[str, bytes] | None = None,
        dtype: Any = None,
        text_encoders: Mapping[str, TextEncoder] | None = None,
        **kwargs: Any,
    ):
        config = config if isinstance(config, Config) else Config.model_validate(config)
        policy = keras.config.dtype_policy() if dtype is None else keras.dtype_policies.get(dtype)
        raw_inputs = _raw_inputs(config, side)
        self.config, self.side, self.policy = config, side, policy
        self.channels: dict[str, Channel] = config.tower_channels(side)
        self.channel_names = list(self.channels)
        longest = config.longest_texts()
        read = dict.fromkeys(channel.encoder for channel in config.text_channels(side).values())
        self.token_layers = {
            name: _token_layer(config.encoders[name], (tokenizers or {}).get(name), f"{name}_tokens") for name in read
        }
        self.vocabulary_sizes = dict(
            vocabulary_sizes
            or {name: layer.tokenizer.vocabulary_size for name, layer in self.token_layers.items() if layer.tokenizer}
        )
        self.preprocessor = self._build_preprocessor(raw_inputs)
        self.text_encoders = {
            name: (text_encoders or {}).get(name)
            or _text_encoder(
                config.encoders[name],
                self.vocabulary_sizes[name],
                longest[name],
                dtype=policy,
                name=f"{name}_text_encoder",
            )
            for name in read
        }
        # The lengths of pretrained vectors differ from text to text, and with them the weight of a channel beside them.
        self.unit_texts = len(self.channels) > 1 and config.starts_from_encoders()
        self.channel_layers = {
            name: self._channel_layer(channel, dtype=policy, name=f"{name}_vector")
            for name, channel in self.channels.items()
        }
        pretrained = any(encoder.preset for encoder in config.tower_encoders(side).values())
        bias = {"use_bias": True} if pretrained else {}  # the other channels begin with little weight
        self.fusion = self.fusion_class(**bias, dtype="float32", name="fusion")
        self.normalization = keras.layers.UnitNormalization(dtype="float32", name="unit_length")
        embedding, weights = self.fuse(*self.encode_channels(self.preprocessor(raw_inputs)))
        outputs = {"embedding": embedding, "channel_weights": weights}
        super().__init__(raw_inputs, outputs, **{"name": f"{side}_tower", **kwargs})

    def encode_channels(self, inputs: Mapping[str, Any], training: bool | None = None) -> tuple[Any, Any]:
        """Channel vectors of preprocessed inputs.

        Args:
            inputs: outputs of `preprocessor`. `precomputed_input(channel)` replaces the output of the text encoder of a
                channel, `[batch, H]`.
            training: whether dropout is active.

        Returns:
            φ `[batch, N, D]`, and bool `[batch, N]`, False where a channel is missing.
        """
        vectors, masks = [], []
        for name, channel in self.channels.items():
            values = inputs[name]
            masks.append(ops.any(values != 0, axis=(1, 2)) if channel.kind == "vectors" else values[:, 0] != 0)
            layer = self.channel_layers[name]
            if channel.kind == "text":
                encoded = inputs.get(precomputed_input(name))
                if encoded is None:
                    encoded = self.text_encoders[channel.encoder](values, training=training)
                vector = layer(encoded)
                # In float32: a missing text can have a zero vector, which float16 cannot normalise.
                vectors.append(ops.cast(self.normalization(vector), vector.dtype) if self.unit_texts else vector)
            elif channel.kind == "categorical":
                vectors.append(layer(values[:, 0]))
            else:
                vectors.append(layer(values, training=training))
        return ops.stack(vectors, axis=1), ops.stack(masks, axis=1)

    def fuse(self, vectors: Any, mask: Any) -> tuple[Any, Any]:
        """The embedding `[batch, D]` and the channel weights `[batch, N]` of channel vectors and their mask."""
        fused, weights = self.fusion(vectors, mask=mask)
        return self.normalization(fused), weights

    def as_inputs(self, data: Any) -> dict[str, tf.Tensor]:
        """Inputs of the model from plain data, for `predict` or `tf.data`.

        Args:
            data: a dict of columns; a DataFrame or an Arrow table with the inputs of the tower among its columns; or
                one column of queries or titles. Missing columns, None and NaN are missing inputs.

        Returns:
            Tensors of all inputs: strings `[rows]`, vectors float32 `[rows, M, I]`.

        Raises:
            InputError: an unknown or missing column, columns of different lengths, a value of the wrong type.
        """
        read = self.read_inputs()
        columns = as_columns(data, read[0], list(self.input), self.name)
        if not set(columns) & set(read):
            raise InputError(f"{self.name}: no input of any channel; the channels read {', '.join(sorted(read))}")
        rows = len(next(iter(columns.values())))
        return {
            name: text_tensor(name, columns.get(name, [None] * rows))
            if tensor.dtype == "string"
            else vector_tensor(name, columns.get(name, [None] * rows), tensor.shape[2])
            for name, tensor in self.input.items()
        }

    def read_inputs(self) -> list[str]:
        """The inputs that a channel reads. The others are accepted, since signatures are fixed, and have no effect."""
        read = {channel.input for channel in self.channels.values()}
        return [name for name in self.input if name in read]

    def signature(self) -> dict[str, tf.TensorSpec]:
        """Specs of the raw inputs, for graph functions and `tf.data`."""
        return {name: tf.TensorSpec(x.shape, x.dtype, name=name) for name, x in self.input.items()}

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, without the tokenizers."""
        return {
            "config": self.config.model_dump(mode="json", exclude_none=True),
            "side": self.side,
            "vocabulary_sizes": self.vocabulary_sizes,
            "dtype": keras.saving.serialize_keras_object(self.policy),
            "name": self.name,
            "trainable": self.trainable,
        }

    def _build_preprocessor(self, raw_inputs: dict[str, Any]) -> keras.Model:
        decoded = {
            name: channel.kind == "text" and self.config.encoders[channel.encoder].pretrained is not None
            for name, channel in self.channels.items()
        }
        texts: dict[bool, dict[str, Any]] = {}  # decoded only or normalised, by input
        for decode_only, name in ((False, "normalised"), (True, "decoded")):
            read = {
                channel.input: raw_inputs[channel.input]
                for key, channel in self.channels.items()
                if channel.kind != "vectors" and decoded[key] == decode_only
            }
            if read:
                texts[decode_only] = TextNormalization(decode_only, dtype="float32", name=name)(read)
        outputs = {}
        for name, channel in self.channels.items():
            options = {"dtype": "float32", "name": f"{name}_{'set' if channel.kind == 'vectors' else 'ids'}"}
            if channel.kind == "vectors":
                raw = raw_inputs[channel.input]
                outputs[name] = VectorSet(channel.dimension, channel.max_vectors, **options)(raw)
                continue
            text = texts[decoded[name]][channel.input]
            if channel.kind == "text":
                outputs[name] = self.token_layers[channel.encoder](text, max_tokens=channel.max_tokens)
            elif channel.kind == "trigrams":
                outputs[name] = TrigramIds(channel.buckets, channel.max_trigrams, **options)(text)
            else:
                outputs[name] = CategoryIds(channel.values, **options)(text)
        return keras.Model(raw_inputs, outputs, name="preprocessor")

    def _channel_layer(self, channel: Channel, **options: Any) -> keras.layers.Layer:
        """The layer whose output is the vector of a channel, `[batch, D]`."""
        dimension = self.config.dimension
        if channel.kind == "trigrams":
            return TrigramEmbedding(channel.buckets, dimension, **options)
        if channel.kind == "vectors":
            return DeepSets(channel.hidden_dim, dimension, **options)
        # Zeros for categories and for encoders from scratch: an untrained transformer gives nearly the same vector for
        # every text, which would dominate the sum of the channels, and training did not recover from that.
        if channel.kind == "categorical":
            return CategoryEmbedding(len(channel.values) + 1, dimension, "zeros", **options)
        pretrained = self.config.encoders[channel.encoder].pretrained
        initializer = aligned_projection() if pretrained else "zeros"
        return keras.layers.Dense(dimension, kernel_initializer=initializer, **options)


def precomputed_input(channel: str) -> str:
    """Key of the precomputed output of the text encoder of a channel. No channel can have this name."""
    return f"{channel}.precomputed"


@keras.saving.register_keras_serializable(package="q2s_tf")
class Towers(keras.Model):
    """Both towers of one run. A text encoder that channels of both read is one layer, with one set of weights.

    Called with `{"query": {…}, "document": {…}}`, raw inputs of each tower, it returns `cos(q, d)` `[batch]`.

    Args:
        query: the query `Tower`.
        document: the document `Tower`.
    """

    def __init__(self, query: Tower, document: Tower, **kwargs: Any):
        super().__init__(**{"name": "towers", **kwargs})
        self.query = query
        self.document = document
        self.config = query.config
        self.built = True

    @property
    def text_encoders(self) -> dict[str, TextEncoder]:
        """The text encoders of both towers, by encoder."""
        return self.query.text_encoders | self.document.text_encoders

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Cosine of each query and its document, `[batch]`."""
        query = self.query(inputs["query"], training=training)["embedding"]
        return ops.sum(query * self.document(inputs["document"], training=training)["embedding"], axis=1)

    def encode_queries(self, queries: Any, countries: Any = None, batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Embeddings of queries, float32 `[rows, D]` of unit length; 0 for an empty query.

        Args:
            queries: a column of texts, or all inputs of the query tower as `Tower.as_inputs` takes them.
            countries: a column of the searchers' countries, or one country for all.
            batch_size: rows of a batch; it does not change the result.

        Raises:
            InputError: see `Tower.as_inputs`.
        """
        if isinstance(countries, str):
            countries = [countries] * len(queries)
        data = queries if countries is None else {"query": queries, "country": countries}
        return encode(self.query, data, batch_size)["embedding"]

    def encode_documents(self, documents: Any, batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Embeddings of documents, float32 `[rows, D]` of unit length; 0 for a document without any channel.

        Args:
            documents: a DataFrame, an Arrow table, a dict of columns, or a column of titles; see `Tower.as_inputs`.
            batch_size: rows of a batch; it does not change the result.

        Raises:
            InputError: see `Tower.as_inputs`.
        """
        return encode(self.document, documents, batch_size)["embedding"]

    def get_config(self) -> dict[str, Any]:
        """Both towers, serialised."""
        serialise = keras.saving.serialize_keras_object
        return {"query": serialise(self.query), "document": serialise(self.document), "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Towers":
        """Towers with new weights from `get_config`."""
        query = keras.saving.deserialize_keras_object(config["query"], custom_objects)
        shared = {**config["document"]["config"], "text_encoders": query.text_encoders}
        return cls(query, type(query).from_config(shared), name=config["name"])


def build_towers(config: Config, tokenizers: Mapping[str, bytes], dtype: Any = None) -> Towers:
    """Both towers with new weights, initialised from `config.seed`.

    Args:
        config: with the values of its categorical channels and the geometry of its presets filled in.
        tokenizers: serialised tokenizer of each text encoder, by encoder.
        dtype: dtype policy; the global one by default.
    """
    keras.utils.set_random_seed(config.seed)
    query = Tower(config, "query", None, tokenizers, dtype)
    return Towers(query, Tower(config, "document", None, tokenizers, dtype, query.text_encoders))


def _text_encoder(settings: Encoder, vocabulary_size: int, max_tokens: int, **kwargs: Any) -> TextEncoder:
    """The layer of a table under `encoders`."""
    geometry = settings.model_dump(include={"num_layers", "num_heads", "hidden_dim", "intermediate_dim", "dropout"})
    constants = settings.pretrained.model_dump(include={"activation", "epsilon"}) if settings.pretrained else {}
    encoder = TextEncoder(vocabulary_size, max_tokens, pooling=settings.pooling, **geometry, **constants, **kwargs)
    encoder.trainable = settings.trainable
    return encoder


def _token_layer(encoder: Encoder, model: bytes | None, name: str) -> TokenIds:
    pretrained = encoder.pretrained
    kind = pretrained.tokenizer if pretrained else "unigram"
    return TokenIds(kind, bool(pretrained and pretrained.lowercase), model, dtype="float32", name=name)


def _raw_inputs(config: Config, side: str) -> dict[str, Any]:
    widths = {channel.input: channel.dimension for channel in config.channels.values() if channel.kind == "vectors"}
    return {
        name: keras.Input((None, widths.get(name)), dtype="float32", name=name)
        if name == IMAGES or name in widths
        else keras.Input((), dtype="string", name=name)
        for name in config.tower_inputs(side)
    }
