"""The interface of all kinds of index, and the exact index, which scores every document."""

from typing import Any

import numpy as np
import tensorflow as tf

from q2s_tf.index.search_ops import RowFilter, ScoredRows, top_rows

MAX_GATHERED = 2**22
"""Numbers of candidate rows that are gathered at a time, 16 MB. The operating system hands out more memory page by page
at each request: 80,000 rows of 128 numbers took 34 ms at once, and 8 ms in chunks."""


class Index(tf.Module):
    """A nearest-neighbour index over unit vectors, as graph ops.

    Args:
        parameters: Facts for the manifest, `kind` and `default_effort` among them.

    Attributes:
        embeddings: Rows `[N, D]`, in any dtype.
        scales: float32 `[N]`, by which the scores of the rows are multiplied; None for 1.
    """

    embeddings: tf.Variable
    scales: tf.Variable | None = None

    def __init__(self, parameters: dict[str, Any]):
        super().__init__(name="index")
        self.parameters = parameters

    @property
    def default_effort(self) -> int:
        """The effort of requests that give none."""
        return int(self.parameters.get("default_effort", 1))

    def search(
        self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor, row_filter: RowFilter | None = None
    ) -> ScoredRows:
        """Find the nearest documents of each query.

        Args:
            queries: Unit vectors `[B, D]`.
            k: int32 `[]`, documents for each query.
            effort: int32 `[]`, partitions to search, clipped to between 1 and all; the exact index ignores it.
            row_filter: Which rows may be returned; None for all.

        Returns:
            Scores float32 `[B, K]` in falling order and rows int32 `[B, K]`, K = min(k, N). Both are −1 where there is
            no document.
        """
        raise NotImplementedError

    def score(self, query: tf.Tensor, rows: tf.Tensor | None = None) -> tf.Tensor:
        """Compute the cosines `[C]` of one query `[D]` to rows int32 `[C]`, or to all rows when None."""
        if rows is None:
            return _product(query, self.embeddings, self.scales)
        chunk, count = max(1, MAX_GATHERED // self.embeddings.shape[1]), tf.shape(rows)[0]

        def score_some(some: tf.Tensor) -> tf.Tensor:
            scales = None if self.scales is None else tf.gather(self.scales, some)
            return _product(query, tf.gather(self.embeddings, some), scales)

        def score_chunks() -> tf.Tensor:
            chunks = tf.reshape(tf.pad(rows, [[0, -count % chunk]]), [-1, chunk])
            spec = tf.TensorSpec([chunk], tf.float32)
            scores = tf.map_fn(score_some, chunks, fn_output_signature=spec, parallel_iterations=1)
            return tf.reshape(scores, [-1])[:count]

        return tf.cond(count <= chunk, lambda: score_some(rows), score_chunks)

    def stored_embeddings(self) -> np.ndarray:
        """Return the rows as float32 `[N, D]`, in the precision of their storage."""
        rows = self.embeddings.numpy().astype(np.float32)
        return rows if self.scales is None else rows * self.scales.numpy()[:, np.newaxis]


class ExactIndex(Index):
    """All cosines by one matrix product.

    Args:
        embeddings: Unit vectors `[N, D]`.
    """

    def __init__(self, embeddings: np.ndarray):
        super().__init__({"kind": "exact", "default_effort": 1})
        self.embeddings = tf.Variable(embeddings, trainable=False, name="embeddings")

    def search(
        self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor, row_filter: RowFilter | None = None
    ) -> ScoredRows:
        """Score all rows; see `Index.search`."""
        return top_rows(tf.matmul(queries, self.embeddings, transpose_b=True), k, None, row_filter)


def _product(query: tf.Tensor, embeddings: tf.Tensor, scales: tf.Tensor | None) -> tf.Tensor:
    """The cosines `[C]` of a query `[D]` to stored rows `[C, D]`."""
    scores = tf.matmul(query[tf.newaxis], tf.cast(embeddings, tf.float32), transpose_b=True)[0]
    return scores if scales is None else scores * scales
