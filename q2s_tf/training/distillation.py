"""Distillation: the query tower is trained towards the query embeddings of a teacher."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow.compute as pc
import tensorflow as tf
from keras import ops

from q2s_tf.cli import console
from q2s_tf.config import Distillation
from q2s_tf.errors import InputError
from q2s_tf.examples.prepare import Teacher
from q2s_tf.files import table_format
from q2s_tf.layers import aligned_projection
from q2s_tf.losses import cosine_distillation
from q2s_tf.models import Tower, encode, load, preset_towers
from q2s_tf.tables import Table
from q2s_tf.text import normalise
from q2s_tf.training.callbacks import StepProgress
from q2s_tf.training.optimizer import LazyAdam, decaying_rate
from q2s_tf.training.workers import Workers


def read_teacher(settings: Distillation, dimension: int, width: int | None = None) -> Teacher | None:
    """The teacher of a config, or None: a run, a preset, whose only channel is the text, or a table of embeddings.

    The vectors of a preset or of a table are projected by `aligned_projection`, the initial projection of pretrained
    encoders and of given vectors: the query tower then learns the space in which such a document tower starts. So are
    embeddings of a run with another D.

    Args:
        settings: the teacher, and the pooling of a preset.
        dimension: D of the towers to train.
        width: width of the embeddings of a table; that of the first one by default.

    Raises:
        InputError: neither a trained run, nor a table, nor a preset that can be read.
    """
    if settings.teacher is None:
        return None
    path = Path(settings.teacher)
    if path.is_file() or table_format(path):
        return _table_teacher(path, dimension, width)
    is_run = (path / "config.toml").is_file()
    tower = load(path).query if is_run else preset_towers(settings.teacher, settings.pooling, dimension).query
    return tower_teacher(tower, dimension)


def tower_teacher(tower: Tower, dimension: int) -> Teacher:
    """A query tower as the teacher of a tower of another dimension D, or of the same one."""
    width = tower.config.dimension
    kernel = None if width == dimension else np.asarray(aligned_projection()((width, dimension)))

    def embed(columns: Mapping[str, list[Any]]) -> np.ndarray:
        vectors = encode(tower, columns)["embedding"]
        return vectors if kernel is None else vectors @ kernel

    return embed


def _table_teacher(path: Path, dimension: int, width: int | None) -> Teacher:
    """The projected embeddings of a table by normalised query. Of equal queries the first one counts."""
    data = Table(path, "teacher", ["query", "embedding"], vectors={"embedding": width}).read().drop_null()
    texts, embeddings = data["query"].to_pylist(), data["embedding"].combine_chunks()
    counts, widths = (pc.list_value_length(lists).to_numpy() for lists in (embeddings, embeddings.flatten()))
    bad = np.append(np.flatnonzero(counts != 1), np.flatnonzero(widths != widths[:1]))
    if not texts or len(bad):
        query = f"query {texts[bad[0]]!r}: " if texts else ""
        raise InputError(f"teacher {path}: {query}needs one embedding, as wide as that of the first query")
    vectors = embeddings.flatten().flatten().to_numpy().reshape(len(texts), -1)
    projected = vectors @ np.asarray(aligned_projection()((vectors.shape[1], dimension)))
    projected = np.append(projected, np.zeros((1, dimension), np.float32), axis=0)  # at −1, of other queries
    normal = normalise(tf.constant(texts)).numpy()
    rows = dict(zip(reversed(normal), reversed(range(len(normal))), strict=True))

    def embed(columns: Mapping[str, list[Any]]) -> np.ndarray:
        queries = normalise(tf.constant([query or "" for query in columns["query"]])).numpy()
        return projected[[rows.get(query, -1) for query in queries]]

    return embed


def distil(
    tower: Tower, dataset: tf.data.Dataset, workers: Workers, callbacks: Sequence[keras.callbacks.Callback] = ()
) -> None:
    """Trains a query tower on queries and their teacher embeddings, without documents.

        loss = mean of 1 − cos(q, teacher), with q of the channels in `distillation.channels`

    A small encoder needs many more steps for this than the stages have. Nothing else is trained.

    Args:
        tower: the query tower, trained in place.
        dataset: `Examples.distillation_dataset`.
        workers: the processes of the training.
        callbacks: of the fit.
    """
    config, settings = tower.config, tower.config.distillation
    with workers.strategy.scope():
        student = query_student(tower)
        rate = decaying_rate(settings.learning_rate, len(dataset) // 4, len(dataset) * settings.epochs)
        student.compile(
            LazyAdam(rate, clip_norm=config.clip_norm),
            loss=lambda teacher, vectors: cosine_distillation(vectors, teacher, reduction="none"),
            jit_compile=False,
        )
    history = keras.callbacks.History()
    callbacks = [StepProgress("distillation", settings.epochs), *callbacks, history]
    workers.fit(student, dataset, settings.epochs, callbacks)
    cosine = 1 - history.history["loss"][-1]
    console.print(f"distillation done: mean cosine {cosine:.3f} after {settings.epochs} epochs")


def query_student(tower: Tower) -> keras.Model:
    """A query tower as a model of preprocessed inputs, whose embedding `[batch, D]` is of `distillation.channels` only.

    It shares its weights with the tower. The other channels are masked, so that their gradients are 0.
    """
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in tower.channels}
    vectors, mask = tower.encode_channels(inputs)
    distilled = [name in tower.config.distilled_channels() for name in tower.channels]
    return keras.Model(inputs, tower.fuse(vectors, ops.logical_and(mask, distilled))[0], name="query_student")
