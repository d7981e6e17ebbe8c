"""The validation metric during training."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import tensorflow as tf

from q2s_tf.config import Config
from q2s_tf.errors import InputError
from q2s_tf.evaluation.judgements import Judgements, read_judgements, relevant_pairs
from q2s_tf.evaluation.metrics import as_run, ndcg, retrieval, roc_auc
from q2s_tf.evaluation.rankers import cosine_rows, top_k
from q2s_tf.examples.stored_rows import TowerRows, store_rows
from q2s_tf.models import Towers
from q2s_tf.models.plain_data import BATCH_SIZE
from q2s_tf.tables import Table
from q2s_tf.training.callbacks import VALIDATION
from q2s_tf.training.stored_embeddings import StoredEmbeddings

RECALLS = ("recall@10", "recall@100")
"""The metrics that rank the whole catalogue."""
DEPTH = 100
"""Documents of a query that recall reads."""


def read_validation(judgements: Table, document_ids: pa.Array, config: Config) -> tuple[Judgements, np.ndarray]:
    """The judged pairs, and which of them are relevant for the validation metric, bool `[J]`.

    Raises:
        InputError: no usable pair; none that is relevant; except for recall, none that is irrelevant.
    """
    settings = config.evaluation
    recall = settings.validation_metric in RECALLS
    judged = read_judgements(judgements, document_ids, config.seed)
    key = "recall_relevant_at" if recall and settings.recall_relevant_at is not None else "relevant_at"
    grade = settings.recall_grade if recall else settings.relevant_at
    return judged, relevant_pairs(judged, grade, str(judgements.path), f"set evaluation.{key}", not recall)


class Validation:
    """A metric of cos(q, d) on judged queries that are preprocessed once.

    ROC AUC and nDCG@10 read the judged pairs; the recalls rank the whole catalogue, which has to be embedded.

    Args:
        towers: the towers in training.
        judged: the judged pairs.
        relevant: which of them are relevant, bool `[J]`.
        documents: the preprocessed catalogue.
        folder: folder for the preprocessed queries.
        metric: `roc_auc`, `ndcg@10`, `recall@10` or `recall@100`; that of the config by default.

    Attributes:
        embed_documents: the embeddings of the documents that the metric reads.

    Raises:
        InputError: nDCG of queries that have none.
    """

    def __init__(
        self,
        towers: Towers,
        judged: Judgements,
        relevant: np.ndarray,
        documents: TowerRows,
        folder: Path,
        metric: str | None = None,
    ):
        self.judged, self.relevant = judged, relevant
        self.metric = metric or towers.config.evaluation.validation_metric
        self.name = VALIDATION.format(self.metric)
        if self.metric == "ndcg@10" and sum(judged.without_ndcg().values()) == len(np.unique(judged.query)):
            raise InputError(
                "validation: no query has an nDCG, which needs two judged documents and two grades: add such queries, "
                "or set evaluation.validation_metric to roc_auc or recall@10"
            )
        rows = np.arange(len(documents)) if self.metric in RECALLS else np.unique(judged.document)
        self._document = np.searchsorted(rows, judged.document)
        raw = tf.data.Dataset.from_tensor_slices(towers.query.as_inputs(judged.queries)).batch(BATCH_SIZE)
        self._embed_queries = StoredEmbeddings(towers.query, store_rows(folder, towers.query, raw))
        self.embed_documents = StoredEmbeddings(towers.document, documents, rows)

    def __call__(self) -> dict[str, float]:
        """The metric with the current weights by its name in logs, such as `val_roc_auc`."""
        return {self.name: self.value()}

    def value(self) -> float:
        """The metric with the current weights."""
        queries, documents = self._embed_queries(), self.embed_documents()
        if self.metric in RECALLS:
            run = as_run(np.stack([top_k(row, DEPTH) for row in cosine_rows(queries, documents)]))
            recall = retrieval(run, self.judged.query[self.relevant], self._document[self.relevant])
            return float(np.nanmean(recall[self.metric]))
        scores = np.sum(queries[self.judged.query] * documents[self._document], axis=1)
        if self.metric == "ndcg@10":
            return float(np.nanmean(ndcg(self.judged.query, scores, self.judged.gains, len(queries))))
        return roc_auc(scores, self.relevant)
