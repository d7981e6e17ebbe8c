"""ScaNN: a tree, anisotropic hashing and exact reordering. Its ops are not in a stock TF Serving."""

from typing import Any

import numpy as np
import tensorflow as tf
from scann import scann_ops

from q2s_tf.cli import console
from q2s_tf.index.effort import choose_effort, draw_sample
from q2s_tf.index.rows import REFUSED, Accept, Found, best_rows, score_rows

MIN_DOCUMENTS = 1_000
LEAVES_PER_ROOT = 2
"""Leaves are this many times √N: at a million documents twice √N was a fifth faster for the same recall."""
REORDERS = (2, 3, 5, 10)
"""Rows reordered exactly, as multiples of k, that are tried."""
HASHED_PER_REORDERED = 45
"""Hashed rows that are scored in the time of one exact row (measured at 1M x 128: 3.6 and 160 ns)."""
STATE = (
    "scann_config",
    "serialized_partitioner",
    "datapoint_to_token",
    "ah_codebook",
    "hashed_dataset",
    "int8_dataset",
    "int8_multipliers",
    "dp_norms",
    "dataset",
)
"""The variables of a serialised searcher, in the order that ScaNN makes one from."""
OVERFETCH = 4
"""Rows fetched, as a multiple of k, where some may be refused."""


class ScannIndex(tf.Module):
    """The approximate nearest documents by ScaNN's TensorFlow ops.

    Args:
        searcher: the module that a ScaNN searcher is serialised to.
        parameters: for the manifest; `partitions`, `default_effort` and `reorder` are used here.

    Source: Guo et al., Accelerating Large-Scale Inference with Anisotropic Vector Quantization, ICML 2020.
    """

    def __init__(self, searcher: tf.Module, parameters: dict[str, Any]):
        super().__init__(name="scann_index")
        self.searcher = searcher
        self.parameters = parameters
        self.default_effort = int(parameters.get("default_effort", 1))
        self.reorder = int(parameters.get("reorder", REORDERS[0]))

    def search(self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor, accept: Accept | None = None) -> Found:
        """The best documents of each query; `reorder` times k, and at least 100, are scored exactly.

        Args:
            queries: unit vectors `[B, D]`.
            k: int32 `[]`.
            effort: int32 `[]`, leaves searched, cut to between 1 and all.
            accept: which rows may be found, out of `OVERFETCH` times k; all of them when None.

        Returns:
            Scores float32 `[B, K]`, falling, and rows int32 `[B, K]`, K = min(k, N); −1 and −1 where there is none.
        """
        count = tf.shape(self.searcher.dataset)[0]
        k = tf.minimum(k, count)
        fetched = k if accept is None else tf.minimum(OVERFETCH * k, count)
        leaves = tf.clip_by_value(effort, 1, self.parameters["partitions"])
        reorder = tf.minimum(tf.maximum(tf.maximum(self.reorder * k, 100), fetched), count)
        # The op builds the searcher from the variables at its first call and finds it by its name after that.
        searcher = scann_ops.searcher_from_module(self.searcher)
        rows, scores = tf.cond(
            tf.shape(queries)[0] > 0,
            lambda: tuple(searcher.search_batched(queries, fetched, reorder, leaves)),
            lambda: (tf.zeros([0, fetched], tf.int32), tf.zeros([0, fetched])),  # ScaNN refuses an empty batch
        )
        rows, scores = tf.ensure_shape(rows, [None, None]), tf.ensure_shape(scores, [None, None])
        scores = tf.where(tf.math.is_finite(scores), scores, REFUSED)
        return best_rows(scores, k, tf.maximum(rows, 0), accept)

    def score(self, query: tf.Tensor, rows: tf.Tensor | None = None) -> tf.Tensor:
        """The cosines `[C]` of one query `[D]` to the given rows `[C]`, to all of them when None."""
        embeddings = self.searcher.dataset
        if rows is None:
            return tf.linalg.matvec(embeddings, query)
        return score_rows(lambda some: tf.linalg.matvec(tf.gather(embeddings, some), query), rows, embeddings.shape[1])


def build_scann(
    embeddings: np.ndarray, seed: int, recall: float, queries: np.ndarray | None = None
) -> tuple[ScannIndex, np.ndarray]:
    """Trains ScaNN and chooses leaves searched and rows reordered for a recall.

    Of the pairs that reach it, the one with the least work is taken: an exact row counts as `HASHED_PER_REORDERED`.

    Args:
        embeddings: unit vectors `[N, D]`, at least `MIN_DOCUMENTS` of them.
        seed: of the sample.
        recall: of the exact top 100, for the sample of `draw_sample`.
        queries: real queries for the sample, unit vectors `[Q, D]`.

    Returns:
        The index, and which of the embeddings each of its rows is, `[N]`: its place.
    """
    leaves = max(1, round(LEAVES_PER_ROOT * len(embeddings) ** 0.5))
    with console.status(f"training ScaNN with {leaves:,} leaves"):
        builder = scann_ops.builder(np.ascontiguousarray(embeddings, np.float32), 10, "dot_product")
        builder = builder.tree(
            leaves,
            max(1, leaves // 20),
            training_sample_size=min(len(embeddings), 64 * leaves),
            spherical=True,
        )
        builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100)
        searcher = builder.build().serialize_to_module()
    index = ScannIndex(searcher, {"partitions": leaves})
    with console.status("choosing the effort"):
        sample = draw_sample(embeddings, seed, queries)
        tried = []
        for index.reorder in REORDERS:
            effort, measured = choose_effort(index.search, sample, leaves, recall)
            work = effort * len(embeddings) / leaves + HASHED_PER_REORDERED * index.reorder * sample.nearest.shape[1]
            tried.append((measured < recall, work, effort, index.reorder, measured))
    _, _, index.default_effort, index.reorder, measured = min(tried)
    index.parameters = {
        "kind": "scann",
        "partitions": leaves,
        "default_effort": index.default_effort,
        "reorder": index.reorder,
        "target_recall": recall,
        "sample": "documents with noise" if queries is None else "queries",
        "sample_recall_at_100": measured,
    }
    return index, np.arange(len(embeddings), dtype=np.int32)
