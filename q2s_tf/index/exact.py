"""Every document scored: for small catalogues, and as the oracle of the other kinds."""

import numpy as np
import tensorflow as tf


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
        self.default_effort = 1
        self.parameters: dict[str, float | int | str] = {"kind": "exact"}

    def search(self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor) -> tf.Tensor:
        """The best documents of each query.

        Args:
            queries: unit vectors `[B, D]`.
            k: int32 `[]`, how many; fewer come back when the catalogue is smaller.
            effort: int32 `[]`, not used.

        Returns:
            Scores float32 `[B, K]`, falling, and rows int32 `[B, K]`, K = min(k, N).
        """
        scores = tf.matmul(queries, self.embeddings, transpose_b=True)
        return tf.math.top_k(scores, tf.minimum(k, tf.shape(scores)[1]))
