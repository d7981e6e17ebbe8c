"""What frozen text encoders say of the texts of a training, computed once before it."""

from pathlib import Path

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
    declared = tower.config.text_channels(tower.name.removesuffix("_tower"))[channel]
    encoder = tower.encoder.get_layer(f"{declared.encoder}_text_encoder")
    encode = tf.function(
        lambda ids: encoder(ids, training=False),
        input_signature=[tf.TensorSpec([None, None], tf.int32)],
        autograph=False,
    )
    reader = ChannelReader(folder / channel, np.int32)
    path = encoded_path(folder, channel)
    path.parent.mkdir(exist_ok=True)
    writer = ChannelWriter(path)
    for start in track(range(0, len(reader), TOGETHER), f"encoding {channel}"):
        rows = np.arange(start, min(len(reader), start + TOGETHER))
        rows = rows[np.argsort(reader.lengths(rows), kind="stable")]
        vectors = np.empty((len(rows), 1, encoder.geometry["hidden_dim"]), np.float32)
        for at in range(0, len(rows), BATCH):
            chosen = rows[at : at + BATCH]
            vectors[chosen - start, 0] = encode(tf.constant(reader.rows(chosen))).numpy()
        writer.append(vectors)
    writer.close()


def encoded_path(folder: Path, channel: str) -> Path:
    """Where `store_encoded` leaves the vectors of a channel."""
    return folder / "encoded" / channel
