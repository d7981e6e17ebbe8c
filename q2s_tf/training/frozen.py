"""What frozen text encoders say of the texts of a training, computed once before it."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from q2s_tf.cli import track
from q2s_tf.towers import Tower
from q2s_tf.training.store import ChannelReader, ChannelWriter

TOGETHER = 8_192
"""Rows that are sorted by length, so that a batch of them has hardly any padding."""
BATCH = 256


def store_encoded(folder: Path, tower: Tower, channel: str) -> None:
    """Reads the prepared ids of a text channel, and stores what its encoder makes of each row.

    Args:
        folder: with the ids; the vectors `[1, H]` of a row go to `encoded_path`.
        tower: whose encoder is asked.
        channel: of the tower.
    """
    encode = frozen_encoders(tower)[channel]
    reader = ChannelReader(folder / channel, np.int32)
    path = encoded_path(folder, channel)
    path.parent.mkdir(exist_ok=True)
    writer, width = ChannelWriter(path), tower.encoder.get_layer(f"{channel}_vector").input.shape[-1]
    for start in track(range(0, len(reader), TOGETHER), f"encoding {channel}"):
        rows = np.arange(start, min(len(reader), start + TOGETHER))
        rows = rows[np.argsort(reader.lengths(rows), kind="stable")]
        vectors = np.empty((len(rows), 1, width), np.float32)
        for at in range(0, len(rows), BATCH):
            chosen = rows[at : at + BATCH]
            vectors[chosen - start, 0] = encode(tf.constant(reader.rows(chosen))).numpy()
        writer.append(vectors)
    writer.close()


def frozen_encoders(tower: Tower) -> dict[str, Callable[[tf.Tensor], tf.Tensor]]:
    """By frozen text channel: from its token ids, int32 `[B, L]`, to what its encoder makes of them, `[B, H]`."""
    side = tower.name.removesuffix("_tower")
    signature = [tf.TensorSpec([None, None], tf.int32)]

    def graph(encoder: keras.Layer) -> Callable[[tf.Tensor], tf.Tensor]:
        return tf.function(lambda ids: encoder(ids, training=False), input_signature=signature, autograph=False)

    channels = tower.config.text_channels(side)
    return {
        name: graph(tower.encoder.get_layer(f"{channels[name].encoder}_text_encoder"))
        for name in tower.config.frozen_channels(side)
    }


def encoded_path(folder: Path, channel: str) -> Path:
    """Where `store_encoded` leaves the vectors of a channel."""
    return folder / "encoded" / channel
