"""Layouts of the tokens of a batch as the rows of one matrix `[T, H]`, with padding or without it.

A transformer computes almost everything for each token alone, that is on rows. Attention needs the tokens of a text
next to each other: `pad` brings rows into groups of texts `[n, l, …]` and `pack` brings them back.
"""

from typing import Any

import tensorflow as tf

NUM_GROUPS = 4
"""Groups of packed texts. The cost of attention is quadratic in the longest text of a group."""

MASKED_SCORE = -1e9
"""Added to the attention score of padding, whose attention weight is then 0 in float32."""


class PaddedTokens:
    """Every position of token ids `[B, L]` is a row, T = B · L, and all texts are one group. Needs the fewest ops.

    Args:
        ids: int32 `[B, L]`, 0 is padding.

    Attributes:
        biases: for each group `[n, 1, 1, l]`, added to the attention scores of its positions.
    """

    def __init__(self, ids: Any):
        self.ids = ids
        self.length = tf.shape(ids)[1]
        self.biases = [MASKED_SCORE * tf.cast(ids == 0, tf.float32)[:, tf.newaxis, tf.newaxis]]

    def embed(self, token_table: Any, position_table: Any) -> Any:
        """Sum of the token embedding and the position embedding of each row, `[T, H]`."""
        embedded = tf.gather(token_table, self.ids) + position_table[: self.length]
        return tf.reshape(embedded, [-1, embedded.shape[-1]])

    def pad(self, rows: Any, shape: list[int]) -> list[Any]:
        """Rows `[T, W]` as texts `[n, l, *shape]` for each group, with 0 where there is no token."""
        return [tf.reshape(rows, [-1, self.length, *shape])]

    def pack(self, groups: list[Any], width: int) -> Any:
        """The inverse of `pad`: `[n, l, …]` for each group to rows `[T, width]`."""
        return tf.reshape(groups[0], [-1, width])

    def first(self, rows: Any) -> Any:
        """Row of the first token of each text, `[R, W]`."""
        return tf.reshape(rows[:: self.length], [-1, rows.shape[-1]])

    def mean(self, rows: Any) -> Any:
        """Mean of the rows of the tokens of each text, `[R, W]`."""
        present = tf.cast(self.ids != 0, rows.dtype)
        sums = tf.matmul(present[:, tf.newaxis], *self.pad(rows, [rows.shape[-1]]))[:, 0]
        return tf.math.divide_no_nan(sums, tf.reduce_sum(present, axis=1, keepdims=True))

    def split(self, texts: Any) -> list[Any]:
        """Vectors of texts `[R, W]` by group."""
        return [texts]

    def restore(self, texts: Any) -> Any:
        """Vectors of texts `[R, W]` in the order of the batch, `[B, W]`."""
        return texts


class PackedTokens:
    """Only tokens are rows, so that padding costs little: for training. Has the methods of `PaddedTokens`.

    Texts without tokens are left out, and `restore` gives 0 for them. The R other texts are sorted by length, so that
    the texts of a group have similar lengths.

    Args:
        ids: int32 `[B, L]`, 0 is padding.
    """

    def __init__(self, ids: Any):
        self.batch = tf.shape(ids)[0]
        lengths = tf.math.count_nonzero(ids, axis=1, dtype=tf.int32)
        order = tf.argsort(lengths, stable=True)
        self.order = order[self.batch - tf.math.count_nonzero(lengths, dtype=tf.int32) :]
        self.lengths, ids = tf.gather(lengths, self.order), tf.gather(ids, self.order)
        positions = tf.where(ids != 0)
        self.ids, self.text, self.position = tf.gather_nd(ids, positions), positions[:, 0], positions[:, 1]
        self.group_sizes = [(tf.shape(self.order)[0] + group) // NUM_GROUPS for group in range(NUM_GROUPS)]
        lengths = tf.split(self.lengths, self.group_sizes, num=NUM_GROUPS)
        self.group_tokens = [tf.reduce_sum(group) for group in lengths]
        self.group_masks = [tf.sequence_mask(group) for group in lengths]
        self.group_positions = [tf.where(mask) for mask in self.group_masks]
        self.biases = [tf.where(mask, 0.0, MASKED_SCORE)[:, tf.newaxis, tf.newaxis] for mask in self.group_masks]

    def embed(self, token_table: Any, position_table: Any) -> Any:
        """See `PaddedTokens.embed`."""
        return tf.gather(token_table, self.ids) + tf.gather(position_table, self.position)

    def pad(self, rows: Any, shape: list[int]) -> list[Any]:
        """See `PaddedTokens.pad`."""
        parts = zip(
            tf.split(rows, self.group_tokens, num=NUM_GROUPS), self.group_positions, self.group_masks, strict=True
        )
        return [_scatter(part, positions, tf.shape(mask), shape) for part, positions, mask in parts]

    def pack(self, groups: list[Any], width: int) -> Any:
        """See `PaddedTokens.pack`."""
        rows = [tf.gather_nd(group, where) for group, where in zip(groups, self.group_positions, strict=True)]
        return tf.reshape(tf.concat(rows, 0), [-1, width])

    def first(self, rows: Any) -> Any:
        """See `PaddedTokens.first`."""
        return tf.gather(rows, tf.cumsum(self.lengths, exclusive=True))

    def mean(self, rows: Any) -> Any:
        """See `PaddedTokens.mean`."""
        return tf.math.segment_mean(rows, self.text)

    def split(self, texts: Any) -> list[Any]:
        """See `PaddedTokens.split`."""
        return tf.split(texts, self.group_sizes, num=NUM_GROUPS)

    def restore(self, texts: Any) -> Any:
        """See `PaddedTokens.restore`."""
        return tf.scatter_nd(self.order[:, tf.newaxis], texts, [self.batch, texts.shape[-1]])


def _scatter(rows: Any, positions: Any, size: Any, shape: list[int]) -> Any:
    """Rows `[t, W]` at positions `[t, 2]` of zeros, `[n, l, *shape]`."""
    texts, tokens = tf.unstack(size)
    padded = tf.scatter_nd(positions, rows, tf.cast([texts, tokens, rows.shape[-1]], positions.dtype))
    return tf.reshape(padded, [texts, tokens, *shape])
