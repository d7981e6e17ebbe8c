"""Indexes of vectors that are read by blocks: results are those of an array, and no pass reads all vectors at once."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from q2s_tf.index import DocumentRows, IndexedDocuments, LiveVectors, PartitionedIndex, blocks, build_index
from q2s_tf.index.blocks import read_blocks, store_rows
from q2s_tf.index.centres import TRAINING_ROWS, nearest_centres
from q2s_tf.index.effort import MAX_QUERIES, exact_nearest

COUNT, DIMENSION, BLOCK_ROWS = 6_000, 16, 700


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(300, DIMENSION))
    return unit(centres[generator.integers(300, size=COUNT)] + generator.normal(scale=0.3, size=(COUNT, DIMENSION)))


@pytest.fixture
def file(vectors: np.ndarray, tmp_path: Path) -> np.memmap:
    np.save(tmp_path / "vectors.npy", vectors)
    return np.load(tmp_path / "vectors.npy", mmap_mode="r")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", BLOCK_ROWS * DIMENSION)


class Parts:
    """Vectors that cannot be read as a whole, and that count what is read."""

    def __init__(self, values: np.ndarray):
        self.values, self.shape = values, values.shape
        self.longest_slice = self.chosen = 0

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise AssertionError("all vectors are read at once")

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            self.longest_slice = max(self.longest_slice, len(range(*rows.indices(len(self.values)))))
        else:
            assert (np.diff(rows) > 0).all(), "a file is read in its order"
            self.chosen += len(rows)
        return self.values[rows]


def variables(index: Any) -> list[np.ndarray]:
    return [variable.numpy() for variable in index.variables]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "int8"])
def built(request: pytest.FixtureRequest, vectors: np.ndarray) -> tuple[PartitionedIndex, np.ndarray]:
    index, order = build_index("partitioned", vectors, 1, storage=request.param)
    assert isinstance(index, PartitionedIndex)
    return index, order


def test_a_file_gives_the_index_of_an_array(built: tuple[Any, np.ndarray], file: np.memmap) -> None:
    index, order = built
    other, other_order = build_index("partitioned", file, 1, storage=index.parameters["storage"])
    np.testing.assert_array_equal(other_order, order)
    assert len(variables(index)) == (4 if index.parameters["storage"] == "int8" else 3)
    for expected, values in zip(variables(index), variables(other), strict=True):
        np.testing.assert_array_equal(values, expected)
    assert other.parameters == index.parameters


@pytest.mark.parametrize("kind", ["exact", "partitioned"])
def test_no_pass_reads_more_than_a_block(kind: str, vectors: np.ndarray) -> None:
    parts = Parts(vectors)
    index, _ = build_index(kind, parts, 1)
    assert parts.longest_slice == BLOCK_ROWS
    assert parts.chosen <= TRAINING_ROWS * index.parameters.get("partitions", 0) + MAX_QUERIES


def test_rows_are_sorted_by_partition(built: tuple[Any, np.ndarray], vectors: np.ndarray) -> None:
    """The order within a partition is that of the documents, and its centre is the nearest of nearly all of them."""
    index, order = built
    starts, centres = index.starts.numpy(), index.centres.numpy()
    assert sorted(order.tolist()) == list(range(COUNT))
    partitions = np.repeat(np.arange(len(centres)), np.diff(starts))
    assert len(partitions) == starts[-1] == COUNT
    assert (np.diff(partitions * COUNT + order) > 0).all()
    assert np.mean(np.argmax(vectors[order] @ centres.T, axis=1) == partitions) >= 0.99


@pytest.mark.parametrize("count", [1, 2, 100, 144])
def test_up_to_144_centres_are_all_compared(count: int, vectors: np.ndarray) -> None:
    centres = vectors[:count]
    np.testing.assert_array_equal(nearest_centres(vectors, centres, 0), np.argmax(vectors @ centres.T, axis=1))


def test_equal_centres_are_no_error(vectors: np.ndarray) -> None:
    assert (nearest_centres(vectors, np.repeat(vectors[:1], 400, axis=0), 0) < 400).all()


def test_rows_are_rounded_to_the_storage(built: tuple[Any, np.ndarray], vectors: np.ndarray) -> None:
    index, order = built
    storage, rows = index.parameters["storage"], index.embeddings.numpy()
    assert rows.dtype == storage
    if storage == "int8":
        largest = np.abs(vectors[order]).max(axis=1)
        np.testing.assert_allclose(index.scales.numpy() * 127, largest, rtol=1e-6)
        steps = vectors[order].astype(float) * 127 / largest[:, np.newaxis]
        assert np.abs(rows - steps).max() <= 0.5 + 1e-4
        assert (np.abs(rows).max(axis=1) == 127).all()
    elif storage == "bfloat16":  # half to even, on the upper 16 bits
        bits = vectors[order].view(np.uint32)
        np.testing.assert_array_equal(rows.view(np.uint16), (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
    else:
        np.testing.assert_array_equal(rows, vectors[order])


def test_a_variable_shares_the_memory_that_rows_are_stored_in(vectors: np.ndarray) -> None:
    def address(tensor: tf.Tensor) -> int:
        return np.frombuffer(memoryview(tensor), np.uint8).ctypes.data

    for storage in ("float32", "int8"):
        rows, _ = store_rows(vectors, storage)
        assert address(tf.Variable(rows).read_value()) == address(rows)


def test_exact_neighbours_are_those_of_all_scores(vectors: np.ndarray, file: np.memmap) -> None:
    queries = unit(np.random.default_rng(1).normal(size=(9, DIMENSION)))
    expected = np.argsort(-(queries @ vectors.T), axis=1)[:, :100]
    np.testing.assert_array_equal(exact_nearest(file, queries), expected)
    assert exact_nearest(vectors[:30], queries).shape == (9, 30)


def test_pages_of_a_file_do_not_pile_up(file: np.memmap) -> None:
    assert resident(file) == 0
    for rows, block in read_blocks(file, "reading"):
        assert np.abs(block).sum() > 0
        assert resident(file) * 1024 < 4 * file.nbytes / 3, rows
    assert resident(file) == 0


def resident(file: np.memmap) -> int:
    """KiB of a mapped file that are in this process."""
    mapping = Path("/proc/self/smaps").read_text().split(str(file.filename))[1]
    return int(re.search(r"Rss: *(\d+) kB", mapping)[1])  # type: ignore[index]


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_changes_of_a_writable_file_stay(mode: Any, file: np.memmap) -> None:
    writable = np.load(str(file.filename), mmap_mode=mode)
    writable[:] = 7
    assert all((block == 7).all() for _ in range(2) for _, block in read_blocks(writable, "reading"))


def test_live_vectors_are_those_without_tombstones(built: tuple[Any, np.ndarray], vectors: np.ndarray) -> None:
    index, order = built
    delta, generator = unit(np.random.default_rng(2).normal(size=(50, DIMENSION))), np.random.default_rng(3)
    ids = pa.array([b"%d" % row for row in range(COUNT + 50)], pa.large_binary())
    alive = generator.random(COUNT) < 0.9
    live = LiveVectors(index, IndexedDocuments(DocumentRows(ids, {}), alive, delta))
    expected = np.concatenate([vectors[order][alive], delta])
    assert live.shape == (len(live), DIMENSION) == expected.shape
    some = np.flatnonzero(generator.random(len(live)) < 0.3)
    for rows in (slice(0, 10), slice(5_000, None), slice(len(live) - 9, len(live)), some, np.empty(0, int)):
        assert live[rows].dtype == np.float32
        np.testing.assert_allclose(live[rows], expected[rows], atol=6e-3)
