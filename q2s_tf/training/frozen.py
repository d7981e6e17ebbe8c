"""What frozen text encoders say of the texts of a training, computed once before it."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from q2s_tf.cli import track
from q2s_tf.models import Tower
from q2s_tf.training.store import ChannelReader, ChannelWriter

Encode = Callable[[tf.Tensor], tf.Tensor]
"""From token ids, int32 `[B, L]`, to what an encoder makes of them, `[B, H]`."""

TOGETHER = 8_192
"""Rows that are sorted by length, so that a batch of them has hardly any padding."""
BATCH = 256


def store_encoded(folder: Path, channel: str, encode: Encode) -> None:
    """Reads the prepared ids of a text channel, and stores what its encoder makes of each row.

    Args:
        folder: with the ids; the vectors `[1, H]` of a row go to `encoded_path`.
        channel: of a tower.
        encode: of this channel, see `frozen_encoders`.
    """
    reader = ChannelReader(folder / channel, np.int32)
    path = encoded_path(folder, channel)
    path.parent.mkdir(exist_ok=True)
    writer = ChannelWriter(path)
    for start in track(range(0, len(reader), TOGETHER), f"encoding {channel}"):
        rows = np.arange(start, min(len(reader), start + TOGETHER))
        order = np.argsort(reader.lengths(rows), kind="stable")
        batches = [rows[order[at : at + BATCH]] for at in range(0, len(rows), BATCH)]
        vectors = np.concatenate([encode(tf.constant(reader.rows(batch))).numpy() for batch in batches])
        writer.append(vectors[np.argsort(order)][:, np.newaxis])
    writer.close()


def frozen_encoders(tower: Tower) -> dict[str, Encode]:
    """The frozen text encoders of a tower, each as one graph, by channel."""
    side = tower.name.removesuffix("_tower")
    signature = [tf.TensorSpec([None, None], tf.int32)]

    def graph(encoder: keras.Layer) -> Encode:
        return tf.function(lambda ids: encoder(ids, training=False), input_signature=signature, autograph=False)

    channels = tower.config.text_channels(side)
    return {
        name: graph(tower.encoder.get_layer(f"{channels[name].encoder}_text_encoder"))
        for name in tower.config.frozen_channels(side)
    }


def encoded_path(folder: Path, channel: str) -> Path:
    """Where `store_encoded` leaves the vectors of a channel."""
    return folder / "encoded" / channel
