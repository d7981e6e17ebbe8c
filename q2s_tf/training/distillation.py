"""Distillation: the query tower's text channels are trained towards the query embeddings of a teacher."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from q2s_tf.cli import console
from q2s_tf.config import Distillation
from q2s_tf.examples.batches import Examples
from q2s_tf.examples.prepare import Teacher
from q2s_tf.losses import cosine_distillation
from q2s_tf.models import Tower, aligned_projection, encode, load, preset_towers
from q2s_tf.training.callbacks import StepProgress
from q2s_tf.training.optimizer import LazyAdam, decaying_rate
from q2s_tf.training.workers import Workers


def read_teacher(settings: Distillation, dimension: int) -> Teacher | None:
    """The teacher of a config, or None: the query tower of a run, or a query tower that has only the text of a preset.

    The vectors of a preset are projected by `aligned_projection`, the initial projection of pretrained encoders: the
    query tower then learns the space in which such a document tower starts. So are embeddings of a run with another D.

    Args:
        settings: the teacher, and the pooling of a preset.
        dimension: D of the towers to train.

    Raises:
        InputError: neither a trained run nor a preset that can be read.
    """
    if settings.teacher is None:
        return None
    is_run = (Path(settings.teacher) / "config.toml").is_file()
    towers = load(settings.teacher) if is_run else preset_towers(settings.teacher, settings.pooling, dimension)
    tower = towers.query
    width = tower.config.dimension
    kernel = None if width == dimension else np.asarray(aligned_projection()((width, dimension)))

    def embed(columns: Mapping[str, list[Any]]) -> np.ndarray:
        vectors = encode(tower, columns)["embedding"]
        return vectors if kernel is None else vectors @ kernel

    return embed


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
    workers.fit(student, dataset, settings.epochs, [StepProgress("distillation", settings.epochs), history])
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
