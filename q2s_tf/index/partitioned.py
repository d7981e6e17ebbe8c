"""Partitions around k-means centres, in core TensorFlow ops alone: it runs on a stock TF Serving."""

import numpy as np
import tensorflow as tf
from sklearn.cluster import MiniBatchKMeans

TARGET_RECALL = 0.95
SAMPLE = 256


class PartitionedIndex(tf.Module):
    """The documents of the `effort` partitions whose centres are nearest to the query, scored exactly.

    Rows are kept sorted by partition, so that a partition is a range and the scan one gather.

    Args:
        embeddings: unit vectors `[N, D]`; a document's place is its row.
        seed: of the clustering.

    Attributes:
        default_effort: the least power of two of partitions that finds `TARGET_RECALL` of the exact top 100 of a sample
            of documents taken as queries.
        parameters: for the manifest.
    """

    def __init__(self, embeddings: np.ndarray, seed: int):
        super().__init__(name="partitioned_index")
        count = max(1, round(len(embeddings) ** 0.5))
        clusters = MiniBatchKMeans(count, random_state=seed, batch_size=max(1_024, 4 * count), n_init=1, max_iter=20)
        partition = clusters.fit_predict(embeddings)
        order = np.argsort(partition, kind="stable")
        ends = np.cumsum(np.bincount(partition, minlength=count))
        self.centres = tf.Variable(clusters.cluster_centers_.astype(np.float32), trainable=False, name="centres")
        self.embeddings = tf.Variable(embeddings[order], trainable=False, name="embeddings")
        self.rows = tf.Variable(order.astype(np.int32), trainable=False, name="rows")
        self.ends = tf.Variable(ends.astype(np.int32), trainable=False, name="ends")
        self.default_effort, recall = self._choose_effort(embeddings, seed)
        self.parameters: dict[str, float | int | str] = {
            "kind": "partitioned",
            "partitions": count,
            "default_effort": self.default_effort,
            "sample_recall_at_100": recall,
        }

    def search(self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The best documents of the nearest partitions of each query.

        Args:
            queries: unit vectors `[B, D]`.
            k: int32 `[]`, how many; fewer come back when the partitions searched hold fewer.
            effort: int32 `[]`, partitions searched, cut to between 1 and all.

        Returns:
            Scores float32 `[B, K]`, falling, and rows int32 `[B, K]`; a place without a document has −1 and row −1.
        """
        effort = tf.clip_by_value(effort, 1, tf.shape(self.centres)[0])
        chosen = tf.math.top_k(tf.matmul(queries, self.centres, transpose_b=True), effort, sorted=False).indices
        ends = tf.gather(self.ends, chosen)
        starts = tf.where(chosen > 0, tf.gather(self.ends, tf.maximum(chosen - 1, 0)), 0)
        ranges = tf.ragged.range(tf.reshape(starts, [-1]), tf.reshape(ends, [-1])).values
        sizes = tf.reduce_sum(ends - starts, axis=1)
        query = tf.repeat(tf.range(tf.shape(queries)[0]), sizes)
        products = tf.gather(self.embeddings, ranges) * tf.gather(queries, query)
        lengths = tf.RaggedTensor.from_row_lengths
        scores = lengths(tf.reduce_sum(products, axis=1), sizes, validate=False).to_tensor(-1.0)
        candidates = lengths(tf.gather(self.rows, ranges), sizes, validate=False).to_tensor(-1)
        best = tf.math.top_k(scores, tf.minimum(k, tf.shape(scores)[1]))
        return best.values, tf.gather(candidates, best.indices, batch_dims=1)

    def _choose_effort(self, embeddings: np.ndarray, seed: int) -> tuple[int, float]:
        sample = embeddings[np.random.default_rng(seed).permutation(len(embeddings))[:SAMPLE]]
        k = min(100, len(embeddings))
        exact = np.argpartition(-(sample @ embeddings.T), k - 1, axis=1)[:, :k]
        effort, recall = 1, 0.0
        while True:
            found = self.search(tf.constant(sample), tf.constant(k), tf.constant(effort))[1].numpy()
            shares = [len(np.intersect1d(a, b)) / k for a, b in zip(exact, found, strict=True)]
            recall = float(np.mean(shares))
            if recall >= TARGET_RECALL or effort >= self.centres.shape[0]:
                return effort, recall
            effort = min(2 * effort, self.centres.shape[0])
