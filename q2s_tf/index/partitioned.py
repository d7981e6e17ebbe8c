"""Partitions around k-means centres, in core TensorFlow ops alone: it runs on a stock TF Serving."""

import numpy as np
import tensorflow as tf
from sklearn.cluster import MiniBatchKMeans

from q2s_tf.index.effort import choose_effort


class PartitionedIndex(tf.Module):
    """The documents of the `effort` partitions whose centres are nearest to the query, scored exactly.

    Rows are kept sorted by partition, so that a partition is a range and the scan one gather.

    Args:
        embeddings: unit vectors `[N, D]`; a document's place is its row.
        seed: of the clustering.

    Attributes:
        default_effort: enough partitions for the recall that `choose_effort` asks for.
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
        self.default_effort, recall = choose_effort(self.search, embeddings, count, seed)
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
            k: int32 `[]`, how many, cut to N.
            effort: int32 `[]`, partitions searched, cut to between 1 and all.

        Returns:
            Scores float32 `[B, K]`, falling, and rows int32 `[B, K]`; a place without a document has −1 and row −1.
        """
        effort = tf.clip_by_value(effort, 1, tf.shape(self.centres)[0])
        k = tf.minimum(k, tf.shape(self.rows)[0])
        chosen = tf.math.top_k(tf.matmul(queries, self.centres, transpose_b=True), effort, sorted=False).indices
        # One query at a time: the candidates of a whole batch would fill the memory.
        specs = (tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.int32))
        return tf.cond(
            tf.shape(queries)[0] > 0,
            lambda: tf.map_fn(
                lambda each: self._scan(each[0], each[1], k),
                (queries, chosen),
                fn_output_signature=specs,
                parallel_iterations=1,
            ),
            lambda: (tf.zeros([0, k]), tf.zeros([0, k], tf.int32)),  # a map over nothing knows no k
        )

    def _scan(self, query: tf.Tensor, chosen: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The k best documents of the chosen partitions for one query `[D]`: scores and rows `[k]`."""
        starts = tf.where(chosen > 0, tf.gather(self.ends, tf.maximum(chosen - 1, 0)), 0)
        places = tf.ragged.range(starts, tf.gather(self.ends, chosen)).values
        scores = tf.linalg.matvec(tf.gather(self.embeddings, places), query)
        best = tf.math.top_k(scores, tf.minimum(k, tf.size(scores)))
        short = [[0, k - tf.size(best.values)]]
        rows = tf.gather(self.rows, tf.gather(places, best.indices))
        return tf.pad(best.values, short, constant_values=-1.0), tf.pad(rows, short, constant_values=-1)
