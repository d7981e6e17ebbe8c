"""From the raw inputs of a tower to one tensor a channel, as graph ops."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from q2s_tf.config import IMAGES, Config
from q2s_tf.text import PretrainedTokenizer, Tokenizer, decode, normalise, trigram_ids


class Preprocessor(tf.Module):
    """Normalises, tokenises, hashes and looks up; the same graph in `tf.data` and in the exported signatures.

    A channel whose input is missing ("" after normalisation, a value not in its list, no vectors) becomes a row of
    zeros, which is how the tower knows. A vector with a number that is not finite is taken for padding.

    Args:
        config: declares the channels.
        tower: "query" or "document".
        tokenizer: for the text channels.
        pretrained: tokenizers of the encoders that have their own, by encoder. They read a text as it is typed, since
            they normalise it themselves.
    """

    def __init__(
        self,
        config: Config,
        tower: str,
        tokenizer: Tokenizer,
        pretrained: Mapping[str, PretrainedTokenizer] | None = None,
    ):
        super().__init__(name=f"{tower}_preprocessor")
        self.channels = config.tower_channels(tower)
        self.inputs = config.tower_inputs(tower)
        self.tokenizer = tokenizer
        self.pretrained = dict(pretrained or {})

    def __call__(self, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Prepares a batch.

        Args:
            inputs: strings `[B]` by input name; `image_embeddings` float `[B, M, I]`. Others may be left out.

        Returns:
            By channel: int32 ids `[B, L]` (text, trigrams), `[B, 1]` (categorical), or float `[B, M, I]` (vectors).
        """
        texts = {
            channel.input: normalise(inputs[channel.input])
            for channel in self.channels.values()
            if channel.kind != "vectors"
        }
        return {name: self._prepare(channel, texts, inputs) for name, channel in self.channels.items()}

    def _prepare(self, channel: Any, texts: dict[str, tf.Tensor], inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        if channel.kind == "vectors":
            vectors = tf.ensure_shape(inputs[channel.input][:, : channel.max_vectors], [None, None, channel.dimension])
            finite = tf.reduce_all(tf.math.is_finite(vectors), axis=-1, keepdims=True)
            return tf.where(finite, vectors, 0.0)
        text = texts[channel.input]
        if channel.kind == "text":
            own = self.pretrained.get(channel.encoder)
            if own is None:
                return self.tokenizer.token_ids(text, channel.max_tokens)
            return own.token_ids(tf.where(text == "", "", decode(inputs[channel.input])), channel.max_tokens)
        if channel.kind == "trigrams":
            return trigram_ids(text, channel.buckets, channel.max_trigrams)
        hits = tf.cast(text[:, tf.newaxis] == tf.constant(channel.values, tf.string)[tf.newaxis], tf.int32)
        return tf.matmul(hits, tf.range(1, len(channel.values) + 1)[:, tf.newaxis])

    def signature(self) -> dict[str, tf.TensorSpec]:
        """The specs of the raw inputs: string `[B]`, and float `[B, M, I]` for image vectors."""
        dimensions = {c.input: c.dimension for c in self.channels.values() if c.kind == "vectors"}
        specs = {}
        for name in self.inputs:
            if name == IMAGES or name in dimensions:
                specs[name] = tf.TensorSpec([None, None, dimensions.get(name)], tf.float32, name=name)
            else:
                specs[name] = tf.TensorSpec([None], tf.string, name=name)
        return specs
