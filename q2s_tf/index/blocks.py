"""Vectors that may be larger than memory: they are read by blocks, and stored once."""

import mmap
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import tensorflow as tf

from q2s_tf.cli import track

STORAGES = ("float32", "bfloat16", "int8")
BLOCK = 2**23
"""Numbers of a block (32 MB), which bounds the memory of all passes over the vectors."""


class Vectors(Protocol):
    """What an index is built from: `[N, D]` in float32, an array or a read-only `np.memmap`, for example.

    It is only sliced, and indexed with sorted row numbers, and never read as a whole.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray: ...


def read_blocks(vectors: Vectors, description: str | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    """Read vectors in their order, with a progress bar if it has a description.

    Yields:
        The rows of a block, and its vectors float32 `[B, D]`.
    """
    size = max(1, BLOCK // vectors.shape[1])
    starts = range(0, len(vectors), size)
    for start in starts if description is None else track(starts, description):
        rows = slice(start, min(start + size, len(vectors)))
        yield rows, np.asarray(vectors[rows], np.float32)
        release_pages(vectors)


def read_rows(vectors: Vectors, rows: np.ndarray) -> np.ndarray:
    """Copy rows with sorted numbers, float32 `[R, D]`."""
    size = max(1, BLOCK // vectors.shape[1])
    copied = np.empty((len(rows), vectors.shape[1]), np.float32)
    for start in range(0, len(rows), size):
        copied[start : start + size] = vectors[rows[start : start + size]]
        release_pages(vectors)
    return copied


def release_pages(vectors: Vectors) -> None:
    """Take the pages of a read-only file out of the process; otherwise the whole file counts as its memory."""
    # Pages of a writable mapping may hold changes that are not in the file.
    if isinstance(vectors, np.memmap) and vectors.mode == "r" and isinstance(vectors.base, mmap.mmap):
        vectors.base.madvise(mmap.MADV_DONTNEED)


def store_rows(
    vectors: Vectors, storage: str = "float32", positions: np.ndarray | None = None
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Convert vectors to a storage dtype, each at its position, without a second copy in memory.

    Args:
        vectors: `[N, D]`.
        storage: One of `STORAGES`. An int8 row is rounded to 127 steps of its largest number.
        positions: The row of each vector in the result, int `[N]`. None: the same order.

    Returns:
        The rows `[N, D]`, and the scales float32 `[N]` of int8 rows.
    """
    dtype = tf.as_dtype(storage).as_numpy_dtype
    stored = _allocate((len(vectors), vectors.shape[1]), dtype)
    scales = np.empty(len(vectors), np.float32) if storage == "int8" else None
    for rows, block in read_blocks(vectors, f"storing documents in {storage}"):
        target = rows if positions is None else positions[rows]
        if scales is not None:
            steps = np.maximum(np.abs(block).max(axis=1), 1e-12) / 127
            scales[target] = steps
            block = np.round(block / steps[:, np.newaxis])
        stored[target] = block.astype(dtype)
    exported = stored.view(np.uint16) if storage == "bfloat16" else stored  # NumPy's DLPack has no bfloat16
    shared = tf.experimental.dlpack.from_dlpack(exported.__dlpack__())
    return tf.bitcast(shared, storage), None if scales is None else tf.constant(scales)


def _allocate(shape: tuple[int, int], dtype: type) -> np.ndarray:
    """An array that starts at a page of memory, so that a tensor can share it: TensorFlow aligns to 64 bytes."""
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype).reshape(shape)
