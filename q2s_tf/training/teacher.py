"""The teacher of distillation: a larger query encoder, asked once for every query of the training."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from q2s_tf.config import Distillation
from q2s_tf.models import aligned_projection, build_text_encoder, load, pretrained_tokenizer
from q2s_tf.text import decode, normalise
from q2s_tf.training.pretrained import copy_weights, model_encoder, read_preset

Teacher = Callable[[Mapping[str, list[Any]]], np.ndarray]
"""From columns of `query` and `country` to vectors `[B, D]`, in the space of the channels of the towers to train; all
zeros for a query without text."""

MAX_TOKENS = 64
"""Of a query, for a preset."""

BATCH = 256


def read_teacher(settings: Distillation, dimension: int) -> Teacher | None:
    """The teacher that a config names, None without one.

    A preset's vectors go through the `aligned_projection`, with which the pretrained encoders of the towers start too,
    so that the query tower learns the space in which such a document tower begins. So do the embeddings of a run of
    another D.

    Args:
        settings: the teacher, and the pooling of a preset.
        dimension: D of the towers to train.

    Raises:
        InputError: neither a trained run nor a preset that can be read.
    """
    if settings.teacher is None:
        return None
    if (Path(settings.teacher) / "config.toml").is_file():
        tower = load(settings.teacher).query
        known = tower.preprocessor.inputs

        def embed(columns: Mapping[str, list[Any]]) -> np.ndarray:
            return tower.predict({name: columns[name] for name in known}, BATCH)["embedding"]

        return embed if tower.dimension == dimension else _projected(embed, tower.dimension, dimension)
    return _preset_teacher(settings.teacher, settings.pooling, dimension)


def _preset_teacher(name: str, pooling: str, dimension: int) -> Teacher:
    preset = read_preset(name)
    tokenizer = pretrained_tokenizer(preset.pretrained, preset.tokenizer)
    model = model_encoder(preset).model_copy(update={"pooling": pooling})
    longest = min(MAX_TOKENS, preset.backbone.max_sequence_length)
    encoder = build_text_encoder(model, tokenizer.vocabulary_size, longest, "teacher")
    encoder(tf.zeros([1, 2], tf.int32))
    copy_weights(preset.backbone, encoder, tokenizer.padding)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def encode(text: tf.Tensor) -> tf.Tensor:
        text = tf.where(normalise(text) == "", "", decode(text))
        vectors = encoder(tokenizer.token_ids(text, longest), training=False)
        return tf.where(text[:, tf.newaxis] == "", 0.0, vectors)

    def embed(columns: Mapping[str, list[Any]]) -> np.ndarray:
        texts = columns["query"]
        parts = [encode(tf.constant(texts[at : at + BATCH], tf.string)).numpy() for at in range(0, len(texts), BATCH)]
        return np.concatenate(parts)

    return _projected(embed, model.hidden_dim, dimension)


def _projected(embed: Teacher, width: int, dimension: int) -> Teacher:
    kernel = np.asarray(aligned_projection()((width, dimension)))
    return lambda columns: embed(columns) @ kernel
