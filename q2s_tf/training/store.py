"""Prepared channel inputs on disk: written once in batches, read by row in any order, never all in memory."""

from pathlib import Path

import numpy as np


class ChannelWriter:
    """Appends the prepared inputs of one channel, without their padding.

    Args:
        path: prefix of the two files it makes (`.values` and `.lengths`).
    """

    def __init__(self, path: Path):
        self._values = path.with_suffix(".values").open("wb")
        self._lengths = path.with_suffix(".lengths").open("wb")

    def append(self, rows: np.ndarray) -> None:
        """Adds rows `[B, L]` or `[B, L, I]`, of which trailing zeros (zero vectors) of each row are padding."""
        used = rows != 0 if rows.ndim == 2 else (rows != 0).any(axis=-1)
        places = np.arange(1, rows.shape[1] + 1)
        lengths = (used * places).max(axis=1, initial=0)
        self._values.write(rows[places <= lengths[:, None]].tobytes())
        self._lengths.write(lengths.astype(np.int64).tobytes())

    def close(self) -> None:
        """Ends the files."""
        self._values.close()
        self._lengths.close()


class ChannelReader:
    """Reads rows of a channel that a `ChannelWriter` wrote.

    Args:
        path: the prefix the writer was given.
        dtype: of the values.
        dimension: I for vectors, None for ids.
    """

    def __init__(self, path: Path, dtype: type, dimension: int | None = None):
        lengths = np.fromfile(path.with_suffix(".lengths"), np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])
        self._shape: tuple[int, ...] = () if dimension is None else (dimension,)
        file = path.with_suffix(".values")
        empty = file.stat().st_size == 0
        flat = np.zeros(0, dtype) if empty else np.memmap(file, dtype, mode="r")
        self._values = flat.reshape(-1, *self._shape)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """How many ids, or vectors, each of these rows has."""
        return self._offsets[numbers + 1] - self._offsets[numbers]

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of these numbers, padded with zeros to the longest: `[B, L]` or `[B, L, I]`, L at least 1."""
        starts, lengths = self._offsets[numbers], self.lengths(numbers)
        places = np.arange(max(1, lengths.max(initial=0)))
        used = places < lengths[:, None]
        padded = np.zeros((*used.shape, *self._shape), self._values.dtype)
        padded[used] = self._values[(starts[:, None] + places)[used]]
        return padded
