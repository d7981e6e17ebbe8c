"""Filters: which rows have which value in which column, as core TensorFlow ops."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import tensorflow as tf

BUCKETS = 2**63 - 1
ANY = -1
"""The code of a filter that is not used."""
MISSING = -1
"""The code of a row without a value: no filter that is used finds it."""


class Labels(tf.Module):
    """The values of the filter columns by row, and the rows of each value.

    Values are known by a 64-bit hash of their normalised text, sorted, so that a request's value is found by bisection
    and no table has to be initialised. The code of a value is its place there; a value that no row has gets one more
    than the last.

    Args:
        filters: by column the normalised value of each row, bytes `[N]`; b"" where there is none.
    """

    def __init__(self, filters: Mapping[str, np.ndarray]):
        super().__init__(name="labels")
        self.columns = tuple(filters)
        self.count = len(next(iter(filters.values())))
        self.values: list[tf.Variable] = []
        self.keys: list[tf.Variable] = []
        self.codes: list[tf.Variable] = []
        postings: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        for column in filters.values():
            values, keys, codes = _encode(column)
            rows = np.argsort(codes, kind="stable")[np.sum(codes == MISSING) :].astype(np.int32)
            counts = np.bincount(codes[codes != MISSING], minlength=len(values) + 1)
            self.values.append(_variable(values))
            self.keys.append(_variable(np.append(keys, np.iinfo(np.int64).max)))
            self.codes.append(_variable(codes))
            starts.append(np.concatenate([[0], np.cumsum(counts)]) + sum(len(each) for each in postings))
            postings.append(rows)
        self.offsets = tuple(int(sum(len(each) for each in starts[:place])) for place in range(len(starts)))
        self.starts = _variable(np.concatenate(starts).astype(np.int32))
        self.postings = _variable(np.concatenate(postings))

    def encode(self, wanted: list[tf.Tensor]) -> tf.Tensor:
        """The codes int32 `[B, F]` of the normalised values `[B]` wanted of each column; `ANY` for ""."""
        codes = []
        for keys, values in zip(self.keys, wanted, strict=True):
            key = tf.strings.to_hash_bucket_fast(values, BUCKETS)
            place = tf.searchsorted(keys, key)
            last = tf.shape(keys)[0] - 1
            code = tf.where(tf.gather(keys, place) == key, place, last)
            codes.append(tf.where(values == "", ANY, code))
        return tf.stack(codes, axis=1)

    def accept(self, codes: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Whether rows of any shape have the values of one request, int32 `[F]`; booleans of their shape."""
        accepted = tf.ones_like(rows, tf.bool)
        for place, column in enumerate(self.codes):
            accepted &= (codes[place] == ANY) | (tf.gather(column, rows) == codes[place])
        return accepted

    def shortest(self, codes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The shortest of the lists of rows with one of the values of one request, int32 `[F]`.

        Returns:
            Where it starts, and its length: of all rows if no filter is used.
        """
        at = tf.constant(self.offsets) + tf.maximum(codes, 0)
        starts = tf.gather(self.starts, at)
        lengths = tf.where(codes == ANY, self.count, tf.gather(self.starts, at + 1) - starts)
        best = tf.argmin(lengths)
        return tf.gather(starts, best), tf.gather(lengths, best)

    def rows(self, start: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
        """The rows of a list of `shortest`, where a filter is used."""
        return tf.gather(self.postings, tf.range(start, start + length))


def _encode(column: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values that occur and their hashes `[V]`, by hash, and the code of each row `[N]`."""
    encoded = pa.array([value or None for value in column], pa.binary()).dictionary_encode()
    values = np.array(encoded.dictionary.to_pylist(), object)
    keys = tf.strings.to_hash_bucket_fast(tf.constant(values, tf.string, [len(values)]), BUCKETS).numpy()
    order = np.argsort(keys)
    place = np.append(np.argsort(order), MISSING).astype(np.int32)
    indices = encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
    return values[order], keys[order], place[indices]


def _variable(values: np.ndarray) -> tf.Variable:
    kind = tf.string if values.dtype == object else values.dtype
    return tf.Variable(tf.constant(values, kind, values.shape), trainable=False)
