"""A tower seen from inside: the channel vectors that go into its fusion, and the fusion run again on altered ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from q2s_tf.models import Tower, split_encoder
from q2s_tf.models.embedding import order_by_length
from q2s_tf.models.towers import Column
from q2s_tf.tables import Table

CHUNK = 1_024
"""Rows that are fused at a time."""


@dataclass(frozen=True)
class ChannelVectors:
    """What the fusion of one tower (eq. 1) takes and gives, for B rows and N channels.

    Attributes:
        names: the channels, in the order of the fusion.
        vectors: φ, float32 `[B, N, D]`; 0 where a channel is missing.
        present: bool `[B, N]`, False where a channel is missing.
        weights: a, float32 `[B, N]`.
        embedding: f / |f|, float32 `[B, D]`; 0 for a row without any channel.
        fusion: the layer, to run it again.
    """

    names: list[str]
    vectors: np.ndarray
    present: np.ndarray
    weights: np.ndarray
    embedding: np.ndarray
    fusion: Any

    def fused_length(self) -> np.ndarray:
        """|f| of each row, float32 `[B]`."""
        return np.linalg.norm(np.einsum("bn,bnd->bd", self.weights, self.vectors), axis=1)


def read_channels(tower: Tower, columns: Mapping[str, Column], batch_size: int = 256) -> ChannelVectors:
    """Runs a tower up to and through its fusion.

    Args:
        tower: either tower.
        columns: a column of B values by input name, as `Tower.predict` takes them; B is at least 1.
        batch_size: rows at a time; those of like length go together, so that little padding is paid for.
    """
    fusion, parts = tower.encoder.get_layer("fusion"), split_encoder(tower.encoder)
    forward = tf.function(
        lambda inputs: parts.channels(tower.preprocessor(inputs), training=False),
        input_signature=[tower.preprocessor.signature()],
        autograph=False,
    )
    order = order_by_length(tower, columns)
    batches = []
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batches.append(
            forward(tower.tensors({name: [column[at] for at in places] for name, column in columns.items()}))
        )
    back = np.argsort(order)
    there = np.concatenate([present.numpy() for _, present in batches])[back]
    stacked = np.concatenate([vectors.numpy() for vectors, _ in batches])[back] * there[..., None]
    embedding, weights = fuse(fusion, stacked, there)
    return ChannelVectors(tower.channels, stacked, there, weights, embedding, fusion)


def fuse(fusion: Any, vectors: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fuses channel vectors `[B, N, D]`, of which those count that are `present` `[B, N]`.

    Returns:
        f / |f| `[B, D]` and the weights a `[B, N]`.
    """
    parts = []
    for start in range(0, len(vectors), CHUNK):
        rows = slice(start, start + CHUNK)
        parts.append(fusion(tf.constant(vectors[rows]), tf.constant(present[rows])))
    fused, weights = (np.concatenate([np.asarray(part[place]) for part in parts]) for place in (0, 1))
    return fused / np.maximum(np.linalg.norm(fused, axis=1, keepdims=True), 1e-6), weights


def take_rows(table: Table, places: Sequence[int] | np.ndarray) -> pa.Table:
    """Rows of a table by their places, in the order of `places`; the table is streamed."""
    wanted, found, start = np.unique(places), [], 0
    for batch in table.batches():
        here = wanted[(wanted >= start) & (wanted < start + len(batch))]
        found.append(batch.take(pa.array(here - start)))
        start += len(batch)
    return pa.Table.from_batches(found).take(pa.array(np.searchsorted(wanted, places)))
