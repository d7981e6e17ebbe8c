"""Publishing of document embeddings as a collection of Milvus, and rolling back."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from q2s_tf.cli import console, track
from q2s_tf.embedding.shards import EmbeddingShards, vectors_of
from q2s_tf.errors import InputError
from q2s_tf.milvus.collection_rows import ROWS, make_index_params, make_rows, make_schema
from q2s_tf.milvus.lexical_terms import check_language
from q2s_tf.milvus.milvus_connection import connect, engine_errors
from q2s_tf.milvus.object_storage import ObjectStorage, import_rows
from q2s_tf.milvus.publications import (
    FILLING,
    PROPERTY,
    SETTINGS_FORMAT,
    check_alias,
    drop_older,
    find_current,
    read_publication,
    switch_alias,
    versions_of,
)
from q2s_tf.serving.lexical_weight import COLUMNS, DEFAULT_WEIGHT
from q2s_tf.serving.retriever import MAX_LEXICAL_WEIGHT

if TYPE_CHECKING:
    from pymilvus import MilvusClient

MAX_COLUMN_WEIGHT = 10
TIMEOUT_SECONDS = 60.0
RESERVED = ("document_id", "embedding")


class Published(NamedTuple):
    """The result of a publication: its collection, its documents, and those without an input, which it leaves out."""

    collection: str
    documents: int
    left_out: int


def publish(
    embeddings: Path,
    uri: str,
    token: str = "",
    alias: str = "products",
    filters: Sequence[str] = (),
    lexical: Mapping[str, float] | None = None,
    lexical_weight: float = DEFAULT_WEIGHT,
    language: str = "en",
    keep: int | None = None,
    storage: ObjectStorage | None = None,
) -> Published:
    """Publish a catalogue: fill a new collection, then switch the alias to it.

    Until then, clients search the collection of before, which stays for `roll_back`. What a killed publication left is
    removed by the next one, so publish one catalogue under an alias at a time.

    Args:
        embeddings: The `--out` of `q2s embed`.
        uri: The address of a Milvus, or the folder of milvus-lite; see `connect`.
        token: `user:password` or an API key.
        alias: The name that clients search.
        filters: Text columns that requests can filter by.
        lexical: Weights of text columns in the lexical index, whole numbers because Milvus counts whole words. None:
            title 2 and description 1, as far as the embeddings have these columns; empty: no lexical index.
        lexical_weight: λ, the weight of BM25 in the score of requests that give none.
        language: The language of the stems of the lexical index.
        keep: Drop all but this many of the newest publications.
        storage: The object storage of Milvus, to import files instead of inserting rows.

    Raises:
        InputError: The embeddings are incomplete, a column is absent, or an argument is not allowed.
        ServingError: Milvus refuses or does not answer. The alias is then unchanged.
    """
    check_alias(alias)
    check_language(language)
    shards = EmbeddingShards(embeddings)
    columns = {name: int(weight) for name, weight in COLUMNS.items() if name in shards.manifest["columns"]}
    columns = columns if lexical is None else _whole_weights(lexical)
    if not 0 <= lexical_weight <= MAX_LEXICAL_WEIGHT:
        raise InputError(f"lexical_weight must be from 0 to {MAX_LEXICAL_WEIGHT:g}, got {lexical_weight}")
    if keep is not None and keep < 1:
        raise InputError(f"keep must be at least 1, so that a publication is left to search; got {keep}")
    _check_columns(shards, filters, columns)
    settings = {
        "format": SETTINGS_FORMAT,
        **{name: shards.manifest[name] for name in ("run", "tokenizer_sha256", "weights_sha256", "dimension")},
        "filters": list(filters),
        "lexical": columns,
        "lexical_weight": lexical_weight if columns else 0.0,
        "language": language,
    }
    client = connect(uri, token, TIMEOUT_SECONDS, create=True)
    name = _new_name(client, alias)
    imported = None if storage is None else partial(import_rows, storage, uri, token)
    documents = _fill(client, name, settings, shards, imported)
    if not documents:
        with engine_errors():
            client.drop_collection(name)
        raise InputError(f"embeddings {embeddings}: no document has an input of any channel of the run")
    with engine_errors():
        client.rename_collection(name, name.removesuffix(FILLING))
    name = name.removesuffix(FILLING)
    switch_alias(client, alias, name)
    if keep is not None:
        drop_older(client, alias, keep)
    return Published(name, documents, len(shards) - documents)


def roll_back(uri: str, token: str = "", alias: str = "products") -> str:
    """Switch the alias back to the newest publication before the current one.

    Returns:
        The collection that is searched from now on.

    Raises:
        InputError: Nothing is published, or nothing older is there.
        ServingError: Milvus refuses or does not answer.
    """
    check_alias(alias)
    client = connect(uri, token, TIMEOUT_SECONDS)
    current = find_current(client, alias)
    if current is None:
        raise InputError(f"collection {alias}: nothing is published under this name; publish with q2s publish")
    older = [name for version, name in versions_of(client, alias).items() if version < _version(current)]
    if not older:
        raise InputError(f"collection {alias}: there is no publication before {current}; publish a catalogue instead")
    read_publication(client, older[-1])
    switch_alias(client, alias, older[-1])
    return older[-1]


def _version(name: str) -> int:
    return int(name.rpartition("_")[2])


def _whole_weights(lexical: Mapping[str, float]) -> dict[str, int]:
    for name, weight in lexical.items():
        if weight not in range(1, MAX_COLUMN_WEIGHT + 1):
            raise InputError(
                f"lexical {name}={weight:g}: the weight must be a whole number from 1 to {MAX_COLUMN_WEIGHT}, because "
                "Milvus counts whole words"
            )
    return {name: int(weight) for name, weight in lexical.items()}


def _check_columns(shards: EmbeddingShards, filters: Sequence[str], lexical: Mapping[str, int]) -> None:
    for name in filters:
        if list(filters).count(name) > 1:
            raise InputError(f"filter {name}: is named twice; leave one out")
        if not (name.isascii() and name.isidentifier()) or name in RESERVED:
            raise InputError(f"filter {name}: must be a text column named by letters, digits and _; name another one")
    next(shards.batches(list(dict.fromkeys([*filters, *lexical])), 1), None)


def _new_name(client: "MilvusClient", alias: str) -> str:
    """The name of a collection to fill; removes what killed publications left."""
    with engine_errors():
        if alias in client.list_collections():
            raise InputError(f"collection {alias}: is a collection and not an alias; name another one")
        leftovers = versions_of(client, alias, FILLING)
        for name in leftovers.values():
            client.drop_collection(name)
    return f"{alias}_{max([0, *versions_of(client, alias), *leftovers]) + 1}{FILLING}"


def _fill(
    client: "MilvusClient",
    name: str,
    settings: dict[str, Any],
    shards: EmbeddingShards,
    import_rows: Callable[..., int] | None,
) -> int:
    """Create a collection, fill and index it; returns the number of its documents."""
    schema = make_schema(settings)
    columns = list(dict.fromkeys([*settings["filters"], *settings["lexical"]]))

    def batches() -> Iterator[list[dict[str, Any]]]:
        batches = track(shards.batches(columns, ROWS), "publishing", -(-len(shards) // ROWS))
        for batch in batches:
            yield make_rows(batch.column("document_id"), vectors_of(batch), batch, settings)

    with engine_errors():
        client.create_collection(name, schema=schema, properties={PROPERTY: json.dumps(settings)})
        if import_rows is not None:
            documents = import_rows(schema, name, batches())
        else:
            documents = 0
            for rows in batches():
                if rows:
                    documents += client.insert(name, rows)["insert_count"]
        client.flush(name)
        with console.status("building the indexes"):
            client.create_index(name, make_index_params(settings, documents))
    return documents
