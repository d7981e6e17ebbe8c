"""ScaNN: a tree, anisotropic hashing and exact reordering. Its ops are not in a stock TF Serving."""

import numpy as np
import tensorflow as tf
from scann import scann_ops


class ScannIndex(tf.Module):
    """The approximate nearest documents by ScaNN's TensorFlow ops.

    Args:
        embeddings: unit vectors `[N, D]`, at least `MIN_DOCUMENTS` of them; a document's place is its row.

    Attributes:
        default_effort: leaves searched when a request gives no `effort`.
        parameters: for the manifest.

    Source: Guo et al., Accelerating Large-Scale Inference with Anisotropic Vector Quantization, ICML 2020.
    """

    MIN_DOCUMENTS = 1_000

    def __init__(self, embeddings: np.ndarray):
        super().__init__(name="scann_index")
        leaves = max(1, round(len(embeddings) ** 0.5))
        self.default_effort = max(1, leaves // 20)
        builder = scann_ops.builder(embeddings, 10, "dot_product")
        builder = builder.tree(leaves, self.default_effort, training_sample_size=min(len(embeddings), 250_000))
        builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100)
        self.searcher = builder.build().serialize_to_module()
        self.count = len(embeddings)
        self.parameters: dict[str, float | int | str] = {
            "kind": "scann",
            "partitions": leaves,
            "default_effort": self.default_effort,
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
        leaves = tf.clip_by_value(effort, 1, self.parameters["partitions"])
        reorder = tf.minimum(tf.maximum(3 * k, 100), self.count)
        # The op builds the searcher from the variables at its first call and finds it by its name after that.
        searcher = scann_ops.searcher_from_module(self.searcher)
        rows, scores = searcher.search_batched(
            queries, final_num_neighbors=k, pre_reorder_num_neighbors=reorder, leaves_to_search=leaves
        )
        there = tf.math.is_finite(scores)
        return tf.where(there, scores, -1.0), tf.where(there, tf.cast(rows, tf.int32), -1)
