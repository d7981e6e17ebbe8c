"""Distillation: the query tower's text channels are trained towards the query embeddings of a teacher."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from q2s_tf.cli import console
from q2s_tf.config import Distillation
from q2s_tf.errors import InputError
from q2s_tf.layers import TokenIds
from q2s_tf.losses import cosine_distillation
from q2s_tf.models import Tower, aligned_projection, build_text_encoder, copy_weights, encode, load, read_preset
from q2s_tf.text import decode, normalise
from q2s_tf.training.callbacks import EpochProgress, StopOnInfiniteLoss
from q2s_tf.training.examples import Examples
from q2s_tf.training.optimizer import LazyAdam, decaying_rate
from q2s_tf.training.workers import Workers

Teacher = Callable[[Mapping[str, list[Any]]], np.ndarray]
"""From columns `query` and `country` to vectors `[B, D]` in the space of the channel vectors; zeros without text."""

MAX_TOKENS = 64
"""Longest query of a preset."""

BATCH = 256
"""Batch size for teacher inference."""


def read_teacher(settings: Distillation, dimension: int) -> Teacher | None:
    """The teacher of a config, or None.

    The vectors of a preset are projected by `aligned_projection`, which is also the initial projection of pretrained
    encoders: the query tower then learns the space in which such a document tower starts. Embeddings of a run with
    another D are projected as well.

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

        def embed(columns: Mapping[str, list[Any]]) -> np.ndarray:
            return encode(tower, columns, BATCH)["embedding"]

        return embed if tower.config.dimension == dimension else _projected(embed, tower.config.dimension, dimension)
    return _preset_teacher(settings.teacher, settings.pooling, dimension)


def _preset_teacher(name: str, pooling: str, dimension: int) -> Teacher:
    preset = read_preset(name)
    tokens = TokenIds(preset.pretrained.tokenizer, preset.pretrained.lowercase, preset.tokenizer)
    settings = preset.encoder.model_copy(update={"pooling": pooling})
    max_tokens = min(MAX_TOKENS, preset.backbone.max_sequence_length)
    if tokens.tokenizer is None:
        raise InputError(f"preset {name}: it has no tokenizer")
    encoder = build_text_encoder(settings, tokens.tokenizer.vocabulary_size, max_tokens, dtype="float32")
    encoder.build((None, None))
    copy_weights(preset.backbone, encoder, tokens.tokenizer.padding)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def embed_texts(text: tf.Tensor) -> tf.Tensor:
        text = tf.where(normalise(text) == "", "", decode(text))
        vectors = encoder(tokens(text, max_tokens=max_tokens), training=False)
        return tf.where(text[:, tf.newaxis] == "", 0.0, vectors)

    def embed(columns: Mapping[str, list[Any]]) -> np.ndarray:
        texts = columns["query"]
        parts = [embed_texts(tf.constant(texts[at : at + BATCH])).numpy() for at in range(0, len(texts), BATCH)]
        return np.concatenate(parts)

    return _projected(embed, settings.hidden_dim, dimension)


def _projected(embed: Teacher, width: int, dimension: int) -> Teacher:
    kernel = np.asarray(aligned_projection()((width, dimension)))
    return lambda columns: embed(columns) @ kernel


def distil(tower: Tower, examples: Examples, workers: Workers) -> float:
    """Trains the text channels of a query tower on every distinct query, before stage 1.

        loss = mean of 1 − cos(q with its text channels only, teacher)

    A small encoder needs many more steps for this than the stages have. Nothing else is trained.

    Args:
        tower: the query tower, trained in place.
        examples: with teacher embeddings.
        workers: the processes of the training.

    Returns:
        The mean loss of the last epoch.
    """
    config, settings = tower.config, tower.config.distillation
    with workers.strategy.scope():
        student = text_student(tower)
        dataset = examples.distillation_dataset(config.stage1.batch_size, (config.seed, 0))
        dataset = dataset.map(lambda inputs, teacher: ({name: inputs[name] for name in student.input}, teacher))
        steps = len(dataset)
        rate = decaying_rate(settings.learning_rate, steps // 4, steps * settings.epochs)
        student.compile(
            LazyAdam(rate, clip_norm=config.clip_norm),
            loss=lambda teacher, vectors: cosine_distillation(vectors, teacher, reduction="none"),
            jit_compile=False,
        )
    history = keras.callbacks.History()
    progress = EpochProgress("distillation", settings.epochs)
    workers.fit(student, dataset, settings.epochs, [progress, StopOnInfiniteLoss("distillation"), history])
    loss = history.history["loss"][-1]
    console.print(f"distillation done: mean cosine {1 - loss:.3f} after {settings.epochs} epochs")
    return loss


def text_student(tower: Tower) -> keras.Model:
    """A model of the text channels of a tower: from their ids to the unit mean of their vectors, `[batch, D]`.

    It shares its weights with the tower.
    """
    inputs, vectors = {}, []
    for name, channel in tower.config.text_channels(tower.side).items():
        inputs[name] = keras.Input((None,), dtype="int32", name=name)
        present = ops.cast(ops.any(inputs[name] != 0, axis=1, keepdims=True), "float32")
        vector = tower.channel_layers[name](tower.text_encoders[channel.encoder](inputs[name]))
        vectors.append(present * ops.cast(vector, "float32"))
    return keras.Model(inputs, tower.normalization(ops.sum(ops.stack(vectors), axis=0)), name="text_student")
