"""ScaNN: a tree, anisotropic hashing and exact reordering. Its ops are not in a stock TF Serving."""

import numpy as np
import tensorflow as tf
from scann import scann_ops

from q2s_tf.index.effort import choose_effort


class ScannIndex(tf.Module):
    """The approximate nearest documents by ScaNN's TensorFlow ops.

    Args:
        embeddings: unit vectors `[N, D]`, at least `MIN_DOCUMENTS` of them; a document's place is its row.
        seed: of the sample that the default effort is chosen on.

    Attributes:
        default_effort: enough leaves for the recall that `choose_effort` asks for.
        parameters: for the manifest.

    Source: Guo et al., Accelerating Large-Scale Inference with Anisotropic Vector Quantization, ICML 2020.
    """

    MIN_DOCUMENTS = 1_000

    def __init__(self, embeddings: np.ndarray, seed: int):
        super().__init__(name="scann_index")
        leaves = max(1, round(len(embeddings) ** 0.5))
        builder = scann_ops.builder(embeddings, 10, "dot_product")
        builder = builder.tree(leaves, max(1, leaves // 20), training_sample_size=min(len(embeddings), 250_000))
        builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100)
        self.searcher = builder.build().serialize_to_module()
        self.count, self.leaves = embeddings.shape[0], leaves
        self.default_effort, recall = choose_effort(self.search, embeddings, leaves, seed)
        self.parameters: dict[str, float | int | str] = {
            "kind": "scann",
            "partitions": leaves,
            "default_effort": self.default_effort,
            "sample_recall_at_100": recall,
        }

    def search(self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The best documents of each query; three times k, and at least 100, are reordered exactly.

        Args:
            queries: unit vectors `[B, D]`.
            k: int32 `[]`.
            effort: int32 `[]`, leaves searched, cut to between 1 and all.

        Returns:
            Scores float32 `[B, K]`, falling, and rows int32 `[B, K]`, K = min(k, N); −1 and −1 where there is none.
        """
        k = tf.minimum(k, self.count)
        leaves = tf.clip_by_value(effort, 1, self.leaves)
        reorder = tf.minimum(tf.maximum(3 * k, 100), self.count)
        # The op builds the searcher from the variables at its first call and finds it by its name after that.
        searcher = scann_ops.searcher_from_module(self.searcher)
        rows, scores = tf.cond(
            tf.shape(queries)[0] > 0,
            lambda: tuple(searcher.search_batched(queries, k, reorder, leaves)),
            lambda: (tf.zeros([0, k], tf.int32), tf.zeros([0, k])),  # ScaNN refuses an empty batch
        )
        rows, scores = tf.ensure_shape(rows, [None, None]), tf.ensure_shape(scores, [None, None])
        there = tf.math.is_finite(scores)
        return tf.where(there, scores, -1.0), tf.where(there, rows, -1)
