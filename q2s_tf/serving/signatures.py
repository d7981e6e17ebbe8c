"""The three servables as modules with fixed signatures, built from trained towers and an index.

They track raw `tf.Variable`s: a Keras 3 model that `tf.saved_model.save` tracks cannot be read by the session loader
that TF Serving uses.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from q2s_tf.index import Index
from q2s_tf.towers import Tower

Endpoints = dict[str, Callable[..., dict[str, tf.Tensor]]]

DEFAULT_K = 10
"""What `serving_default`, which takes no `k`, returns."""
MAX_K = 10_000
"""`k` beyond both this and the catalogue's size is cut: what one request may allocate is bounded."""


class TowerServable(tf.Module):
    """One tower as a servable: raw inputs to `embedding` `[B, D]` and `channel_weights` `[B, N]`."""

    def __init__(self, tower: Tower):
        super().__init__(name=tower.name)
        self.tower_variables = raw_variables(tower)
        specs = list(tower.preprocessor.signature().values())
        names = [spec.name for spec in specs]

        def embed(*values: tf.Tensor) -> dict[str, tf.Tensor]:
            return _forward(tower, dict(zip(names, values, strict=True)))

        self.endpoints: Endpoints = {"serving_default": _function(embed, specs)}


class RetrieverServable(tf.Module):
    """Query tower and index of one run: a query to document ids.

    Args:
        tower: the query tower.
        index: over the embeddings of the same run.
        document_ids: by row of the index.
    """

    def __init__(self, tower: Tower, index: Index, document_ids: np.ndarray):
        super().__init__(name="retriever")
        self.tower_variables = raw_variables(tower)
        self.index = index
        # One place more, for "no document": row −1 is read from there.
        self.document_ids = tf.Variable(np.append(document_ids, b""), dtype=tf.string, trainable=False)
        texts = list(tower.preprocessor.signature().values())
        names = [spec.name for spec in texts]
        knobs = [
            tf.TensorSpec([], tf.int32, "k"),
            tf.TensorSpec([], tf.int32, "effort"),
            tf.TensorSpec([], tf.float32, "min_score"),
        ]

        def retrieve(*values: tf.Tensor) -> dict[str, tf.Tensor]:
            embedding = _forward(tower, dict(zip(names, values, strict=False)))["embedding"]
            return self._search(embedding, *values[len(names) :])

        def by_embedding(embedding: tf.Tensor, *values: tf.Tensor) -> dict[str, tf.Tensor]:
            # By the largest number first: the square of a very large or small one is no float32.
            embedding = tf.math.divide_no_nan(embedding, tf.reduce_max(tf.abs(embedding), axis=1, keepdims=True))
            return self._search(tf.math.l2_normalize(embedding, axis=1), *values)

        def serving_default(*values: tf.Tensor) -> dict[str, tf.Tensor]:
            return retrieve(*values, tf.constant(DEFAULT_K), tf.constant(0), tf.constant(-1.0))

        embedding = tf.TensorSpec([None, tower.dimension], tf.float32, "embedding")
        self.endpoints: Endpoints = {
            "serving_default": _function(serving_default, texts),
            "retrieve": _function(retrieve, [*texts, *knobs]),
            "by_embedding": _function(by_embedding, [embedding, *knobs]),
        }

    def _search(
        self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor, min_score: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Ids and scores `[B, k]`; places without a document, or under `min_score`, hold "" and −1.

        An `effort` under 1 is the index's own default. A `k` under 1 is an invalid argument.
        """
        count = self.document_ids.shape[0] - 1
        with tf.control_dependencies([tf.debugging.assert_positive(k, message="k must be at least 1")]):
            k = tf.minimum(k, max(count, MAX_K))
        effort = tf.where(effort < 1, self.index.default_effort, effort)
        scores, rows = self.index.search(queries, k, effort)
        # An all-zero query, one without a single channel, is near to nothing: it finds no document.
        found = (rows >= 0) & (scores >= min_score) & tf.reduce_any(queries != 0, axis=1, keepdims=True)
        short = [[0, 0], [0, tf.maximum(0, k - tf.shape(scores)[1])]]
        rows = tf.pad(tf.where(found, rows, count), short, constant_values=count)
        scores = tf.pad(tf.where(found, scores, -1.0), short, constant_values=-1.0)
        return {"document_id": tf.gather(self.document_ids, rows), "score": scores}


def raw_variables(tower: Tower) -> list[tf.Variable]:
    """The TensorFlow variables behind a tower's weights."""
    return [variable.value for variable in tower.encoder.variables]


def _forward(tower: Tower, inputs: dict[str, tf.Tensor]) -> dict[str, Any]:
    return dict(tower.encoder(tower.preprocessor(inputs), training=False))


def _function(function: Callable[..., Any], specs: list[tf.TensorSpec]) -> Any:
    """A graph function whose arguments, and so the signature's inputs, carry the names of the specs."""
    return tf.function(function, input_signature=specs, autograph=False)
