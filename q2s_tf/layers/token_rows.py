"""The tokens of a batch of texts as rows below each other, `[T, H]`: with their padding, or without it.

Nearly all that a transformer computes, it computes for each token by itself, and so on rows. The attention alone wants
the tokens of a text side by side: `spread` leads there and `collect` back, in groups of texts, `[n, l, …]` each.
"""

from typing import Any

import tensorflow as tf

GROUPS = 4
"""Of packed texts. What the attention computes is quadratic in the longest text of a group."""

PADDING = -1e9
"""Added to the attention to a place without token, which leaves nothing of it."""


class PaddedRows:
    """Every place of a batch of token ids `[B, L]` is a row, T = B · L, and all texts are one group: the fewest ops.

    Args:
        ids: int32 `[B, L]`, 0 = padding.

    Attributes:
        biases: of each group `[n, 1, 1, l]`, to be added to the attention to its places.
    """

    def __init__(self, ids: Any):
        self.ids = ids
        self.length = tf.shape(ids)[1]
        self.biases = [PADDING * tf.cast(ids == 0, tf.float32)[:, tf.newaxis, tf.newaxis]]

    def embed(self, tokens: Any, places: Any) -> Any:
        """The sum of each token's row of one table and its place's of another, `[T, H]`."""
        embedded = tf.gather(tokens, self.ids) + places[: self.length]
        return tf.reshape(embedded, [-1, embedded.shape[-1]])

    def spread(self, rows: Any, shape: list[int]) -> list[Any]:
        """The rows of every group text by text, `[T, W]` to `[n, l, *shape]`; 0 where there is no token."""
        return [tf.reshape(rows, [-1, self.length, *shape])]

    def collect(self, groups: list[Any], width: int) -> Any:
        """The way back, from `[n, l, …]` of every group to `[T, width]`."""
        return tf.reshape(groups[0], [-1, width])

    def first(self, rows: Any) -> Any:
        """The row of each text's first token, `[R, W]`."""
        return tf.reshape(rows[:: self.length], [-1, rows.shape[-1]])

    def mean(self, rows: Any) -> Any:
        """The mean of the rows of each text's tokens, `[R, W]`."""
        there = tf.cast(self.ids != 0, rows.dtype)
        sums = tf.matmul(there[:, tf.newaxis], *self.spread(rows, [rows.shape[-1]]))[:, 0]
        return tf.math.divide_no_nan(sums, tf.reduce_sum(there, axis=1, keepdims=True))

    def split(self, texts: Any) -> list[Any]:
        """Vectors of the texts, `[R, W]`, by group."""
        return [texts]

    def unpack(self, texts: Any) -> Any:
        """Vectors of the texts, `[R, W]`, in the order of the batch, `[B, W]`."""
        return texts


class PackedRows:
    """Tokens alone are rows, so that padding costs next to nothing: for training. Has what `PaddedRows` has.

    Texts without tokens are left out, and `unpack` gives 0 for them; the R others are sorted by their number of tokens,
    so that those of a group are of like length.
    """

    def __init__(self, ids: Any):
        self.batch = tf.shape(ids)[0]
        lengths = tf.math.count_nonzero(ids, axis=1, dtype=tf.int32)
        order = tf.argsort(lengths, stable=True)
        self.order = order[self.batch - tf.math.count_nonzero(lengths, dtype=tf.int32) :]
        self.lengths, ids = tf.gather(lengths, self.order), tf.gather(ids, self.order)
        places = tf.where(ids != 0)
        self.ids, self.text, self.place = tf.gather_nd(ids, places), places[:, 0], places[:, 1]
        self.texts = [(tf.shape(self.order)[0] + group) // GROUPS for group in range(GROUPS)]
        lengths = tf.split(self.lengths, self.texts, num=GROUPS)
        self.tokens = [tf.reduce_sum(each) for each in lengths]
        self.there = [tf.sequence_mask(each) for each in lengths]
        self.places = [tf.where(each) for each in self.there]
        self.biases = [tf.where(each, 0.0, PADDING)[:, tf.newaxis, tf.newaxis] for each in self.there]

    def embed(self, tokens: Any, places: Any) -> Any:
        """As in `PaddedRows`: `[T, H]`."""
        return tf.gather(tokens, self.ids) + tf.gather(places, self.place)

    def spread(self, rows: Any, shape: list[int]) -> list[Any]:
        """As in `PaddedRows`: `[T, W]` to `[n, l, *shape]` of every group."""
        parts = zip(tf.split(rows, self.tokens, num=GROUPS), self.places, self.there, strict=True)
        return [_scatter(part, places, tf.shape(there), shape) for part, places, there in parts]

    def collect(self, groups: list[Any], width: int) -> Any:
        """As in `PaddedRows`: `[n, l, …]` of every group to `[T, width]`."""
        rows = [tf.gather_nd(group, places) for group, places in zip(groups, self.places, strict=True)]
        return tf.reshape(tf.concat(rows, 0), [-1, width])

    def first(self, rows: Any) -> Any:
        """As in `PaddedRows`: `[R, W]`."""
        return tf.gather(rows, tf.cumsum(self.lengths, exclusive=True))

    def mean(self, rows: Any) -> Any:
        """As in `PaddedRows`: `[R, W]`."""
        return tf.math.segment_mean(rows, self.text)

    def split(self, texts: Any) -> list[Any]:
        """As in `PaddedRows`: `[R, W]` to `[n, W]` of every group."""
        return tf.split(texts, self.texts, num=GROUPS)

    def unpack(self, texts: Any) -> Any:
        """As in `PaddedRows`: `[R, W]` to `[B, W]`."""
        return tf.scatter_nd(self.order[:, tf.newaxis], texts, [self.batch, texts.shape[-1]])


def _scatter(rows: Any, places: Any, size: Any, shape: list[int]) -> Any:
    """Rows `[t, W]` at their places `[t, 2]` in zeros of this size, `[n, l, *shape]`."""
    texts, tokens = tf.unstack(size)
    padded = tf.scatter_nd(places, rows, tf.cast([texts, tokens, rows.shape[-1]], places.dtype))
    return tf.reshape(padded, [texts, tokens, *shape])
