"""Preprocessed inputs on disk: written in batches, read by row number in any order, never all in memory.

The inputs of a row are stored one after another, without padding: to read a row touches one place in the index and one
in the values, however many inputs it has. Rows are cut into shards of consecutive rows. Worker w of W writes the shards
w, w + W, … one after another into its own files, and all workers then read the files of all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pyarrow as pa
import tensorflow as tf

from q2s_tf.cli import track
from q2s_tf.models import Tower
from q2s_tf.models.plain_data import BATCH_SIZE
from q2s_tf.models.towers import precomputed_input

SHARD_ROWS = 8_192
"""Rows of a shard. A text encoder that is not trained reads the rows of a shard sorted by length, so that batches have
little padding, and its outputs do not depend on the number of workers."""
CHANNELS = "channels"
"""Prefix of the files of the channels of a tower."""


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


class Column(NamedTuple):
    """One input of the rows."""

    dtype: type
    """np.int32 for ids, np.float32 for vectors."""
    width: int = 1
    """I, numbers of one vector; 1 for ids."""


Columns = Mapping[str, Column]


IDS = Column(np.int32)
"""Column of rows of ids, int32 `[L]`."""


def vectors(dimension: int) -> Column:
    """Column of rows of vectors, float32 `[L, dimension]`."""
    return Column(np.float32, dimension)


def _index_dtype(columns: Columns) -> np.dtype:
    """The end of a row in the values, and the number of ids or vectors of each column."""
    return np.dtype([("end", "i8"), ("lengths", "i4", (len(columns),))])


def _used_lengths(used: np.ndarray) -> np.ndarray:
    """Length of each row `[L]` up to its last True, `[B]`."""
    return (used * np.arange(1, used.shape[1] + 1)).max(axis=1, initial=0)


class RowWriter:
    """Appends rows without their padding.

    Args:
        path: prefix of the two files (`.values` and `.index`).
        columns: the inputs.
    """

    def __init__(self, path: Path, columns: Columns):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._columns, self._end = columns, 0
        self._values = path.with_name(f"{path.name}.values").open("wb")
        self._index = path.with_name(f"{path.name}.index").open("wb")

    def append(self, rows: Mapping[str, np.ndarray]) -> None:
        """Adds rows `[B, L]` or `[B, L, I]` by column; trailing zeros (zero vectors) of a row are padding."""
        index = np.zeros(len(rows[next(iter(self._columns))]), _index_dtype(self._columns))
        values, kept = [], []
        for number, (name, column) in enumerate(self._columns.items()):
            shape = len(index), rows[name].shape[1], column.width
            words: np.ndarray = np.ascontiguousarray(rows[name], column.dtype).reshape(shape)
            lengths = _used_lengths((words != 0).any(axis=-1))
            index["lengths"][:, number] = lengths
            values.append(words.view(np.int32).reshape(len(index), shape[1] * column.width))
            kept.append(np.repeat(np.arange(shape[1]) < lengths[:, None], column.width, axis=1))
        mask = np.concatenate(kept, axis=1)
        index["end"] = self._end + np.cumsum(mask.sum(axis=1))
        self._end += int(mask.sum())
        self._values.write(np.concatenate(values, axis=1)[mask].tobytes())
        self._index.write(index.tobytes())

    def close(self) -> None:
        """Closes the files."""
        self._values.close()
        self._index.close()


def padded(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, fill: int = 0, shortest: int = 1) -> np.ndarray:
    """Rows of values of different lengths, one after another in `values`, as `[B, L]`, L at least `shortest`."""
    positions = np.arange(max(shortest, lengths.max(initial=0)))
    used = positions < lengths[:, None]
    rows = np.full(used.shape, fill, values.dtype)
    rows[used] = values[(starts[:, None] + positions)[used]]
    return rows


class RowReader:
    """Reads rows that a `RowWriter` of each worker wrote, by their number among all rows.

    Args:
        paths: the prefix of the files of each worker.
        columns: the inputs.
    """

    def __init__(self, paths: Sequence[Path], columns: Columns):
        self._columns, self._files = columns, []
        for path in paths:
            index = mapped(path.with_name(f"{path.name}.index"), _index_dtype(columns))
            values = mapped(path.with_name(f"{path.name}.values"), np.dtype(np.int32))
            self._files.append((np.asarray(index), np.asarray(values)))  # plain arrays are indexed faster

    def __len__(self) -> int:
        return sum(len(index) for index, _ in self._files)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Number of ids, or of vectors, of rows by column, `[B, C]`."""
        lengths = np.empty((len(rows), len(self._columns)), np.int32)
        for positions, own, index, _ in self._split(rows):
            lengths[positions] = index["lengths"][own]
        return lengths

    def read(self, rows: np.ndarray, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Rows by number, padded with zeros to the longest: `[B, L]` or `[B, L, I]` by column, L at least 1.

        Args:
            rows: B numbers.
            names: the columns to read, all by default.
        """
        names = list(self._columns) if names is None else names
        parts = [
            (positions, self._read_file(index[own], values, names))
            for positions, own, index, values in self._split(rows)
        ]
        if len(parts) == 1:
            return parts[0][1]
        read = {}
        for name in names:
            longest = max(part[name].shape[1] for _, part in parts)
            first = parts[0][1][name]
            read[name] = np.zeros((len(rows), longest, *first.shape[2:]), first.dtype)
            for positions, part in parts:
                read[name][positions, : part[name].shape[1]] = part[name]
        return read

    def _read_file(self, index: np.ndarray, values: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Rows of one file by their records in the index."""
        words = index["lengths"] * [column.width for column in self._columns.values()]
        ends = index["end"][:, None] - words.sum(axis=1, keepdims=True) + np.cumsum(words, axis=1)
        read = {}
        for number, (name, (dtype, width)) in enumerate(self._columns.items()):
            if name in names:
                lengths = words[:, number]
                part: np.ndarray = padded(values, ends[:, number] - lengths, lengths, shortest=width).view(dtype)
                vectors_shape = len(part), part.shape[1] // width, width
                read[name] = part if dtype is np.int32 else part.reshape(vectors_shape)
        return read

    def _split(self, rows: np.ndarray) -> Iterator[tuple[Any, np.ndarray, np.ndarray, np.ndarray]]:
        """For each worker the positions of its rows in `rows`, their numbers in its files, its index and values."""
        if len(self._files) == 1:
            yield slice(None), rows, *self._files[0]
            return
        shards, numbers = np.divmod(rows, SHARD_ROWS)
        turns, workers = np.divmod(shards, len(self._files))
        numbers = turns * SHARD_ROWS + numbers
        for worker, (index, values) in enumerate(self._files):
            positions = np.flatnonzero(workers == worker)
            yield positions, numbers[positions], index, values


def mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """A file of values as an array that is read from the file when it is used."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def tower_columns(tower: Tower) -> dict[str, Column]:
    """The channels of a tower as columns."""
    return {
        name: vectors(channel.dimension) if channel.kind == "vectors" else IDS
        for name, channel in tower.channels.items()
    }


class TowerRows:
    """The preprocessed inputs of rows of one tower, for `Tower.encode_channels`.

    Args:
        folders: the folder of each worker's files.
        tower: the tower.
    """

    def __init__(self, folders: Sequence[Path], tower: Tower):
        self._channels = RowReader([folder / CHANNELS for folder in folders], tower_columns(tower))
        self._precomputed = {
            name: RowReader([folder / name for folder in folders], {name: vectors(encoder.hidden_dim)})
            for name, encoder in ((precomputed_input(name), each) for name, each in fixed_encoders(tower).items())
        }

    def __len__(self) -> int:
        return len(self._channels)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Total number of ids and vectors of rows."""
        return self._channels.lengths(rows).sum(axis=1)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Inputs of `Tower.encode_channels` for rows by number."""
        precomputed = {name: reader.read(rows)[name][:, 0] for name, reader in self._precomputed.items()}
        return self._channels.read(rows) | precomputed


def fixed_encoders(tower: Tower) -> dict[str, keras.Layer]:
    """The text encoders of a tower that are not trained, by channel. Their outputs are computed once."""
    channels = tower.config.text_channels(tower.side)
    encoders = {name: tower.text_encoders[channel.encoder] for name, channel in channels.items()}
    return {name: encoder for name, encoder in encoders.items() if not encoder.trainable}


def store_rows(folder: Path, tower: Tower, batches: tf.data.Dataset) -> TowerRows:
    """Preprocesses raw inputs and stores them.

    Args:
        folder: where the files go.
        tower: its preprocessor is applied in `tf.data`.
        batches: raw inputs, in the order of the rows.

    Returns:
        The rows of this folder.
    """
    dataset = batches.map(tower.preprocessor, tf.data.AUTOTUNE, deterministic=True).prefetch(2)
    with closing(RowWriter(folder / CHANNELS, tower_columns(tower))) as writer:
        for inputs in dataset.as_numpy_iterator():
            writer.append(inputs)
    channels = RowReader([folder / CHANNELS], tower_columns(tower))
    for name, encoder in fixed_encoders(tower).items():
        _store_precomputed(folder, name, encoder, channels)
    return TowerRows([folder], tower)


def _store_precomputed(folder: Path, channel: str, encoder: keras.Layer, rows: RowReader) -> None:
    """Computes the outputs of a text encoder for the stored ids of a channel, one vector `[1, H]` a row."""
    signature = [tf.TensorSpec([None, None], tf.int32)]
    encode = tf.function(lambda ids: encoder(ids, training=False), input_signature=signature, autograph=False)
    name = precomputed_input(channel)
    with closing(RowWriter(folder / name, {name: vectors(encoder.hidden_dim)})) as writer:
        for start in track(range(0, len(rows), SHARD_ROWS), f"encoding {channel}"):
            ids = rows.read(np.arange(start, min(len(rows), start + SHARD_ROWS)), [channel])[channel]
            lengths = _used_lengths(ids != 0)
            order = np.argsort(lengths, kind="stable")
            batches = [order[first : first + BATCH_SIZE] for first in range(0, len(order), BATCH_SIZE)]
            outputs = [encode(tf.constant(ids[batch, : max(1, lengths[batch].max())])).numpy() for batch in batches]
            writer.append({name: np.concatenate(outputs)[np.argsort(order)][:, np.newaxis]})
