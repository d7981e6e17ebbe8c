"""What the kinds of index and the retriever share: the best rows among scored ones, and one query at a time."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Accept = Callable[[tf.Tensor], tf.Tensor]
"""Which rows may be found: int32 rows of any shape to booleans of that shape."""
Found = tuple[tf.Tensor, tf.Tensor]
"""Scores float32, falling, and rows int32; −1 and −1 where there is no document."""
CHUNK = 2**22
"""Numbers of candidates that are gathered at a time, 16 MB."""
REFUSED = -2.0
"""The score of a row that may not be found: under every cosine."""


def best_rows(scores: tf.Tensor, k: tf.Tensor, rows: tf.Tensor | None = None, accept: Accept | None = None) -> Found:
    """The k highest scores among the rows that are accepted.

    Args:
        scores: `[C]` or `[B, C]`; `REFUSED` or less stands for no document.
        k: int32 `[]`.
        rows: int32, the row of each score, of the shape of the scores; their places when None.
        accept: which rows may be found; all of them when None.

    Returns:
        Scores and rows, `[K]` or `[B, K]` with K = min(k, C).
    """
    count = tf.shape(scores)[-1]
    if accept is not None:
        scores = tf.where(accept(tf.range(count) if rows is None else rows), scores, REFUSED)
    best = tf.math.top_k(scores, tf.minimum(k, count))
    found = best.indices if rows is None else tf.gather(rows, best.indices, batch_dims=rows.shape.rank - 1)
    there = best.values > REFUSED
    return tf.where(there, best.values, -1.0), tf.where(there, found, -1)


def pad_rows(found: Found, k: tf.Tensor) -> Found:
    """Scores and rows `[K]` or `[B, K]`, K ≤ k, with −1 and −1 at their end up to k."""
    scores, rows = found
    missing = [0, k - tf.shape(scores)[-1]]
    short = [missing] if scores.shape.rank == 1 else [[0, 0], missing]
    return tf.pad(scores, short, constant_values=-1.0), tf.pad(rows, short, constant_values=-1)


def each_query(find: Callable[[Any], Found], elements: Any, k: tf.Tensor) -> Found:
    """One query after the other, so that the candidates of a whole batch never fill the memory.

    Args:
        find: from the elements of one query to scores and rows `[k]`.
        elements: a structure of tensors `[B, …]`, the first of them in two dimensions or more.
        k: int32 `[]`.

    Returns:
        Scores and rows `[B, k]`.
    """
    specs = (tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.int32))
    count = tf.shape(elements[0])[0]

    def find_only() -> Found:
        scores, rows = find(tf.nest.map_structure(lambda tensor: tensor[0], elements))
        return scores[tf.newaxis], rows[tf.newaxis]

    def find_each() -> Found:
        return tf.cond(
            count > 0,
            lambda: tf.map_fn(find, elements, fn_output_signature=specs, parallel_iterations=1),
            lambda: (tf.zeros([0, k]), tf.zeros([0, k], tf.int32)),  # a map over nothing knows no k
        )

    # A loop costs the single query, which most requests hold, half as much again.
    return tf.cond(count == 1, find_only, find_each)


def score_rows(score: Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor, dimension: int) -> tf.Tensor:
    """The scores `[C]` of rows `[C]`, at most `CHUNK` numbers gathered at a time.

    Memory for more is handed out page by page each time: 80,000 rows of 128 took 34 ms at once, and 8 in chunks.

    Args:
        score: gathers and scores some rows.
        rows: int32 `[C]`.
        dimension: numbers in a row.
    """
    chunk, count = max(1, CHUNK // dimension), tf.shape(rows)[0]

    def score_chunks() -> tf.Tensor:
        chunks = tf.reshape(tf.pad(rows, [[0, -count % chunk]]), [-1, chunk])
        spec = tf.TensorSpec([chunk], tf.float32)
        return tf.reshape(tf.map_fn(score, chunks, fn_output_signature=spec, parallel_iterations=1), [-1])[:count]

    return tf.cond(count <= chunk, lambda: score(rows), score_chunks)
