"""Filters by the values of text columns, in core TensorFlow ops."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import tensorflow as tf

BUCKETS = 2**63 - 1
ANY = -1
"""The code of a filter that is not used."""
MISSING = -1
"""The code of a row without a value, which no used filter matches."""


class FilterColumns(tf.Module):
    """The value of each row in each filter column, and the rows of each value.

    The values of a column are sorted by a 64-bit hash of their normalised text. The code of a value is its position in
    this order, which a request finds by binary search, so no lookup table has to be initialised. Values that no row has
    get the code after the last one.

    Args:
        filters: The normalised value of each row by column, bytes `[N]`; b"" where there is none.
    """

    def __init__(self, filters: Mapping[str, np.ndarray]):
        super().__init__(name="filter_columns")
        self.columns = tuple(filters)
        self.count = len(next(iter(filters.values())))
        self.values: list[tf.Variable] = []
        self.keys: list[tf.Variable] = []
        self.codes: list[tf.Variable] = []
        postings: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        offsets: list[int] = []
        for column in filters.values():
            values, keys, codes = _encode(column)
            self.values.append(_variable(values))
            self.keys.append(_variable(np.append(keys, np.iinfo(np.int64).max)))
            self.codes.append(_variable(codes))
            counts = np.bincount(codes[codes != MISSING], minlength=len(values) + 1)
            offsets.append(sum(map(len, starts)))
            starts.append(np.concatenate([[0], np.cumsum(counts)]) + sum(map(len, postings)))
            postings.append(np.argsort(codes, kind="stable")[np.sum(codes == MISSING) :].astype(np.int32))
        self.offsets = tuple(offsets)
        self.starts = _variable(np.concatenate(starts).astype(np.int32))
        self.postings = _variable(np.concatenate(postings))

    def encode(self, wanted: list[tf.Tensor]) -> tf.Tensor:
        """Look up the codes int32 `[B, F]` of normalised values `[B]`, one tensor for each column; `ANY` for ""."""
        codes = []
        for keys, values in zip(self.keys, wanted, strict=True):
            key = tf.strings.to_hash_bucket_fast(values, BUCKETS)
            position = tf.searchsorted(keys, key)
            last = tf.shape(keys)[0] - 1
            code = tf.where(tf.gather(keys, position) == key, position, last)
            codes.append(tf.where(values == "", ANY, code))
        return tf.stack(codes, axis=1)

    def matches(self, codes: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Whether rows of any shape have the values of one request, int32 `[F]`; booleans of their shape."""
        matches = tf.ones_like(rows, tf.bool)
        for index, column in enumerate(self.codes):
            matches &= (codes[index] == ANY) | (tf.gather(column, rows) == codes[index])
        return matches

    def shortest_list(self, codes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Find the value of one request, int32 `[F]`, that the fewest rows have.

        Returns:
            The start and the length of its list of rows. Without a used filter the length is that of all rows.
        """
        lists = tf.constant(self.offsets) + tf.maximum(codes, 0)
        starts = tf.gather(self.starts, lists)
        lengths = tf.where(codes == ANY, self.count, tf.gather(self.starts, lists + 1) - starts)
        shortest = tf.argmin(lengths)
        return tf.gather(starts, shortest), tf.gather(lengths, shortest)

    def list_rows(self, start: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
        """The rows int32 `[length]` of a list that `shortest_list` found."""
        return tf.gather(self.postings, tf.range(start, start + length))


def _encode(column: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values of a column and their hashes `[V]`, sorted by hash, and the code of each row `[N]`."""
    encoded = pa.array([value or None for value in column], pa.binary()).dictionary_encode()
    values = np.array(encoded.dictionary.to_pylist(), object)
    keys = tf.strings.to_hash_bucket_fast(tf.constant(values, tf.string, [len(values)]), BUCKETS).numpy()
    order = np.argsort(keys)
    codes = np.append(np.argsort(order), MISSING).astype(np.int32)
    indices = encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
    return values[order], keys[order], codes[indices]


def _variable(values: np.ndarray) -> tf.Variable:
    dtype = tf.string if values.dtype == object else values.dtype
    return tf.Variable(tf.constant(values, dtype, values.shape), trainable=False)
