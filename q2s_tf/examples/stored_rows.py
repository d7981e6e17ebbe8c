"""Preprocessed inputs on disk: written in batches, read by row number in any order, never all in memory.

Rows are cut into shards of consecutive rows. Worker w of W writes the shards w, w + W, … one after another, each input
into a file of its own. All workers then read the files of all of them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import tensorflow as tf

from q2s_tf.cli import track
from q2s_tf.models import Tower
from q2s_tf.models.towers import precomputed_input

SHARD_ROWS = 8_192
"""Rows of a shard. A text encoder that is not trained reads the rows of a shard sorted by length, so that batches have
little padding, and its outputs do not depend on the number of workers."""
BATCH = 256


def shard_parts(
    batch: pa.RecordBatch, first: int, worker: int, num_workers: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The parts of a batch that are in shards of a worker, each with the number of its first row.

    Args:
        batch: rows that follow one another.
        first: the number of its first row.
        worker: index of the worker.
        num_workers: W.
    """
    start = 0
    while start < len(batch):
        shard = (first + start) // SHARD_ROWS
        stop = min(len(batch), (shard + 1) * SHARD_ROWS - first)
        if shard % num_workers == worker:
            yield first + start, batch.slice(start, stop - start)
        start = stop


class RowWriter:
    """Appends rows of one input without their padding.

    Args:
        path: prefix of the two files (`.values` and `.offsets`).
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._values = path.with_name(f"{path.name}.values").open("wb")
        self._offsets = path.with_name(f"{path.name}.offsets").open("wb")
        self._end = np.zeros(1, np.int64)
        self._offsets.write(self._end.tobytes())

    def append(self, rows: np.ndarray) -> None:
        """Adds rows `[B, L]` or `[B, L, I]`; trailing zeros (zero vectors) of a row are padding."""
        used = rows != 0 if rows.ndim == 2 else (rows != 0).any(axis=-1)
        positions = np.arange(1, rows.shape[1] + 1)
        lengths = (used * positions).max(axis=1, initial=0)
        self._values.write(rows[positions <= lengths[:, None]].tobytes())
        ends = self._end + np.cumsum(lengths, dtype=np.int64)
        self._offsets.write(ends.tobytes())
        self._end = ends[-1:] if len(ends) else self._end

    def close(self) -> None:
        """Closes the files."""
        self._values.close()
        self._offsets.close()


def padded(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, fill: int = 0) -> np.ndarray:
    """Rows of values of different lengths, one after another in `values`, as `[B, L, ...]`, L at least 1."""
    positions = np.arange(max(1, lengths.max(initial=0)))
    used = positions < lengths[:, None]
    rows = np.full((*used.shape, *values.shape[1:]), fill, values.dtype)
    rows[used] = values[(starts[:, None] + positions)[used]]
    return rows


class RowReader:
    """Reads the rows of one input that a `RowWriter` of each worker wrote, by their number among all rows.

    Args:
        paths: the prefix of the files of each worker.
        dtype: of the values.
        dimension: I for vectors, None for ids.
    """

    def __init__(self, paths: Sequence[Path], dtype: type, dimension: int | None = None):
        self._files = []
        for path in paths:
            offsets = np.memmap(path.with_name(f"{path.name}.offsets"), np.int64, mode="r")
            file = path.with_name(f"{path.name}.values")
            flat = np.memmap(file, dtype, mode="r") if file.stat().st_size else np.zeros(0, dtype)
            values = flat if dimension is None else flat.reshape(-1, dimension)
            self._files.append((np.asarray(offsets), np.asarray(values)))  # plain arrays are indexed faster

    def __len__(self) -> int:
        return sum(len(offsets) - 1 for offsets, _ in self._files)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Number of ids, or of vectors, of rows."""
        lengths = np.empty(len(rows), np.int64)
        for positions, own, offsets, _ in self._split(rows):
            lengths[positions] = offsets[own + 1] - offsets[own]
        return lengths

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows by number, padded with zeros to the longest: `[B, L]` or `[B, L, I]`, L at least 1."""
        parts = [
            (positions, padded(values, offsets[own], offsets[own + 1] - offsets[own]))
            for positions, own, offsets, values in self._split(rows)
        ]
        if len(parts) == 1:
            return parts[0][1]
        longest = max(part.shape[1] for _, part in parts)
        read = np.zeros((len(rows), longest, *parts[0][1].shape[2:]), parts[0][1].dtype)
        for positions, part in parts:
            read[positions, : part.shape[1]] = part
        return read

    def _split(self, rows: np.ndarray) -> Iterator[tuple[Any, np.ndarray, np.ndarray, np.ndarray]]:
        """For each worker the positions of its rows in `rows`, their numbers in its files, its offsets and values."""
        if len(self._files) == 1:
            yield slice(None), rows, *self._files[0]
            return
        shards, numbers = np.divmod(rows, SHARD_ROWS)
        turns, workers = np.divmod(shards, len(self._files))
        numbers = turns * SHARD_ROWS + numbers
        for worker, (offsets, values) in enumerate(self._files):
            positions = np.flatnonzero(workers == worker)
            yield positions, numbers[positions], offsets, values


class TowerRows:
    """The preprocessed inputs of rows of one tower, for `Tower.encode_channels`.

    Args:
        folders: the folder of each worker's files.
        tower: the tower.
    """

    def __init__(self, folders: Sequence[Path], tower: Tower):
        def reader(name: str, dtype: type, dimension: int | None = None) -> RowReader:
            return RowReader([folder / name for folder in folders], dtype, dimension)

        self._channels = {
            name: reader(name, np.float32, channel.dimension) if channel.kind == "vectors" else reader(name, np.int32)
            for name, channel in tower.channels.items()
        }
        self._precomputed = {
            precomputed_input(name): reader(precomputed_input(name), np.float32, encoder.hidden_dim)
            for name, encoder in fixed_encoders(tower).items()
        }

    def __len__(self) -> int:
        return len(next(iter(self._channels.values())))

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Total number of ids and vectors of rows."""
        return sum((reader.lengths(rows) for reader in self._channels.values()), np.zeros(len(rows), np.int64))

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

    Returns:
        The rows of this folder.
    """
    writers = {name: RowWriter(folder / name) for name in tower.channel_names}
    for inputs in batches.map(tower.preprocessor, tf.data.AUTOTUNE, deterministic=True).prefetch(2).as_numpy_iterator():
        for name, writer in writers.items():
            writer.append(inputs[name])
    for writer in writers.values():
        writer.close()
    for name, encoder in fixed_encoders(tower).items():
        _store_precomputed(folder, name, encoder)
    return TowerRows([folder], tower)


def _store_precomputed(folder: Path, channel: str, encoder: keras.Layer) -> None:
    """Computes the outputs of a text encoder for the stored ids of a channel, one vector `[1, H]` a row."""
    signature = [tf.TensorSpec([None, None], tf.int32)]
    encode = tf.function(lambda ids: encoder(ids, training=False), input_signature=signature, autograph=False)
    reader, writer = RowReader([folder / channel], np.int32), RowWriter(folder / precomputed_input(channel))
    for start in track(range(0, len(reader), SHARD_ROWS), f"encoding {channel}"):
        rows = np.arange(start, min(len(reader), start + SHARD_ROWS))
        order = np.argsort(reader.lengths(rows), kind="stable")
        batches = [rows[order[first : first + BATCH]] for first in range(0, len(rows), BATCH)]
        vectors = np.concatenate([encode(tf.constant(reader.read(batch))).numpy() for batch in batches])
        writer.append(vectors[np.argsort(order)][:, np.newaxis].astype(np.float32))
    writer.close()
