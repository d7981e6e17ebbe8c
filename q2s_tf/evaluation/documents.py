"""The catalogue as an evaluation needs it: vectors, channel weights, texts, and what each document lacks."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.cli import track
from q2s_tf.models import Tower, predict_documents, unique_ids
from q2s_tf.tables import Table

TEXTS = ("title", "description", "language", "country")
ROWS = 8_192


@dataclass
class Documents:
    """A catalogue of N documents.

    Attributes:
        texts: `document_id`, `title`, `description`, `language`, `country`, `[N]`.
        missing: by input of the document tower which documents lack it, bool `[N]`.
        embeddings: `[N, D]`, unit length.
        weights: channel weights `[N, channels]`.
    """

    texts: pa.Table
    missing: dict[str, np.ndarray]
    embeddings: np.ndarray
    weights: np.ndarray

    @property
    def ids(self) -> pa.Array:
        """`document_id` `[N]`, whose places number the documents."""
        return self.texts["document_id"].combine_chunks()

    def column(self, name: str) -> np.ndarray:
        """A text column as an array of str and None `[N]`."""
        return self.texts[name].to_numpy(zero_copy_only=False)


def embed(tower: Tower, table: Table) -> Documents:
    """Embeds a catalogue.

    Raises:
        InputError: no document, a row without id, an id twice.
    """
    texts, embeddings, weights = [], [], []
    missing: dict[str, list[np.ndarray]] = {name: [] for name in tower.preprocessor.inputs}
    for batch in track(table.batches(ROWS), "embedding documents", -(-table.num_rows() // ROWS)):
        answer = predict_documents(tower, batch)
        embeddings.append(answer["embedding"])
        weights.append(answer["channel_weights"])
        texts.append(batch.select(["document_id", *TEXTS]))
        for name, parts in missing.items():
            parts.append(_lacks(batch.column(name)))
    unique_ids([batch.column("document_id") for batch in texts], table)
    gathered = {name: np.concatenate(parts) for name, parts in missing.items()}
    return Documents(pa.Table.from_batches(texts), gathered, np.concatenate(embeddings), np.concatenate(weights))


def _lacks(column: pa.Array) -> np.ndarray:
    """Which values are absent, or lists without a vector, bool `[B]`."""
    absent = pc.is_null(column)
    if pa.types.is_list(column.type):
        absent = pc.or_(absent, pc.equal(pc.fill_null(pc.list_value_length(column), 0), 0))
    return absent.to_numpy(zero_copy_only=False)
