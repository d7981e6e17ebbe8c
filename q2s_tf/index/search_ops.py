"""Graph ops that the kinds of index and the retriever share: top-k over scored rows, one query at a time."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

RowFilter = Callable[[tf.Tensor], tf.Tensor]
"""From int32 rows of any shape to booleans of that shape: which rows may be returned."""
ScoredRows = tuple[tf.Tensor, tf.Tensor]
"""Scores float32 in falling order, and rows int32. Where there is no document, both are −1."""
EXCLUDED = -2.0
"""The score of a row that may not be returned; it is below every cosine."""


def top_rows(
    scores: tf.Tensor, k: tf.Tensor, rows: tf.Tensor | None = None, row_filter: RowFilter | None = None
) -> ScoredRows:
    """Select the k highest scores among the rows that the filter accepts.

    Args:
        scores: `[C]` or `[B, C]`. Scores of `EXCLUDED` or less stand for no document.
        k: int32 `[]`.
        rows: int32, the row of each score, in the shape of the scores. None: the position of the score.
        row_filter: None to accept all rows.

    Returns:
        Scores and rows, `[K]` or `[B, K]` with K = min(k, C).
    """
    count = tf.shape(scores)[-1]
    if row_filter is not None:
        scores = tf.where(row_filter(tf.range(count) if rows is None else rows), scores, EXCLUDED)
    best = tf.math.top_k(scores, tf.minimum(k, count))
    best_rows = best.indices if rows is None else tf.gather(rows, best.indices, batch_dims=rows.shape.rank - 1)
    present = best.values > EXCLUDED
    return tf.where(present, best.values, -1.0), tf.where(present, best_rows, -1)


def pad_rows(scored: ScoredRows, k: tf.Tensor) -> ScoredRows:
    """Pad scores and rows `[K]` or `[B, K]`, K ≤ k, with −1 up to k."""
    scores, rows = scored
    missing = [0, k - tf.shape(scores)[-1]]
    padding = [missing] if scores.shape.rank == 1 else [[0, 0], missing]
    return tf.pad(scores, padding, constant_values=-1.0), tf.pad(rows, padding, constant_values=-1)


def map_queries(search: Callable[[Any], ScoredRows], elements: Any, k: tf.Tensor) -> ScoredRows:
    """Search for one query after the other, so that memory holds the candidates of one query only.

    Args:
        search: From the elements of one query to scores and rows `[k]`.
        elements: A structure of tensors `[B, …]`.
        k: int32 `[]`.
    """
    specs = (tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.int32))
    count = tf.shape(elements[0])[0]

    def search_single() -> ScoredRows:
        scores, rows = search(tf.nest.map_structure(lambda tensor: tensor[0], elements))
        return scores[tf.newaxis], rows[tf.newaxis]

    def search_each() -> ScoredRows:
        return tf.cond(
            count > 0,
            lambda: tf.map_fn(search, elements, fn_output_signature=specs, parallel_iterations=1),
            lambda: (tf.zeros([0, k]), tf.zeros([0, k], tf.int32)),  # map_fn over no element does not know k
        )

    # Most requests hold a single query, and a loop makes that one 1.5 times as slow.
    return tf.cond(count == 1, search_single, search_each)
