"""Partitions around k-means centres, in core TensorFlow ops alone: it runs on a stock TF Serving."""

from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.cluster import KMeans

from q2s_tf.cli import console, track
from q2s_tf.index.effort import choose_effort, draw_sample
from q2s_tf.index.rows import Accept, Found, best_rows, each_query, pad_rows, score_rows

STORAGES = ("float32", "bfloat16", "int8")
PARTITIONS_PER_ROOT = 4
"""Partitions are this many times √N: those of √N need twice the rows for the same recall."""
LEAST_ROWS = 16
"""Documents a partition, on average, at least: what a small catalogue is cut into."""
TRAINING_ROWS = 32
"""Documents that k-means sees for each centre."""
CHUNK = 8_192


class PartitionedIndex(tf.Module):
    """The documents of the `effort` partitions whose centres are nearest to the query, each scored.

    Rows are sorted by partition, so that a partition is a range and the scan one gather. In float32 the scores are
    exact. In bfloat16 (half the memory) and int8 (a quarter; each row times its own scale) the rounded rows are all
    that is kept, and the scores are theirs.

    Args:
        centres: unit vectors `[P, D]`.
        starts: int32 `[P + 1]`, where each partition's rows start, and the number of rows.
        embeddings: rows `[N, D]` in their storage, by partition.
        scales: float32 `[N]` of int8 rows, else None.
        parameters: for the manifest; its `default_effort` is what `effort` is when a request gives none.
    """

    def __init__(
        self,
        centres: np.ndarray,
        starts: np.ndarray,
        embeddings: np.ndarray,
        scales: np.ndarray | None,
        parameters: dict[str, Any],
    ):
        super().__init__(name="partitioned_index")
        self.centres = tf.Variable(centres, trainable=False, name="centres")
        self.starts = tf.Variable(starts, trainable=False, name="starts")
        self.embeddings = tf.Variable(embeddings, trainable=False, name="embeddings")
        self.scales = None if scales is None else tf.Variable(scales, trainable=False, name="scales")
        self.parameters = parameters
        self.default_effort = int(parameters.get("default_effort", 1))

    def search(self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor, accept: Accept | None = None) -> Found:
        """The best documents of the nearest partitions of each query.

        Args:
            queries: unit vectors `[B, D]`.
            k: int32 `[]`, how many, cut to N.
            effort: int32 `[]`, partitions searched, cut to between 1 and all.
            accept: which rows may be found; all of them when None.

        Returns:
            Scores float32 `[B, K]`, falling, and rows int32 `[B, K]`; a place without a document has −1 and row −1.
        """
        effort = tf.clip_by_value(effort, 1, tf.shape(self.centres)[0])
        k = tf.minimum(k, tf.shape(self.embeddings)[0])
        chosen = tf.math.top_k(tf.matmul(queries, self.centres, transpose_b=True), effort, sorted=False).indices

        def search_one(each: tuple[tf.Tensor, tf.Tensor]) -> Found:
            return pad_rows(self._scan(each[0], each[1], k, accept), k)

        return each_query(search_one, (queries, chosen), k)

    def score(self, query: tf.Tensor, rows: tf.Tensor | None = None) -> tf.Tensor:
        """The cosines `[C]` of one query `[D]` to the given rows `[C]`, to all of them when None."""
        if rows is not None:
            return score_rows(
                lambda some: _product(
                    query,
                    tf.gather(self.embeddings, some),
                    None if self.scales is None else tf.gather(self.scales, some),
                ),
                rows,
                self.centres.shape[1],
            )
        return _product(query, self.embeddings, self.scales)

    def _scan(self, query: tf.Tensor, chosen: tf.Tensor, k: tf.Tensor, accept: Accept | None) -> Found:
        """The best documents of the chosen partitions for one query `[D]`: at most k scores and rows."""
        limits = tf.gather(self.starts, chosen + 1)
        # The op itself: `tf.ragged.range` wraps it in more ops, and every op counts for one query.
        rows = tf.raw_ops.RaggedRange(starts=tf.gather(self.starts, chosen), limits=limits, deltas=1).rt_dense_values
        return best_rows(self.score(query, rows), k, rows, accept)


def build_partitioned(
    embeddings: np.ndarray, seed: int, recall: float, storage: str = "float32", queries: np.ndarray | None = None
) -> tuple[PartitionedIndex, np.ndarray]:
    """Partitions a catalogue and chooses the default effort for a recall.

    Args:
        embeddings: unit vectors `[N, D]`.
        seed: of the clustering and of the sample.
        recall: of the exact top 100, for the sample of `draw_sample`.
        storage: one of `STORAGES`.
        queries: real queries for the sample, unit vectors `[Q, D]`.

    Returns:
        The index, and which of the embeddings each of its rows is, `[N]`.
    """
    count = max(1, min(round(PARTITIONS_PER_ROOT * len(embeddings) ** 0.5), len(embeddings) // LEAST_ROWS))
    centres = _find_centres(embeddings, count, seed)
    chunks = range(0, len(embeddings), CHUNK)
    nearest = [
        np.argmax(embeddings[start : start + CHUNK] @ centres.T, axis=1)
        for start in track(chunks, f"sorting documents into {count:,} partitions")
    ]
    partition = np.concatenate(nearest)
    order = np.argsort(partition, kind="stable").astype(np.int32)
    starts = np.append(0, np.cumsum(np.bincount(partition, minlength=count))).astype(np.int32)
    ordered = embeddings[order]
    rows, scales = _store(ordered, storage)
    index = PartitionedIndex(centres, starts, rows, scales, {})
    with console.status("choosing the effort"):
        index.default_effort, measured = choose_effort(index.search, draw_sample(ordered, seed, queries), count, recall)
    index.parameters = {
        "kind": "partitioned",
        "storage": storage,
        "partitions": count,
        "default_effort": index.default_effort,
        "target_recall": recall,
        "sample": "documents with noise" if queries is None else "queries",
        "sample_recall_at_100": measured,
    }
    return index, order


def _product(query: tf.Tensor, embeddings: tf.Tensor, scales: tf.Tensor | None) -> tf.Tensor:
    """The cosines `[C]` of a query `[D]` to stored rows `[C, D]`."""
    scores = tf.matmul(query[tf.newaxis], tf.cast(embeddings, tf.float32), transpose_b=True)[0]
    return scores if scales is None else scores * scales


def _find_centres(embeddings: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Unit vectors `[P, D]` by k-means on a sample: the nearest by cosine, so that long centres draw no queries."""
    chosen = np.random.default_rng(seed).permutation(len(embeddings))[: TRAINING_ROWS * count]
    clusters = KMeans(count, init="random", n_init=1, max_iter=8, random_state=seed)
    with console.status(f"finding the centres of {count:,} partitions"):
        centres = clusters.fit(embeddings[np.sort(chosen)]).cluster_centers_
    return (centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _store(embeddings: np.ndarray, storage: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows as they are kept, and the scales of int8 ones."""
    if storage != "int8":
        return embeddings.astype(tf.as_dtype(storage).as_numpy_dtype), None
    scales = np.maximum(np.abs(embeddings).max(axis=1), 1e-12) / 127
    return np.round(embeddings / scales[:, np.newaxis]).astype(np.int8), scales.astype(np.float32)
