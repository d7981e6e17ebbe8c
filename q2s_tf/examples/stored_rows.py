"""Preprocessed inputs on disk: written in batches, read by row number in any order, never all in memory."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from q2s_tf.cli import track
from q2s_tf.models import Tower
from q2s_tf.models.towers import precomputed_input

SORTED_ROWS = 8_192
"""Rows that are sorted by length at a time, so that batches have little padding."""
BATCH = 256


class RowWriter:
    """Appends rows of one input without their padding.

    Args:
        path: prefix of the two files (`.values` and `.lengths`).
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._values = path.with_name(f"{path.name}.values").open("wb")
        self._lengths = path.with_name(f"{path.name}.lengths").open("wb")

    def append(self, rows: np.ndarray) -> None:
        """Adds rows `[B, L]` or `[B, L, I]`; trailing zeros (zero vectors) of a row are padding."""
        used = rows != 0 if rows.ndim == 2 else (rows != 0).any(axis=-1)
        positions = np.arange(1, rows.shape[1] + 1)
        lengths = (used * positions).max(axis=1, initial=0)
        self._values.write(rows[positions <= lengths[:, None]].tobytes())
        self._lengths.write(lengths.astype(np.int64).tobytes())

    def close(self) -> None:
        """Closes the files."""
        self._values.close()
        self._lengths.close()


def padded(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, fill: int = 0) -> np.ndarray:
    """Rows of values of different lengths, one after another in `values`, as `[B, L, ...]`, L at least 1."""
    positions = np.arange(max(1, lengths.max(initial=0)))
    used = positions < lengths[:, None]
    rows = np.full((*used.shape, *values.shape[1:]), fill, values.dtype)
    rows[used] = values[(starts[:, None] + positions)[used]]
    return rows


class RowReader:
    """Reads rows that a `RowWriter` wrote.

    Args:
        path: the prefix of the files.
        dtype: of the values.
        dimension: I for vectors, None for ids.
    """

    def __init__(self, path: Path, dtype: type, dimension: int | None = None):
        lengths = np.fromfile(path.with_name(f"{path.name}.lengths"), np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])
        file = path.with_name(f"{path.name}.values")
        flat = np.memmap(file, dtype, mode="r") if file.stat().st_size else np.zeros(0, dtype)
        self._values = flat if dimension is None else flat.reshape(-1, dimension)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Number of ids, or of vectors, of rows."""
        return self._offsets[rows + 1] - self._offsets[rows]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows by number, padded with zeros to the longest: `[B, L]` or `[B, L, I]`, L at least 1."""
        return padded(self._values, self._offsets[rows], self.lengths(rows))


class TowerRows:
    """The preprocessed inputs of rows of one tower, for `Tower.encode_channels`."""

    def __init__(self, folder: Path, tower: Tower):
        self._channels = {
            name: RowReader(folder / name, np.float32, channel.dimension)
            if channel.kind == "vectors"
            else RowReader(folder / name, np.int32)
            for name, channel in tower.channels.items()
        }
        self._precomputed = {
            precomputed_input(name): RowReader(folder / precomputed_input(name), np.float32, encoder.hidden_dim)
            for name, encoder in fixed_encoders(tower).items()
        }

    def __len__(self) -> int:
        return len(next(iter(self._channels.values())))

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Total number of ids and vectors of rows."""
        return np.sum([reader.lengths(rows) for reader in self._channels.values()], axis=0)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Inputs of `Tower.encode_channels` for rows by number."""
        precomputed = {name: reader.read(rows)[:, 0] for name, reader in self._precomputed.items()}
        return {name: reader.read(rows) for name, reader in self._channels.items()} | precomputed


def fixed_encoders(tower: Tower) -> dict[str, keras.Layer]:
    """The text encoders of a tower that are not trained, by channel. Their outputs are computed once."""
    channels = tower.config.text_channels(tower.side)
    encoders = {name: tower.text_encoders[channel.encoder] for name, channel in channels.items()}
    return {name: encoder for name, encoder in encoders.items() if not encoder.trainable}


def store_rows(folder: Path, tower: Tower, batches: tf.data.Dataset) -> TowerRows:
    """Preprocesses raw inputs and stores them by channel.

    Args:
        folder: where the files go.
        tower: its preprocessor is applied in `tf.data`.
        batches: raw inputs, in the order of the rows.
    """
    writers = {name: RowWriter(folder / name) for name in tower.channel_names}
    for inputs in batches.map(tower.preprocessor).prefetch(2).as_numpy_iterator():
        for name, writer in writers.items():
            writer.append(inputs[name])
    for writer in writers.values():
        writer.close()
    for name, encoder in fixed_encoders(tower).items():
        _store_precomputed(folder, name, encoder)
    return TowerRows(folder, tower)


def _store_precomputed(folder: Path, channel: str, encoder: keras.Layer) -> None:
    """Computes the outputs of a text encoder for the stored ids of a channel, one vector `[1, H]` a row."""
    signature = [tf.TensorSpec([None, None], tf.int32)]
    encode = tf.function(lambda ids: encoder(ids, training=False), input_signature=signature, autograph=False)
    reader, writer = RowReader(folder / channel, np.int32), RowWriter(folder / precomputed_input(channel))
    for start in track(range(0, len(reader), SORTED_ROWS), f"encoding {channel}"):
        rows = np.arange(start, min(len(reader), start + SORTED_ROWS))
        order = np.argsort(reader.lengths(rows), kind="stable")
        batches = [rows[order[first : first + BATCH]] for first in range(0, len(rows), BATCH)]
        vectors = np.concatenate([encode(tf.constant(reader.read(batch))).numpy() for batch in batches])
        writer.append(vectors[np.argsort(order)][:, np.newaxis].astype(np.float32))
    writer.close()
