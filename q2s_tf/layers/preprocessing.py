"""Layers from raw inputs to the inputs of the channels: ids or vectors, with zeros for a missing input.

They have no weights, run on the CPU and are the same in `tf.data`, in a saved model and in an exported signature.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from q2s_tf.layers.configured_layer import ConfiguredLayer
from q2s_tf.text import TOKENIZERS, Tokenizer, WordPiece, decode, normalise, trigram_ids


class _Preprocessing(ConfiguredLayer):
    """A layer without weights whose ops XLA does not have."""

    output_dtype = "int32"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_jit = False

    def compute_output_shape(self, inputs_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """`[batch, length]`, with a length that depends on the batch."""
        return (inputs_shape[0], None)

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        """Shape and dtype of the output."""
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), self.output_dtype)


@keras.saving.register_keras_serializable(package="q2s_tf")
class TextNormalization(_Preprocessing):
    """Normalises texts: NFKC with case folding, single spaces, at most 2,048 characters.

    Several columns of texts are normalised as one, because the number of ops is most of the cost of one row.

    Args:
        decode_only: only make texts valid UTF-8 and cut them, for the tokenizer of a pretrained model. A text that
            normalisation would make empty becomes "".
    """

    output_dtype = "string"

    def __init__(self, decode_only: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.decode_only = decode_only

    def call(self, texts: Any) -> Any:
        """Normalises strings `[batch]`, in any bytes: one tensor, or several of the same size in a list or dict."""
        columns = keras.tree.flatten(texts)
        stacked = tf.stack(columns)
        normalised = normalise(stacked)
        if self.decode_only:
            normalised = tf.where(normalised == "", "", decode(stacked))
        return keras.tree.pack_sequence_as(texts, tf.unstack(normalised, len(columns)))

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Shapes and dtypes of the inputs."""
        return keras.tree.map_structure(lambda text: keras.KerasTensor(text.shape, self.output_dtype), inputs)

    def compute_output_shape(self, texts_shape: Any) -> Any:
        """The shapes of the inputs."""
        return texts_shape


@keras.saving.register_keras_serializable(package="q2s_tf")
class TrigramIds(_Preprocessing):
    """Hashes the character 3-grams of texts; see `q2s_tf.text.trigram_ids`.

    Args:
        buckets: number of hash buckets.
        max_trigrams: number of 3-grams that are read of a text.
    """

    def __init__(self, buckets: int, max_trigrams: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.buckets = buckets
        self.max_trigrams = max_trigrams

    def call(self, text: Any) -> Any:
        """Hashes normalised strings `[batch]` to int32 ids `[batch, G]`, 0 is padding."""
        return trigram_ids(text, self.buckets, self.max_trigrams)


@keras.saving.register_keras_serializable(package="q2s_tf")
class CategoryIds(_Preprocessing):
    """Looks up the id of a value in a closed list, by comparison with every value.

    Args:
        values: normalised values, in the order of their ids 1, 2, …; any other value has the id 0.
    """

    def __init__(self, values: Sequence[str], **kwargs: Any):
        super().__init__(**kwargs)
        self.values = list(values)

    def call(self, text: Any) -> Any:
        """Looks up normalised strings `[batch]`: int32 ids `[batch, 1]`."""
        equal = tf.cast(text[:, tf.newaxis] == tf.constant(self.values, tf.string)[tf.newaxis], tf.int32)
        return tf.matmul(equal, tf.range(1, len(self.values) + 1)[:, tf.newaxis])

    def compute_output_shape(self, text_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """`[batch, 1]`."""
        return (text_shape[0], 1)


@keras.saving.register_keras_serializable(package="q2s_tf")
class TokenIds(_Preprocessing):
    """Tokenizes texts.

    The vocabulary is an asset: `model.save` writes it into the `.keras` file and loading reads it from there. A layer
    that is made from its config alone has no vocabulary.

    Args:
        kind: "unigram", a SentencePiece model that q2s_tf trained; "wordpiece", of BERT; or "sentencepiece", of XLM-R.
        lowercase: whether a WordPiece model is uncased.
        model: serialised SentencePiece model, or lines of a WordPiece vocabulary; None to load it later.
    """

    def __init__(self, kind: str, lowercase: bool = False, model: bytes | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if kind not in TOKENIZERS:
            raise ValueError(f"kind must be one of {', '.join(TOKENIZERS)}; got {kind!r}")
        self.kind = kind
        self.lowercase = lowercase
        self.tokenizer: Tokenizer | None = None
        if model is not None:
            self.set_model(model)

    def set_model(self, model: bytes) -> None:
        """Sets the vocabulary; `InputError` if it is not of the layer's kind."""
        self.tokenizer = WordPiece(model, self.lowercase) if self.kind == "wordpiece" else TOKENIZERS[self.kind](model)

    def call(self, text: Any, max_tokens: int) -> Any:
        """Tokenizes strings `[batch]`: int32 ids `[batch, L]` with L at most `max_tokens`, 0 is padding.

        Raises:
            ValueError: the layer has no vocabulary.
        """
        if self.tokenizer is None:
            raise ValueError(f"{self.name} has no vocabulary: load the model from a .keras file, or call set_model")
        return self.tokenizer.token_ids(text, max_tokens)

    def save_assets(self, path: str) -> None:
        """Writes the vocabulary into a folder."""
        if self.tokenizer is not None:
            Path(path, "tokenizer.model").write_bytes(self.tokenizer.model)

    def load_assets(self, path: str) -> None:
        """Reads the vocabulary from a folder."""
        file = Path(path, "tokenizer.model")
        if file.is_file():
            self.set_model(file.read_bytes())


@keras.saving.register_keras_serializable(package="q2s_tf")
class VectorSet(_Preprocessing):
    """Cuts a set of vectors and turns vectors with a number that is not finite into padding.

    Args:
        dimension: I, width of the vectors.
        max_vectors: number of vectors that are read.
    """

    def __init__(self, dimension: int, max_vectors: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.output_dtype = self.compute_dtype
        self.dimension = dimension
        self.max_vectors = max_vectors

    def call(self, vectors: Any) -> Any:
        """Cuts vectors `[batch, M, I]` to `[batch, min(M, max_vectors), I]`; zeros are padding."""
        vectors = tf.ensure_shape(vectors[:, : self.max_vectors], [None, None, self.dimension])
        finite = tf.reduce_all(tf.math.is_finite(vectors), axis=-1, keepdims=True)
        return tf.where(finite, vectors, 0.0)

    def compute_output_shape(self, vectors_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """`[batch, M, I]`."""
        return (vectors_shape[0], None, self.dimension)
