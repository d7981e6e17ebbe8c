"""The channel vectors of a tower, which go into its fusion. This is the only module that looks inside a tower."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from q2s_tf.models import Tower, order_by_length
from q2s_tf.tables import Table
from q2s_tf.text import normalise

CHUNK = 1_024
"""Rows that are fused at a time."""


@dataclass(frozen=True)
class ChannelVectors:
    """Inputs and outputs of the fusion (eq. 1) of one tower, for B rows and N channels.

    Attributes:
        names: the channels, in the order of the fusion.
        vectors: φ, float32 `[B, N, D]`; 0 where a channel is missing.
        present: bool `[B, N]`, False where a channel is missing.
        weights: w, of the unit vectors of the channels, float32 `[B, N]`.
        embedding: f / |f|, float32 `[B, D]`; 0 for a row without any channel.
        fusion: the fusion layer, to be applied to other vectors.
    """

    names: list[str]
    vectors: np.ndarray
    present: np.ndarray
    weights: np.ndarray
    embedding: np.ndarray
    fusion: Any

    def factors(self, row: int) -> np.ndarray:
        """aᵢ / |f| of one row, float64 `[N]`: the embedding is the sum of these times φᵢ (attention fusion only)."""
        vectors = self.vectors[row].astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=1)
        attention = np.divide(self.weights[row], lengths, out=np.zeros_like(lengths), where=lengths > 0)
        return attention / max(np.linalg.norm(attention @ vectors), 1e-6)

    def parts(self, row: int) -> np.ndarray:
        """The part of each channel in the embedding of one row, float64 `[N, D]`; the sum is the embedding."""
        return self.factors(row)[:, None] * self.vectors[row]


def channel_function(tower: Tower) -> Any:
    """A graph function from the raw inputs of a tower to its channel vectors and their mask."""
    return tf.function(
        lambda inputs: tower.encode_channels(tower.preprocessor(inputs), training=False),
        input_signature=[tower.signature()],
        autograph=False,
    )


def read_channels(tower: Tower, data: Any, function: Any = None, batch_size: int = 256) -> ChannelVectors:
    """Computes the channel vectors of rows, and their fusion.

    Args:
        tower: either tower.
        data: B rows, as `Tower.as_inputs` takes them; B is at least 1.
        function: `channel_function(tower)`, to call more than once; made here by default, which takes seconds.
        batch_size: rows of a batch; rows of similar length share a batch, which reduces padding.
    """
    forward = function or channel_function(tower)
    inputs = tower.as_inputs(data)
    order = order_by_length(inputs)
    batches = []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batches.append(forward({name: tf.gather(values, rows) for name, values in inputs.items()}))
    vectors, present = (np.concatenate(part)[np.argsort(order)] for part in zip(*batches, strict=True))
    vectors = vectors * present[..., None]
    embedding, weights = fuse(tower.fusion, vectors, present)
    return ChannelVectors(tower.channel_names, vectors, present, weights, embedding, tower.fusion)


def fuse(fusion: Any, vectors: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fuses the `present` `[B, N]` ones of channel vectors `[B, N, D]`.

    Returns:
        f / |f| `[B, D]` and the weights w `[B, N]`.
    """
    starts = range(0, len(vectors), CHUNK)
    parts = [fusion(tf.constant(vectors[at : at + CHUNK]), tf.constant(present[at : at + CHUNK])) for at in starts]
    fused, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
    return fused / np.maximum(np.linalg.norm(fused, axis=1, keepdims=True), 1e-6), weights


def trigram_vectors(tower: Tower, channel: str, text: str) -> tuple[list[str], np.ndarray]:
    """The 3-grams of a text, L, and their embeddings `[L, D]`, whose sum is the channel vector."""
    ids = tower.preprocessor(tower.as_inputs({tower.channels[channel].input: [text]}))[channel].numpy()[0]
    ids = ids[ids != 0]
    padded = f" {normalise(tf.constant(text)).numpy().decode()} "
    trigrams = [padded[start : start + 3] for start in range(len(padded) - 2)][: len(ids)]
    return trigrams, tower.channel_layers[channel](tf.constant(ids[:, None])).numpy()


def take_rows(table: Table, rows: Sequence[int] | np.ndarray) -> pa.Table:
    """Rows of a table by their numbers, in the given order. Only the table between the first and the last is read."""
    wanted = np.unique(rows)
    taken, start = [], int(wanted[0])
    for batch in table.batches(first=start):
        inside = wanted[(wanted >= start) & (wanted < start + len(batch))]
        taken.append(batch.take(pa.array(inside - start)))
        start += len(batch)
        if start > wanted[-1]:
            break
    return pa.Table.from_batches(taken).take(pa.array(np.searchsorted(wanted, rows)))
