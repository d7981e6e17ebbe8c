"""The trained pair of towers, as Keras models that take raw inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from q2s_tf.config import Config
from q2s_tf.errors import InputError
from q2s_tf.models.encoders import build_encoder
from q2s_tf.models.preprocessing import Preprocessor
from q2s_tf.text import PretrainedTokenizer, Tokenizer

Column = Sequence[Any] | np.ndarray
"""One value a row."""

PretrainedTokenizers = Mapping[str, PretrainedTokenizer] | None


class Tower(keras.Model):
    """One tower, from raw inputs to `{"embedding": [B, D], "channel_weights": [B, N]}`.

    Args:
        config: the channels of both towers.
        name: "query" or "document".
        tokenizer: for the text channels.
        pretrained: tokenizers of the encoders that have their own, by encoder.

    Attributes:
        preprocessor: raw inputs to channel inputs, graph ops.
        encoder: channel inputs to the embedding, a functional model.
        config, dimension: the config, and its D.
        channels: names of the channels, in the order of `channel_weights`.
    """

    def __init__(self, config: Config, name: str, tokenizer: Tokenizer, pretrained: PretrainedTokenizers = None):
        super().__init__(name=f"{name}_tower")
        self.preprocessor = Preprocessor(config, name, tokenizer, pretrained)
        sizes = {encoder: (pretrained or {}).get(encoder, tokenizer).vocabulary_size for encoder in config.encoders}
        self.encoder = build_encoder(config, name, sizes)
        self.config, self.dimension = config, config.dimension
        self.channels = list(config.tower_channels(name))
        self.required = {channel.input for channel in config.tower_channels(name).values()}
        self.built = True
        self._forward = tf.function(
            lambda inputs: self.encoder(self.preprocessor(inputs), training=False),
            input_signature=[self.preprocessor.signature()],
            autograph=False,
        )

    def call(self, inputs: dict[str, tf.Tensor], training: bool | None = None) -> dict[str, tf.Tensor]:
        """Embeds a batch of tensors; see `Preprocessor` for their shapes."""
        return self.encoder(self.preprocessor(inputs), training=training)

    def predict(self, inputs: Mapping[str, Column], batch_size: int = 256) -> dict[str, np.ndarray]:
        """Embeds rows given as plain Python lists or arrays.

        Args:
            inputs: a column of B values by input name, for example `{"query": ["red sofa"], "country": ["US"]}`. A
                column that is left out, None and "" are missing. `image_embeddings` is a list of lists of vectors.
            batch_size: rows at a time; it changes the speed, not the result.

        Returns:
            `embedding` float32 `[B, D]` of unit length and `channel_weights` float32 `[B, N]`, whose rows sum to 1.

        Raises:
            InputError: an unknown or missing column, columns of different lengths, vectors of another dimension.
        """
        columns = self._check(inputs)
        rows = len(next(iter(columns.values())))
        batches = [
            self._forward(self.tensors({name: column[start : start + batch_size] for name, column in columns.items()}))
            for start in range(0, max(rows, 1), batch_size)
        ]
        return {key: np.concatenate([batch[key].numpy() for batch in batches]) for key in batches[0]}

    def tensors(self, columns: Mapping[str, Column]) -> dict[str, tf.Tensor]:
        """Plain columns as the tensors the tower takes: missing columns and None become "" or no vectors."""
        rows = len(next(iter(columns.values())))
        tensors = {}
        for name, spec in self.preprocessor.signature().items():
            column = columns.get(name)
            if spec.dtype == tf.string:
                values = [None] * rows if column is None else column
                texts = [_text(name, row, value) for row, value in enumerate(values)]
                tensors[name] = tf.constant(texts, tf.string, shape=[rows])
            else:
                sets = [()] * rows if column is None else column
                tensors[name] = tf.constant(_pad_vectors(name, sets, spec.shape[2]))
        return tensors

    def _check(self, inputs: Mapping[str, Column]) -> Mapping[str, Column]:
        known = list(self.preprocessor.inputs)
        unknown = [name for name in inputs if name not in known]
        if unknown:
            raise InputError(f"{self.name}: unknown input {', '.join(unknown)}; it takes {', '.join(known)}")
        if not self.required & set(inputs):
            raise InputError(
                f"{self.name}: no input for any of its channels; it reads {', '.join(sorted(self.required))}"
            )
        for name, column in inputs.items():
            if isinstance(column, str | bytes):
                raise InputError(f"{self.name}: '{name}' must be a list of values, one a row; got one text: {column!r}")
        lengths = {name: len(column) for name, column in inputs.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"{self.name}: every input needs the same number of rows; got {lengths}")
        return inputs


class Towers(keras.Model):
    """Both towers of one run, `query` and `document` (each a `Tower`), and the `config` they come from."""

    def __init__(self, config: Config, tokenizer: Tokenizer, pretrained: PretrainedTokenizers = None):
        super().__init__(name="towers")
        self.config = config
        self.query = Tower(config, "query", tokenizer, pretrained)
        self.document = Tower(config, "document", tokenizer, pretrained)
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The towers do not meet before the score: call `query` and `document`."""
        raise NotImplementedError("call towers.query or towers.document: the pair itself computes nothing")


def build_towers(config: Config, tokenizer: Tokenizer, pretrained: PretrainedTokenizers = None) -> Towers:
    """Both towers with fresh weights, drawn from `config.seed`."""
    keras.utils.set_random_seed(config.seed)
    return Towers(config, tokenizer, pretrained)


def _pad_vectors(name: str, sets: Column, dimension: int | None) -> np.ndarray:
    """Sets of vectors as one float32 array `[B, M, I]`, padded with zero rows."""
    arrays = [_vectors(name, row, vectors) for row, vectors in enumerate(sets)]
    width = dimension or max((array.shape[-1] for array in arrays if array.size), default=0)
    longest = max((len(array) for array in arrays), default=0)
    padded = np.zeros((len(arrays), longest, width), np.float32)
    for row, array in enumerate(arrays):
        if not array.size:
            continue
        if array.ndim != 2 or array.shape[1] != width or not np.isfinite(array).all():
            found = "a number that is not finite" if array.ndim == 2 and array.shape[1] == width else list(array.shape)
            raise InputError(f"{name}: row {row} must be a list of vectors of {width} finite numbers; got {found}")
        padded[row, : len(array)] = array
    return padded


def _vectors(name: str, row: int, vectors: Any) -> np.ndarray:
    """One row's vectors as an array; nothing for None and NaN, which pandas holds for a missing list."""
    if vectors is None or (np.isscalar(vectors) and vectors != vectors):
        return np.zeros((0, 0), np.float32)
    try:
        return np.array([np.asarray(vector, np.float32) for vector in vectors])
    except (TypeError, ValueError):
        raise InputError(f"{name}: row {row} must be a list of vectors of equal length; got {vectors!r:.80}") from None


def _text(name: str, row: int, value: Any) -> str | bytes:
    """A value as text; "" for None, and for the NaN that pandas holds for a missing value."""
    if value is None or (isinstance(value, float) and value != value) or type(value).__name__ == "NAType":
        return ""
    if isinstance(value, str | bytes):
        return value
    raise InputError(f"{name}: row {row} must be a text; got {value!r:.80}")
