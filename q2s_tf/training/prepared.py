"""Rows that are embedded again and again while their tower learns."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from q2s_tf.models import Column, Tower, encoded_input, order_by_length, split_encoder
from q2s_tf.training.frozen import BATCH, frozen_encoders


class PreparedRows:
    """Rows of one tower with everything done that training does not change: tokens, 3-grams, frozen text encoders.

    Args:
        tower: whose weights are read anew by every `embed`.
        columns: raw inputs, as `Tower.predict` takes them; those that the tower does not have are left out.
    """

    def __init__(self, tower: Tower, columns: Mapping[str, Column]):
        columns = {name: column for name, column in columns.items() if name in tower.preprocessor.inputs}
        frozen = frozen_encoders(tower)
        parts = split_encoder(tower.encoder, frozen)
        order = order_by_length(tower, columns)  # so that little padding is paid for
        self._back = np.argsort(order)
        self._batches = []
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            raw = tower.tensors({name: [column[row] for row in chosen] for name, column in columns.items()})
            inputs = tower.preprocessor(raw)
            encoded = {encoded_input(name): encode(inputs[name]) for name, encode in frozen.items()}
            self._batches.append({**inputs, **encoded})
        self._forward = tf.function(
            lambda inputs: parts.fuse(*parts.channels(inputs, training=False))[0],
            autograph=False,
            reduce_retracing=True,
        )

    def embed(self) -> np.ndarray:
        """What the tower makes of the rows as it is now, float32 `[B, D]`."""
        return np.concatenate([self._forward(inputs).numpy() for inputs in self._batches])[self._back]
