"""Embeddings of stored rows with the current weights of a tower in training."""

import numpy as np
import tensorflow as tf

from q2s_tf.examples.batches import batch_signature
from q2s_tf.examples.stored_rows import TowerRows
from q2s_tf.models import Tower

BATCH = 256


class StoredEmbeddings:
    """Embeds rows in batches of similar length.

    Args:
        tower: the tower.
        rows: its stored inputs.
        numbers: the R rows to embed; all by default.
    """

    def __init__(self, tower: Tower, rows: TowerRows, numbers: np.ndarray | None = None):
        numbers = np.arange(len(rows)) if numbers is None else numbers
        order = np.argsort(rows.lengths(numbers), kind="stable")
        self._rows, self._numbers, self._inverse = rows, numbers[order], np.argsort(order)
        self._embed = tf.function(
            lambda inputs: tower.fuse(*tower.encode_channels(inputs, training=False))[0],
            input_signature=[batch_signature(rows.read(numbers[:1]))],
            autograph=False,
        )

    def __call__(self) -> np.ndarray:
        """The embeddings with the current weights, float32 `[R, D]`."""
        batches = np.split(self._numbers, range(BATCH, len(self._numbers), BATCH))
        return np.concatenate([self._embed(self._rows.read(batch)).numpy() for batch in batches])[self._inverse]
