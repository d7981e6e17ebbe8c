"""ROC AUC on the validation judgements, while training goes on."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.config import Config
from q2s_tf.errors import InputError
from q2s_tf.evaluation.judgements import read_judgements
from q2s_tf.evaluation.metrics import roc_auc
from q2s_tf.models import Towers
from q2s_tf.tables import Table
from q2s_tf.training.prepared import PreparedRows


class Validation:
    """The judged queries and documents, kept so that they can be embedded again after every epoch.

    Args:
        config: says from which grade on a document is relevant.
        documents: the catalogue.
        document_ids: its ids.
        judgements: rated pairs, or later positives, which then stand against sampled negatives.

    Raises:
        InputError: no usable pair, or only relevant or only irrelevant ones.
    """

    def __init__(self, config: Config, documents: Table, document_ids: pa.Array, judgements: Table):
        judged = read_judgements(judgements, document_ids, config.seed)
        self.relevant = judged.relevant(config.evaluation.relevant_at)
        if self.relevant.all() or not self.relevant.any():
            raise InputError(
                f"judgements {judgements.path}: need relevant and irrelevant pairs, with relevant from "
                f"{config.evaluation.relevant_at} on; got {int(self.relevant.sum())} of {len(self.relevant)} relevant: "
                "set evaluation.relevant_at"
            )
        self.queries, self.query = judged.queries, judged.query
        wanted, self.document = np.unique(judged.document, return_inverse=True)
        chosen = pa.array(wanted)
        start, rows = 0, []
        for batch in documents.batches():
            inside = chosen.filter(pc.and_(pc.greater_equal(chosen, start), pc.less(chosen, start + len(batch))))
            rows.append(batch.take(pc.subtract(inside, start)))
            start += len(batch)
        self.rows = pa.Table.from_batches(rows)
        self._prepared: tuple[Towers, PreparedRows, PreparedRows] | None = None

    def roc_auc(self, towers: Towers) -> float:
        """ROC AUC of cos(q, d) over the judged pairs. The first time takes longer than the others."""
        if self._prepared is None or self._prepared[0] is not towers:
            queries = PreparedRows(towers.query, self.queries)
            self._prepared = (towers, queries, PreparedRows(towers.document, self.rows.to_pydict()))
        _, queries, documents = self._prepared
        query_vectors, document_vectors = queries.embed()[self.query], documents.embed()[self.document]
        return roc_auc(np.sum(query_vectors * document_vectors, axis=1), self.relevant)
