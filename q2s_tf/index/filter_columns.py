"""Filters by the values of text columns, in core TensorFlow ops."""

from collections.abc import Mapping
from functools import reduce

import numpy as np
import pyarrow as pa
import tensorflow as tf

from q2s_tf.index.search_ops import gather

BUCKETS = 2**63 - 1
ANY = -2
"""The code of a filter that is not used."""
MISSING = -1
"""The code of a row without a value, which no filter matches."""


class FilterColumns(tf.Module):
    """The value of each row in each filter column, and the rows of each value.

    The values of all columns are sorted by a 64-bit hash of the column and the normalised text. The code of a value is
    its position in this order, which a request finds by binary search, so no lookup table has to be initialised. Values
    that no row has get the code after the last one.

    Args:
        filters: The normalised value of each row by column, bytes `[N + n]`; b"" where there is none.
        indexed: N, the rows of the index; the lists of rows by value leave out the others.
    """

    def __init__(self, filters: Mapping[str, np.ndarray], indexed: int):
        super().__init__(name="filter_columns")
        self.columns = tuple(filters)
        self.indexed = indexed
        encoded = [pa.array([value or None for value in column], pa.binary()) for column in filters.values()]
        encoded = [column.dictionary_encode() for column in encoded]
        values = [np.array(column.dictionary.to_pylist(), object) for column in encoded]
        keys = np.concatenate([_hash(value, number) for number, value in enumerate(values)])
        order = np.argsort(keys)
        codes = np.append(np.argsort(order), MISSING).astype(np.int32)
        firsts = np.cumsum([0, *map(len, values)])
        by_row = [
            codes[np.append(np.arange(first, last), -1)[column.indices.fill_null(last - first).to_numpy()]]
            for column, first, last in zip(encoded, firsts, firsts[1:], strict=False)
        ]
        in_index = np.concatenate([column[:indexed] for column in by_row])
        postings = np.argsort(in_index, kind="stable")[np.sum(in_index == MISSING) :] % max(1, indexed)
        counts = np.bincount(in_index[in_index != MISSING], minlength=len(keys) + 1)
        self.values = _variable(np.concatenate(values)[order])
        self.keys = _variable(np.append(keys[order], np.iinfo(np.int64).max))
        self.codes = [_variable(column) for column in by_row]
        self.starts = _variable(np.append(0, np.cumsum(counts)).astype(np.int32))
        self.postings = _variable(postings.astype(np.int32))

    def encode(self, wanted: tf.Tensor) -> tf.Tensor:
        """Look up the codes int32 `[B, F]` of normalised values `[B, F]`; `ANY` for ""."""
        keys = tf.stack([_bucket(column, number) for number, column in enumerate(tf.unstack(wanted, axis=1))], axis=1)
        last = self.keys.shape[0] - 1
        positions = tf.reshape(tf.searchsorted(self.keys, tf.reshape(keys, [-1])), tf.shape(keys))
        codes = tf.where(gather(self.keys, positions) == keys, positions, last)
        return tf.where(wanted == "", ANY, codes)

    def accepts(self, codes: tf.Tensor, rows: tf.Tensor | None) -> tf.Tensor:
        """Which rows int32 `[C]` (all when None) have the values of requests, int32 `[B, F]`; booleans `[B, C]`."""
        masks = [
            (wanted == ANY) | (wanted == (column if rows is None else gather(column, rows)))
            for wanted, column in zip(tf.split(codes, len(self.codes), axis=1), self.codes, strict=True)
        ]
        return reduce(tf.logical_and, masks)

    def shortest_list(self, codes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Find the value of one request, int32 `[F]`, that the fewest rows of the index have.

        Returns:
            The start and the length of its list of rows. Without a used filter the length is that of all rows.
        """
        lists = tf.maximum(codes, 0)
        starts = gather(self.starts, lists)
        lengths = tf.where(codes == ANY, self.indexed, gather(self.starts, lists + 1) - starts)
        shortest = tf.argmin(lengths)
        return tf.gather(starts, shortest), tf.gather(lengths, shortest)

    def list_rows(self, start: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
        """The rows int32 `[length]` of a list that `shortest_list` found."""
        return gather(self.postings, tf.range(start, start + length))


def _bucket(values: tf.Tensor, column: int) -> tf.Tensor:
    return tf.strings.to_hash_bucket_fast(tf.strings.join([f"{column}=", values]), BUCKETS)


def _hash(values: np.ndarray, column: int) -> np.ndarray:
    return _bucket(tf.constant(values, tf.string, [len(values)]), column).numpy()


def _variable(values: np.ndarray) -> tf.Variable:
    dtype = tf.string if values.dtype == object else values.dtype
    return tf.Variable(tf.constant(values, dtype, values.shape), trainable=False)
