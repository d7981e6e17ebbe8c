"""Embedding a whole catalogue."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from q2s_tf.cli import track
from q2s_tf.errors import InputError
from q2s_tf.models.towers import Column, Tower
from q2s_tf.tables import Table

ROWS = 8_192
"""Documents that are read, and sorted by length, at a time."""


def embed_catalogue(tower: Tower, documents: Table) -> tuple[pa.Array, np.ndarray]:
    """The document ids and their embeddings, in the order of the table.

    Args:
        tower: the document tower.
        documents: the catalogue.

    Returns:
        Ids `[N]` and float32 embeddings `[N, D]`.

    Raises:
        InputError: no document, a row without id, an id twice.
    """
    ids, embeddings = [], []
    for batch in track(documents.batches(ROWS), "embedding documents", -(-documents.num_rows() // ROWS)):
        ids.append(batch.column("document_id"))
        embeddings.append(embed_documents(tower, batch))
    return unique_ids(ids, documents), np.concatenate(embeddings)


def embed_documents(tower: Tower, rows: pa.RecordBatch | pa.Table, batch_size: int = 256) -> np.ndarray:
    """Embeds rows of a documents table, `[N, D]`."""
    return predict_documents(tower, rows, batch_size)["embedding"]


def predict_documents(tower: Tower, rows: pa.RecordBatch | pa.Table, batch_size: int = 256) -> dict[str, np.ndarray]:
    """`Tower.predict` on rows of a documents table. Rows of like length go together, so little padding is paid for."""
    columns = {name: rows.column(name).to_pylist() for name in tower.preprocessor.inputs}
    order = order_by_length(tower, columns)
    ordered = {name: [column[place] for place in order] for name, column in columns.items()}
    back = np.argsort(order)
    return {name: values[back] for name, values in tower.predict(ordered, batch_size=batch_size).items()}


def order_by_length(tower: Tower, columns: Mapping[str, Column]) -> np.ndarray:
    """The rows of a tower's inputs from the shortest texts to the longest, int `[B]`."""
    signature = tower.preprocessor.signature()
    texts = [column for name, column in columns.items() if signature[name].dtype.name == "string"]
    return np.argsort([sum(len(text or "") for text in row) for row in zip(*texts, strict=True)], kind="stable")


def unique_ids(ids: list[pa.Array], documents: Table) -> pa.Array:
    """All ids of a catalogue as one array; `InputError` if there is none, an empty one, or one twice."""
    if not ids:
        raise InputError(f"documents {documents.path}: the catalogue is empty: give a table with at least one document")
    rows = pa.chunked_array(ids).combine_chunks()
    if rows.null_count:
        raise InputError(f"documents {documents.path}: every row needs a document_id; {rows.null_count} have none")
    if len(rows.unique()) < len(rows):
        twice = next(entry["values"] for entry in rows.value_counts().to_pylist() if entry["counts"] > 1)
        raise InputError(f"documents {documents.path}: a document_id may occur once; {twice!r} occurs more often")
    return rows


def read_ids(documents: Table) -> pa.Array:
    """The ids of a catalogue, checked as `unique_ids` does."""
    return unique_ids([batch.column("document_id") for batch in documents.batches()], documents)
