"""The interface of all kinds of index, and the exact index, which scores every document."""

from typing import Any

import numpy as np
import tensorflow as tf

from q2s_tf.index.search_ops import ScoredRows, best_rows, gather, map_queries

MAX_GATHERED = 2**20
"""Numbers of candidate rows that are gathered at a time, 4 MB, which stay in the cache of a core: 650,000 rows of 128
numbers in int8 took 44 ms, and 92 ms in chunks of 16 MB."""


class Index(tf.Module):
    """A nearest-neighbour index over unit vectors, as graph ops.

    Args:
        parameters: Facts for the manifest, `kind` and `default_effort` among them.

    Attributes:
        embeddings: Rows `[N, D]`, in any dtype.
        scales: float32 `[N]`, by which the scores of the rows are multiplied; None for 1.
        exhaustive: Whether every row is a candidate.
    """

    exhaustive = False
    embeddings: tf.Variable
    scales: tf.Variable | None = None

    def __init__(self, parameters: dict[str, Any]):
        super().__init__(name="index")
        self.parameters = parameters

    @property
    def default_effort(self) -> int:
        """The effort of requests that give none."""
        return int(self.parameters.get("default_effort", 1))

    def candidates(self, query: tf.Tensor, count: tf.Tensor, effort: tf.Tensor) -> tf.Tensor:
        """Find rows that are near to a query.

        Args:
            query: A unit vector `[1, D]`.
            count: int32 `[]`: the `count` nearest rows should be among the candidates.
            effort: int32 `[]`, partitions to search, clipped to between 1 and all; the exact index ignores it.

        Returns:
            Rows int32 `[C]` in any order, each once. The kind of index decides on C.
        """
        raise NotImplementedError

    def score(self, queries: tf.Tensor, rows: tf.Tensor | None = None) -> tf.Tensor:
        """Compute the cosines `[B, C]` of queries `[B, D]` to rows int32 `[C]`, or to all rows when None."""
        if rows is None:
            return _product(queries, self.embeddings, self.scales)
        chunk, count = max(1, MAX_GATHERED // self.embeddings.shape[1]), tf.shape(rows)[0]

        def score_some(some: tf.Tensor) -> tf.Tensor:
            scales = None if self.scales is None else gather(self.scales, some)
            return _product(queries, gather(self.embeddings, some), scales)

        def score_chunks() -> tf.Tensor:
            chunks = tf.reshape(tf.pad(rows, [[0, -count % chunk]]), [-1, chunk])
            spec = tf.TensorSpec([None, chunk], tf.float32)
            scores = tf.map_fn(score_some, chunks, fn_output_signature=spec, parallel_iterations=1)
            return tf.reshape(tf.transpose(scores, [1, 0, 2]), [tf.shape(queries)[0], -1])[:, :count]

        return tf.cond(count <= chunk, lambda: score_some(rows), score_chunks)

    def search(self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor) -> ScoredRows:
        """Find the k nearest rows of queries `[B, D]` with an effort; both int32 `[]`."""

        def search_one(query: tf.Tensor) -> ScoredRows:
            rows = self.candidates(query, k, effort)
            return best_rows(self.score(query, rows), k, rows)

        scores, rows = map_queries(search_one, [queries], at_once=1)
        return scores, rows

    def stored_embeddings(self, rows: np.ndarray) -> np.ndarray:
        """Return rows by their numbers `[R]` as float32 `[R, D]`, in the precision of their storage."""
        embeddings = tf.cast(gather(self.embeddings, rows), tf.float32).numpy()
        return embeddings if self.scales is None else embeddings * gather(self.scales, rows).numpy()[:, np.newaxis]


class ExactIndex(Index):
    """All documents are candidates.

    Args:
        embeddings: Unit vectors `[N, D]`. The variable shares a tensor's memory.
    """

    exhaustive = True

    def __init__(self, embeddings: np.ndarray | tf.Tensor):
        super().__init__({"kind": "exact", "default_effort": 1})
        self.embeddings = tf.Variable(embeddings, trainable=False, name="embeddings")

    def candidates(self, query: tf.Tensor, count: tf.Tensor, effort: tf.Tensor) -> tf.Tensor:
        """Return all rows; see `Index.candidates`."""
        return tf.range(self.embeddings.shape[0])


def _product(queries: tf.Tensor, embeddings: tf.Tensor, scales: tf.Tensor | None) -> tf.Tensor:
    """The cosines `[B, C]` of queries `[B, D]` to stored rows `[C, D]`."""
    scores = tf.matmul(queries, tf.cast(embeddings, tf.float32), transpose_b=True)
    return scores if scales is None else scores * scales
