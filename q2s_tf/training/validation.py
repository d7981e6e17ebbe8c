"""ROC AUC on the validation judgements during training."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from q2s_tf.evaluation.judgements import Judgements
from q2s_tf.evaluation.metrics import roc_auc
from q2s_tf.examples.stored_rows import TowerRows, store_rows
from q2s_tf.models import Tower, Towers

BATCH = 256


class Validation:
    """ROC AUC of cos(q, d) over judged pairs, whose queries and documents are preprocessed once.

    Args:
        towers: the towers in training.
        judged: the judged pairs.
        relevant: which of them are relevant, bool `[J]`.
        documents: the preprocessed catalogue.
        folder: folder for the preprocessed queries.
    """

    def __init__(self, towers: Towers, judged: Judgements, relevant: np.ndarray, documents: TowerRows, folder: Path):
        self.relevant, self.query = relevant, judged.query
        rows, self.document = np.unique(judged.document, return_inverse=True)
        raw = tf.data.Dataset.from_tensor_slices(towers.query.as_inputs(judged.queries)).batch(BATCH)
        queries = store_rows(folder, towers.query, raw)
        self._sides = [
            _PreprocessedRows(towers.query, queries, np.arange(len(queries))),
            _PreprocessedRows(towers.document, documents, rows),
        ]

    def roc_auc(self) -> float:
        """ROC AUC with the current weights."""
        query, document = (side.embed() for side in self._sides)
        return roc_auc(np.sum(query[self.query] * document[self.document], axis=1), self.relevant)


class _PreprocessedRows:
    """Rows of one tower, in batches of similar length."""

    def __init__(self, tower: Tower, rows: TowerRows, numbers: np.ndarray):
        order = np.argsort(rows.lengths(numbers), kind="stable")
        ordered = numbers[order]
        self._inverse = np.argsort(order)
        self._batches = [rows.read(ordered[start : start + BATCH]) for start in range(0, len(ordered), BATCH)]
        self._embed = tf.function(
            lambda inputs: tower.fuse(*tower.encode_channels(inputs, training=False))[0],
            autograph=False,
            reduce_retracing=True,
        )

    def embed(self) -> np.ndarray:
        """Embeddings with the current weights, float32 `[rows, D]`."""
        return np.concatenate([self._embed(batch).numpy() for batch in self._batches])[self._inverse]
