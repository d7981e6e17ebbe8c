"""Changes of a published catalogue: documents are added, replaced and deleted in the current collection."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from q2s_tf.errors import InputError
from q2s_tf.milvus.collection_rows import EXACT_UP_TO, ID, ROWS, make_rows
from q2s_tf.milvus.filter_expressions import any_of
from q2s_tf.milvus.milvus_connection import connect, engine_errors
from q2s_tf.milvus.publications import Publication, current_publication
from q2s_tf.milvus.publish import TIMEOUT_SECONDS
from q2s_tf.models import Towers, embed_catalogue, hash_towers, load
from q2s_tf.tables import open_documents, read_deletions

if TYPE_CHECKING:
    from pymilvus import MilvusClient


class Changes(NamedTuple):
    """The result of changes: the collection, counts of changed documents, and the documents that it now holds.

    `unknown` are the ids to delete that the collection did not hold.
    """

    collection: str
    upserted: int
    deleted: int
    unknown: list[str]
    documents: int


def change_documents(
    run: Path,
    uri: str,
    upsert: Path | None = None,
    delete: Path | None = None,
    token: str = "",
    alias: str = "products",
) -> Changes:
    """Change the collection that is searched. The publications before it do not change.

    Milvus applies the changes in requests of 500 documents, and searches see them within seconds: a change is not
    atomic. A change that was interrupted can be repeated. Make one change at a time.

    In milvus-lite, all documents of a lexical index are then written again if they are at most `EXACT_UP_TO`. Until
    then, BM25 is approximate.

    Args:
        run: The run that the documents of the collection were embedded with.
        uri: The address of a Milvus, or the folder of milvus-lite.
        upsert: A documents table with the columns that the collection filters by. A document without an input of any
            channel is deleted.
        delete: A table with `document_id`, or a `.txt` file with one id a line.
        token: `user:password` or an API key.
        alias: The name that clients search.

    Raises:
        InputError: There is nothing to do or nothing published, the collection is of another run, an id is in both
            tables or twice in one, or no document would be left. Nothing is changed then.
        ServingError: Milvus refuses or does not answer.
    """
    if upsert is None and delete is None:
        raise InputError("nothing to do: give --upsert or --delete")
    client = connect(uri, token, TIMEOUT_SECONDS)
    publication = current_publication(client, alias)
    towers = load(run)
    if publication.hashes != hash_towers(towers):
        raise InputError(
            f"run {run}: the documents of {publication.name} were embedded with other weights (run "
            f"{publication.settings['run']}); give that run, or publish the embeddings of this one"
        )
    deletions = read_deletions(delete).to_pylist() if delete else []
    upserts, rows = _embed_rows(upsert, towers, publication) if upsert else ([], [])
    if both := set(deletions) & set(upserts):
        raise InputError(f"document {min(both)!r} is in --upsert and in --delete; leave it in one of them")
    name, added = publication.name, {row[ID] for row in rows}
    without_input = [document_id for document_id in upserts if document_id not in added]
    with engine_errors():
        client.load_collection(name)
        before = client.query(name, filter="", output_fields=["count(*)"], consistency_level="Strong")[0]["count(*)"]
        held = set(_held(client, name, [*deletions, *upserts]))
        documents = before - len(held.intersection([*deletions, *without_input])) + len(added - held)
        if not documents:
            raise InputError("no document would be left in the collection; keep one, or publish another catalogue")
        for part in _parts(rows):
            client.upsert(name, part)
        for part in _parts([*deletions, *without_input]):
            client.delete(name, filter=any_of(ID, part))
        lite = client.get_server_version().startswith("milvus_lite")
        if lite and publication.settings["lexical"] and documents <= EXACT_UP_TO:
            _rewrite(client, name)
    unknown = [document_id for document_id in deletions if document_id not in held]
    return Changes(name, len(upserts), len(deletions) - len(unknown), unknown, documents)


def _embed_rows(path: Path, towers: Towers, publication: Publication) -> tuple[list[str], list[dict[str, Any]]]:
    """The ids of all documents of a table, and the rows of those with an input of any channel."""
    settings = publication.settings
    columns = list(dict.fromkeys([*settings["filters"], *settings["lexical"]]))
    table = open_documents(path, [*towers.document.input, *columns], towers.config.vector_inputs())
    for name in settings["filters"]:  # a column of the lexical index that the table does not have is empty
        if name in table.missing:
            raise InputError(
                f"documents {path}: has no column {name}, which {publication.name} filters by; its columns are "
                f"{', '.join(table.columns)}"
            )
    ids, embeddings = embed_catalogue(towers.document, table)
    texts = pa.Table.from_batches([batch.select([ID, *columns]) for batch in table.batches()]).combine_chunks()
    (batch,) = texts.to_batches()
    return ids.to_pylist(), make_rows(ids, np.asarray(embeddings), batch, settings)


def _held(client: "MilvusClient", name: str, ids: Sequence[str]) -> Iterator[str]:
    """The ids that a collection holds."""
    for part in _parts(ids):
        found = client.query(name, filter=any_of(ID, part), output_fields=[ID], consistency_level="Strong")
        yield from (row[ID] for row in found)


def _rewrite(client: "MilvusClient", name: str) -> None:
    """Write all documents of a collection of milvus-lite again, unchanged.

    milvus-lite computes the word statistics of BM25 for each segment, with the deleted rows. Its `compact` does
    nothing, and it merges segments only when four have a similar size. A flush makes one segment of the rows that were
    written since the flush before (128 MB by default), so afterwards that segment has all documents, and the rows of
    the others are old.
    """
    rows = client.query(name, filter="", output_fields=[ID], consistency_level="Strong")
    for part in _parts(rows):
        client.upsert(name, part, partial_update=True)  # milvus-lite takes the other fields from the stored row
    client.flush(name)


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + ROWS] for start in range(0, len(items), ROWS))
