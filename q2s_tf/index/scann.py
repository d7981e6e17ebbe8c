"""ScaNN: a tree, anisotropic hashing and exact reordering. A stock TF Serving does not have its ops."""

from typing import Any

import numpy as np
import tensorflow as tf
from scann import scann_ops

from q2s_tf.cli import console
from q2s_tf.errors import InputError
from q2s_tf.index.blocks import Vectors
from q2s_tf.index.effort import calibrate, draw_sample
from q2s_tf.index.exact import Index

MIN_DOCUMENTS = 1_000
LEAVES_PER_ROOT = 2
"""Leaves per √N. At a million documents, 2 √N leaves were a fifth faster than √N at the same recall."""
REORDERS = (2, 3, 5, 10)
"""Rows that are reordered exactly, as multiples of k, that are tried."""
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
"""The variables of a serialised searcher, in the order in which ScaNN restores them."""


class ScannIndex(Index):
    """The approximate nearest documents by ScaNN's TensorFlow ops.

    At least 100 rows, and the parameter `reorder` times the wanted candidates, are scored exactly.

    Args:
        searcher: The module that a ScaNN searcher is serialised to.
        parameters: Facts for the manifest; `partitions`, `default_effort` and `reorder` are used here.

    Source: Guo et al., Accelerating Large-Scale Inference with Anisotropic Vector Quantization, ICML 2020.
    """

    def __init__(self, searcher: tf.Module, parameters: dict[str, Any]):
        super().__init__(parameters)
        self.searcher = searcher

    @property
    def embeddings(self) -> tf.Variable:  # type: ignore[override]
        """The rows that ScaNN reorders by; a property, so that a checkpoint holds them under `searcher` only."""
        return self.searcher.dataset

    def candidates(self, query: tf.Tensor, count: tf.Tensor, effort: tf.Tensor) -> tf.Tensor:
        """Return the `count` nearest rows of `effort` leaves; see `Index.candidates`."""
        documents = self.embeddings.shape[0]
        count = tf.minimum(count, documents)
        leaves = tf.clip_by_value(effort, 1, self.parameters["partitions"])
        reorder = self.parameters.get("reorder", REORDERS[0])
        reordered = tf.clip_by_value(reorder * count, 100, documents)
        # The op builds the searcher from the variables at its first call, and later finds it by its name.
        searcher = scann_ops.searcher_from_module(self.searcher)
        rows, scores = searcher.search_batched(query, count, reordered, leaves)
        rows, scores = tf.ensure_shape(rows, [None, None]), tf.ensure_shape(scores, [None, None])
        return tf.boolean_mask(rows, tf.math.is_finite(scores))


def build_scann(
    embeddings: Vectors, seed: int, recall: float, queries: np.ndarray | None = None
) -> tuple[ScannIndex, np.ndarray]:
    """Train ScaNN and calibrate it; see `build_index` for the arguments and the result.

    Of the pairs of leaves searched and rows reordered that reach the recall, the one with the least work is taken. An
    exact row counts as `HASHED_PER_REORDERED` hashed ones.

    Raises:
        InputError: There are fewer than `MIN_DOCUMENTS` documents.
    """
    if len(embeddings) < MIN_DOCUMENTS:
        raise InputError(f"index scann: needs {MIN_DOCUMENTS} documents; got {len(embeddings)}: use --index exact")
    leaves = max(1, round(LEAVES_PER_ROOT * len(embeddings) ** 0.5))
    with console.status(f"training ScaNN with {leaves:,} leaves"):
        builder = scann_ops.builder(np.ascontiguousarray(embeddings[:], np.float32), 10, "dot_product")
        training_rows = min(len(embeddings), 64 * leaves)
        builder = builder.tree(leaves, max(1, leaves // 20), training_sample_size=training_rows, spherical=True)
        builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100)
        index = ScannIndex(builder.build().serialize_to_module(), {})
    candidates = []
    with console.status("choosing the effort"):
        sample = draw_sample(embeddings, seed, queries)
        for reorder in REORDERS:
            index.parameters = {"kind": "scann", "partitions": leaves, "reorder": reorder}
            candidates.append(index.parameters | calibrate(index.search, sample, leaves, recall))

    def cost(parameters: dict[str, Any]) -> tuple[bool, float]:
        hashed = parameters["default_effort"] * len(embeddings) / leaves
        reordered = parameters["reorder"] * sample.nearest.shape[1]
        return parameters["sample_recall_at_100"] < recall, hashed + HASHED_PER_REORDERED * reordered

    index.parameters = min(candidates, key=cost)
    return index, np.arange(len(embeddings), dtype=np.int32)
