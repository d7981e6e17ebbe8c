"""Embeddings of stored rows with the current weights of a tower in training."""

import zlib

import numpy as np
import tensorflow as tf

from q2s_tf.examples.batches import batch_signature
from q2s_tf.examples.stored_rows import TowerRows
from q2s_tf.models import Tower
from q2s_tf.models.plain_data import BATCH_SIZE


class StoredEmbeddings:
    """Embeds rows in batches of similar length, once as long as the weights of the tower do not change.

    Args:
        tower: the tower.
        rows: its stored inputs.
        numbers: the R rows to embed; all by default.

    Attributes:
        numbers: the rows.
    """

    def __init__(self, tower: Tower, rows: TowerRows, numbers: np.ndarray | None = None):
        self.numbers = numbers = np.arange(len(rows)) if numbers is None else numbers
        order = np.argsort(rows.lengths(numbers), kind="stable")
        self._tower, self._rows, self._sorted, self._inverse = tower, rows, numbers[order], np.argsort(order)
        self._embeddings: tuple[int, np.ndarray] | None = None  # and the checksum of the weights that gave them
        self._embed = tf.function(
            lambda inputs: tower.fuse(*tower.encode_channels(inputs, training=False))[0],
            input_signature=[batch_signature(rows.read(numbers[:1]))],
            autograph=False,
        )

    def __call__(self) -> np.ndarray:
        """The embeddings with the current weights, float32 `[R, D]`."""
        checksum = 0
        for weight in self._tower.weights:
            checksum = zlib.crc32(weight.numpy().tobytes(), checksum)
        if self._embeddings is None or self._embeddings[0] != checksum:
            batches = np.split(self._sorted, range(BATCH_SIZE, len(self._sorted), BATCH_SIZE))
            embeddings = [self._embed(self._rows.read(batch)).numpy() for batch in batches]
            self._embeddings = checksum, np.concatenate(embeddings)[self._inverse]
        return self._embeddings[1]
