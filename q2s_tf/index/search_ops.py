"""Graph ops that the kinds of index and the retriever share: the best rows of a query, and a batch in parts."""

from collections.abc import Callable, Sequence

import tensorflow as tf

ScoredRows = tuple[tf.Tensor, tf.Tensor]
"""Scores float32 `[B, k]` in falling order, and rows int32 `[B, k]`. Where there is no document, both are −1."""
EXCLUDED = -2.0
"""The score of a row that may not be returned; it is below every cosine."""
COLLAPSE_MULTIPLE = 4
"""Rows that are sorted first, as a multiple of k, to find k groups. If they hold fewer groups, all rows are sorted."""


def gather(values: tf.Variable | tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Read rows of a variable of numbers, all of whose reads share its memory.

    `tf.gather` of a variable is an op after whose first use every other read of the variable copies it as a whole. A
    search with ScaNN, which reads all embeddings, then took 50 ms for 100,000 documents in place of 1 ms.
    """
    return tf.gather(tf.convert_to_tensor(values), rows)


def best_rows(
    scores: tf.Tensor,
    k: tf.Tensor,
    rows: tf.Tensor | None = None,
    groups: tf.Tensor | None = None,
    repeated: tf.Tensor | None = None,
) -> ScoredRows:
    """Select the k highest scores of each query.

    Args:
        scores: `[B, C]`. Scores of `EXCLUDED` or less stand for no document.
        k: int32 `[]`.
        rows: int32 `[C]`, the row of each score. None: the position of the score.
        groups: int64 `[C]`, the group of each score, to return only the best of each group. B must be 1 then.
        repeated: int32 `[]`. At most so many rows are a repetition of another one, with the same score; each row is
            returned once. B must be 1 then. None: no row is repeated.

    Returns:
        Scores and rows `[B, k]`.
    """
    if groups is not None:
        values, positions = _sort_groups(scores, k, groups)  # a repetition is of the same group
    elif rows is not None and repeated is not None:
        values, positions = _first_of_groups(scores, k, rows, tf.minimum(k + repeated, tf.shape(scores)[1]))
    else:
        values, positions = _sort(scores, k)
    present = values > EXCLUDED
    best = positions if rows is None else tf.gather(rows, positions)
    padding = tf.convert_to_tensor([[0, 0], [0, k - tf.shape(values)[1]]])
    values, best = tf.where(present, values, -1.0), tf.where(present, best, -1)
    return tf.pad(values, padding, constant_values=-1.0), tf.pad(best, padding, constant_values=-1)


def _sort(scores: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    best = tf.math.top_k(scores, tf.minimum(k, tf.shape(scores)[1]))
    return best.values, best.indices


def _sort_groups(scores: tf.Tensor, k: tf.Tensor, groups: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The highest score of each of the k best groups, and its position, `[1, K]`."""
    few = tf.minimum(COLLAPSE_MULTIPLE * k, tf.shape(scores)[1])
    best = _first_of_groups(scores, k, groups, few)
    missing = (tf.shape(best[0])[1] < k) & tf.reduce_all(best[0] > EXCLUDED) & (few < tf.shape(scores)[1])
    return tf.cond(missing, lambda: _first_of_groups(scores, k, groups, tf.shape(scores)[1]), lambda: best)


def _first_of_groups(
    scores: tf.Tensor, k: tf.Tensor, groups: tf.Tensor, count: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The highest score of each group, of at most k, among the `count` highest scores, and its position, `[1, K]`."""
    values, positions = _sort(scores, count)
    unique = tf.unique(gather(groups, positions[0]))  # numbered in the order of their first row
    first = tf.math.unsorted_segment_min(tf.range(count), unique.idx, tf.size(unique.y))[:k]
    return tf.gather(values, first, axis=1), tf.gather(positions, first, axis=1)


def select(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """The values `[M]` of a list `[C]` where a mask is true. `tf.boolean_mask` has three times the ops."""
    return tf.gather(values, tf.where(mask)[:, 0])


def map_queries(
    search: Callable[..., tuple[tf.Tensor, ...]],
    elements: Sequence[tf.Tensor],
    at_once: int,
    dtypes: Sequence[tf.DType] = (tf.float32, tf.int32),
) -> tuple[tf.Tensor, ...]:
    """Search for a part of the queries after the other, so that memory holds the scores of one part only.

    Args:
        search: From the elements of `at_once` queries to tensors `[at_once, k]`.
        elements: Tensors `[B, …]`, for example queries and their filters.
        at_once: Queries of a part.
        dtypes: Of the results; those of `ScoredRows` by default.
    """
    count = tf.shape(elements[0])[0]

    def search_parts() -> tuple[tf.Tensor, ...]:
        # The parts share one row of padding, which is also the query of an empty batch.
        padded = [tf.pad(tensor, [[0, 1], *[[0, 0]] * (len(tensor.shape) - 1)]) for tensor in elements]

        def search_part(part: tf.Tensor) -> tuple[tf.Tensor, ...]:
            rows = tf.minimum(at_once * part + tf.range(at_once), count)
            return tuple(search(*(tf.gather(tensor, rows) for tensor in padded)))

        specs = tuple(tf.TensorSpec([at_once, None], dtype) for dtype in dtypes)
        parts = tf.range(tf.maximum(1, -(-count // at_once)))
        found = tf.map_fn(search_part, parts, fn_output_signature=specs, parallel_iterations=1)
        shape, size = tf.stack([-1, tf.shape(found[0])[2]]), tf.stack([count, -1])
        return tuple(tf.slice(tf.reshape(part, shape), [0, 0], size) for part in found)

    # Most requests hold a single query, and a loop makes that one 1.5 times as slow.
    whole = count == 1 if at_once == 1 else count <= at_once
    return tf.cond(whole, lambda: tuple(search(*elements)), search_parts)
