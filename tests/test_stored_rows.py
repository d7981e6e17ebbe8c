"""Stored rows: what was written is read in any order, and towers have the inputs that preprocessing gives."""

from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from q2s_tf.examples import stored_rows
from q2s_tf.examples.stored_rows import RowReader, RowWriter, shard_parts

IDS = hnp.arrays(np.int32, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.integers(0, 3))
VECTORS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(0, 4), st.just(2)), elements=st.sampled_from([0.0, 1.5, -2.0])
)


@given(
    st.one_of(st.lists(IDS, min_size=1, max_size=4), st.lists(VECTORS, min_size=1, max_size=4)),
    st.integers(1, 4),
    st.integers(1, 6),
    st.data(),
)
@settings(deadline=None)
def test_rows_come_back_in_any_order_padded_with_zeros(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[np.ndarray],
    num_workers: int,
    shard_rows: int,
    data: st.DataObject,
) -> None:
    """Each worker writes the rows of its shards, which begin and end anywhere in a batch."""
    folder = tmp_path_factory.mktemp("rows")
    paths = [folder / str(worker) / "channel" for worker in range(num_workers)]
    with mock.patch.object(stored_rows, "SHARD_ROWS", shard_rows):
        for worker, path in enumerate(paths):
            writer, first = RowWriter(path), 0
            for batch in batches:
                numbers = pa.record_batch({"position": np.arange(len(batch))})
                for row, part in shard_parts(numbers, first, worker, num_workers):
                    assert {(row + offset) // shard_rows % num_workers for offset in range(len(part))} == {worker}
                    writer.append(batch[part.column("position").to_numpy()])
                first += len(batch)
            writer.close()
        reader = RowReader(paths, batches[0].dtype.type, 2 if batches[0].ndim == 3 else None)
        check_rows(reader, [row for batch in batches for row in batch], data)


def check_rows(reader: RowReader, written: list[np.ndarray], data: st.DataObject) -> None:
    assert len(reader) == len(written)
    numbers = data.draw(st.lists(st.integers(0, len(written) - 1), min_size=1, max_size=8))
    read = reader.read(np.array(numbers))
    assert len(read) == len(numbers)
    assert read.shape[1] >= 1
    for row, number in zip(read, numbers, strict=True):
        expected = written[number]
        shared = min(len(row), len(expected))
        np.testing.assert_array_equal(row[:shared], expected[:shared])
        assert not row[shared:].any()
        assert not expected[shared:].any()
