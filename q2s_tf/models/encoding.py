"""Embeddings of a catalogue."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from q2s_tf.cli import track
from q2s_tf.errors import InputError
from q2s_tf.models.plain_data import RowError, encode
from q2s_tf.models.towers import Tower
from q2s_tf.tables import Table

ROWS = 8_192
"""Documents that are read, and sorted by length, at a time."""


def embed_catalogue(tower: Tower, documents: Table) -> tuple[pa.Array, np.ndarray]:
    """The ids and the embeddings of a catalogue, in the order of the table.

    Args:
        tower: the document tower.
        documents: the catalogue.

    Returns:
        Ids `[N]` and float32 embeddings `[N, D]`.

    Raises:
        InputError: no document, a row without id, an id that occurs twice, image vectors of another width.
    """
    ids, embeddings = [], []
    for batch in track(documents.batches(ROWS), "embedding documents", documents.num_batches(ROWS)):
        ids.append(batch.column("document_id"))
        with documents_named(documents, batch):
            embeddings.append(encode(tower, batch)["embedding"])
    return unique_ids(ids, documents), np.concatenate(embeddings)


@contextmanager
def documents_named(documents: Table, batch: pa.RecordBatch) -> Iterator[None]:
    """Turns an error in a row of a batch into one that names the file and the document."""
    try:
        yield
    except RowError as error:
        document_id = batch.column("document_id")[error.row].as_py()
        raise InputError(
            f"documents {documents.path}: document_id {document_id!r}: {error.column} {error.rule}"
        ) from None


def unique_ids(ids: list[pa.Array], documents: Table) -> pa.Array:
    """All ids of a catalogue as one array; `InputError` if there is none, an empty one, or one that occurs twice."""
    rows = pa.chunked_array(ids, pa.string()).combine_chunks()
    repeated = None
    if not rows.null_count and len(rows.unique()) < len(rows):
        repeated = next(entry["values"] for entry in rows.value_counts().to_pylist() if entry["counts"] > 1)
    check_ids(documents, len(rows), rows.null_count, repeated)
    return rows


def check_ids(documents: Table, rows: int, absent: int, repeated: str | None) -> None:
    """Raises `InputError` if a catalogue has no rows, rows without id (`absent`), or an id that is `repeated`."""
    if not rows:
        raise InputError(f"documents {documents.path}: the catalogue is empty: give a table with at least one document")
    if absent:
        raise InputError(f"documents {documents.path}: every row needs a document_id; {absent} have none")
    if repeated is not None:
        raise InputError(f"documents {documents.path}: a document_id may occur once; {repeated!r} occurs more often")


def read_ids(documents: Table) -> pa.Array:
    """The ids of a catalogue, checked as `unique_ids` does."""
    return unique_ids([batch.column("document_id") for batch in documents.batches()], documents)
