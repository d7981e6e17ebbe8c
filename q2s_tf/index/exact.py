"""Every document scored: for small catalogues, and as the oracle of the other kinds."""

from typing import Any

import numpy as np
import tensorflow as tf

from q2s_tf.index.rows import Accept, Found, best_rows, score_rows


class ExactIndex(tf.Module):
    """All cosines by one matrix product.

    Args:
        embeddings: unit vectors `[N, D]`; a document's place is its row.

    Attributes:
        default_effort: what `effort` is when a request gives none; it changes nothing here.
        parameters: for the manifest.
    """

    def __init__(self, embeddings: np.ndarray):
        super().__init__(name="exact_index")
        self.embeddings = tf.Variable(embeddings, trainable=False, name="embeddings")
        self.parameters: dict[str, Any] = {"kind": "exact", "default_effort": 1}
        self.default_effort = 1

    def search(self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor, accept: Accept | None = None) -> Found:
        """The best documents of each query.

        Args:
            queries: unit vectors `[B, D]`.
            k: int32 `[]`, how many; fewer come back when the catalogue is smaller.
            effort: int32 `[]`, not used.
            accept: which rows may be found; all of them when None.

        Returns:
            Scores float32 `[B, K]`, falling, and rows int32 `[B, K]`, K = min(k, N); −1 and −1 where there is none.
        """
        scores = tf.matmul(queries, self.embeddings, transpose_b=True)
        return best_rows(scores, k, None, accept)

    def score(self, query: tf.Tensor, rows: tf.Tensor | None = None) -> tf.Tensor:
        """The cosines `[C]` of one query `[D]` to the given rows `[C]`, to all of them when None."""
        embeddings = self.embeddings
        if rows is None:
            return tf.linalg.matvec(embeddings, query)
        return score_rows(lambda some: tf.linalg.matvec(tf.gather(embeddings, some), query), rows, embeddings.shape[1])
