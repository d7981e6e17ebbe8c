"""Stored rows: what was written is read in any order, and towers have the inputs that preprocessing gives."""

from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from q2s_tf.examples import stored_rows
from q2s_tf.examples.stored_rows import IDS, RowReader, RowWriter, shard_parts, vectors

ID_ROWS = st.integers(1, 6).flatmap(lambda longest: hnp.arrays(np.int32, (12, longest), elements=st.integers(0, 3)))
VECTOR_ROWS = st.integers(0, 4).flatmap(
    lambda longest: hnp.arrays(np.float32, (12, longest, 2), elements=st.sampled_from([0.0, 1.5, -2.0]))
)
COLUMNS = {"text": IDS, "images": vectors(2), "trigrams": IDS}


@given(
    st.lists(st.tuples(st.integers(1, 12), ID_ROWS, VECTOR_ROWS, ID_ROWS), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 9),
    st.data(),
)
@settings(deadline=None)
def test_rows_come_back_in_any_order_padded_with_zeros(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]],
    num_workers: int,
    shard_rows: int,
    data: st.DataObject,
) -> None:
    """Each worker writes the rows of its shards, which begin and end anywhere in a batch."""
    batches = [{name: rows[:size] for name, rows in zip(COLUMNS, arrays, strict=True)} for size, *arrays in drawn]
    folder = tmp_path_factory.mktemp("rows")
    paths = [folder / str(worker) / "channels" for worker in range(num_workers)]
    with mock.patch.object(stored_rows, "SHARD_ROWS", shard_rows):
        for worker, path in enumerate(paths):
            writer, first = RowWriter(path, COLUMNS), 0
            for batch in batches:
                numbers = pa.record_batch({"position": np.arange(len(batch["text"]))})
                for row, part in shard_parts(numbers, first, worker, num_workers):
                    assert {(row + offset) // shard_rows % num_workers for offset in range(len(part))} == {worker}
                    positions = part.column("position").to_numpy()
                    writer.append({name: rows[positions] for name, rows in batch.items()})
                first += len(numbers)
            writer.close()
        reader = RowReader(paths, COLUMNS)
        assert len(reader) == first
        numbers = np.array(data.draw(st.lists(st.integers(0, first - 1), min_size=1, max_size=8)))
        read, lengths = reader.read(numbers), reader.lengths(numbers)
        assert list(read) == list(COLUMNS)
        one = reader.read(numbers, ["images"])
    assert list(one) == ["images"]
    np.testing.assert_array_equal(one["images"], read["images"])
    for column, name in enumerate(COLUMNS):
        written = [row for batch in batches for row in batch[name]]
        check_rows(read[name], [written[number] for number in numbers])
        used = [np.flatnonzero(row if row.ndim == 1 else row.any(axis=1)) for row in (written[n] for n in numbers)]
        assert lengths[:, column].tolist() == [positions[-1] + 1 if len(positions) else 0 for positions in used]


def check_rows(read: np.ndarray, expected: list[np.ndarray]) -> None:
    """Rows are as they were written, except for padding that was cut or added."""
    assert len(read) == len(expected)
    assert read.shape[1] >= 1
    assert read.dtype == expected[0].dtype
    for row, written in zip(read, expected, strict=True):
        shared = min(len(row), len(written))
        np.testing.assert_array_equal(row[:shared], written[:shared])
        assert not row[shared:].any()
        assert not written[shared:].any()
