"""Commands for catalogues that one process cannot embed, or one machine cannot search."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from typer import Option

import q2s_tf
from q2s_tf import extras
from q2s_tf.commands.deployment import Run, print_changes, read_weights
from q2s_tf.commands.engine_options import Collection, Token
from q2s_tf.errors import InputError


def embed(
    run: Run,
    documents: Annotated[Path, Option(help="The catalogue, Parquet or TSV.")],
    out: Annotated[Path, Option(help="Folder for the shards; a job that was interrupted continues in it.")],
    column: Annotated[
        list[str] | None,
        Option(help="A text column to keep beside title, description, language and country; may be repeated."),
    ] = None,
    backend: Annotated[
        Literal["local", "pyspark"], Option(help="Engine; pyspark needs the extra 'spark' and Java.")
    ] = "local",
    shard_rows: Annotated[int, Option(min=1, max=10_000_000, help="Documents of a shard.")] = 32_768,
) -> None:
    """Embed a catalogue into Parquet shards.

    On this machine or on Spark. The shards are the input of q2s export --embeddings and of vector engines.

    Example: q2s embed --run runs/first --documents data/documents.parquet --out embeddings
    """
    if backend == "pyspark":
        extras.require("spark")
    shards = q2s_tf.embed(run, documents, out, column or [], backend, shard_rows)
    print(f"{len(shards):,} embeddings of {shards.dimension} numbers are in {len(shards.paths):,} shards in {out}")


def publish(
    uri: Annotated[
        str,
        Option(help="Milvus: http://host:19530, or a folder of milvus-lite such as catalogue.db, created if needed."),
    ],
    embeddings: Annotated[Path | None, Option(help="The --out of `q2s embed`: publishes a new collection.")] = None,
    engine: Annotated[Literal["milvus"], Option(help="The vector engine; needs the extra 'milvus'.")] = "milvus",
    token: Token = "",
    collection: Collection = "products",
    filter: Annotated[
        list[str] | None, Option(help="A text column that requests can filter by; may be repeated.")
    ] = None,
    lexical: Annotated[
        list[str] | None,
        Option(
            help="A text column of the lexical index and its weight, a whole number; may be repeated. [default: "
            "title=2, description=1]"
        ),
    ] = None,
    lexical_weight: Annotated[float, Option(help="Default weight of BM25 beside the cosine, 0 for none.")] = 0.5,
    language: Annotated[str, Option(help="The language of the stems of the lexical index.")] = "en",
    keep: Annotated[int | None, Option(min=1, max=1_000_000, help="Drop all but this many of the newest ones.")] = None,
    storage: Annotated[
        str | None,
        Option(help="The bucket of a Milvus cluster, http://host:9000/bucket: imports files instead of inserting."),
    ] = None,
    upsert: Annotated[
        Path | None, Option(help="Documents that are new or changed, Parquet or TSV; with --run.")
    ] = None,
    delete: Annotated[
        Path | None, Option(help="Table with document_id, or a .txt file with one id a line; with --run.")
    ] = None,
    run: Annotated[Path | None, Option(help="The run of the current collection, for --upsert and --delete.")] = None,
    rollback: Annotated[bool, Option("--rollback", help="Search the collection before the current one again.")] = False,
) -> None:
    """Publish embeddings as a collection of a vector engine.

    Fills a new collection, then switches the name that clients search to it; or changes the documents of the current
    collection; or switches back. Needs the extra `milvus`.

    Example: q2s publish --embeddings data/embeddings --uri catalogue.db --filter country

    Example of changes: q2s publish --uri catalogue.db --run runs/first --upsert changed.parquet --delete sold.txt
    """
    extras.require("milvus")
    if (embeddings is not None) + (upsert is not None or delete is not None) + rollback != 1:
        raise InputError("give one of --embeddings, --rollback, and the changes --upsert and --delete")
    if (run is not None) != (upsert is not None or delete is not None):
        raise InputError("--run goes with --upsert and --delete: it embeds the changed documents")
    from q2s_tf.milvus.change_documents import change_documents
    from q2s_tf.milvus.object_storage import read_storage
    from q2s_tf.milvus.publish import publish, roll_back
    from q2s_tf.serving.serving_error import ServingError

    try:
        if embeddings is not None:
            bucket = None if storage is None else read_storage(storage)
            published = publish(
                embeddings, uri, token, collection, filter or [], read_weights(lexical), lexical_weight, language,
                keep, bucket,
            )  # fmt: skip
            print(f"{collection} is {published.collection} at {uri}: {published.documents} documents")
            if published.left_out:
                print(f"{published.left_out} documents have no input of any channel and cannot be found")
        elif run is not None:
            changes = change_documents(run, uri, upsert, delete, token, collection)
            print(f"{changes.collection} at {uri}: {changes.documents} documents")
            print_changes(changes.upserted, changes.deleted, changes.unknown)
        else:
            print(f"{collection} is {roll_back(uri, token, collection)} at {uri}")
    except ServingError as error:
        raise InputError(f"Milvus at {uri} refused: {error}") from error


def capacity(
    documents: Annotated[str, Option(help="Documents of the catalogue, such as 8000000 or 1e9.")],
    qps: Annotated[float, Option(min=0.001, max=1e9, help="Queries per second at the peak.")] = 100.0,
    dimension: Annotated[int, Option(min=1, max=100_000, help="Numbers of an embedding.")] = 128,
    storage: Annotated[Literal["float32", "bfloat16", "int8"], Option(help="Of the vectors in the index.")] = "float32",
    cores: Annotated[int, Option(min=1, max=10_000, help="Cores of a machine.")] = 16,
    memory_gb: Annotated[float, Option(min=1, max=100_000, help="Memory of a machine.")] = 64.0,
    embed_hours: Annotated[
        float, Option(min=0.01, max=10_000, help="Time in which the whole catalogue must be embedded.")
    ] = 24.0,
    embed_per_second: Annotated[
        float | None,
        Option(min=0.001, max=1e9, help="Documents that one core embeds in a second. [default: as was measured]"),
    ] = None,
    searches_per_second: Annotated[
        float | None,
        Option(
            min=0.001,
            max=1e9,
            help="Searches of a million documents that one core answers in a second. [default: as was measured]",
        ),
    ] = None,
) -> None:
    """Compute the machines for a catalogue and a load.

    From unit costs that were measured; docs/scaling.md has them.

    Example: q2s capacity --documents 1e9 --qps 5000 --storage int8 --memory-gb 128
    """
    from q2s_tf.capacity import EMBED_PER_SECOND, capacity_table, plan_capacity

    try:
        count = float(documents)
    except ValueError:
        count = 0.0
    if not 1 <= count <= 1e13 or count != int(count):
        raise InputError(f"--documents {documents}: must be a whole number, at least 1, such as 8000000 or 1e9")
    storage_bytes, memory = {"float32": 4, "bfloat16": 2, "int8": 1}[storage], int(memory_gb * 1e9)
    rate = embed_per_second or EMBED_PER_SECOND
    plan = plan_capacity(
        int(count), qps, dimension, storage_bytes, cores, memory, embed_hours, rate, searches_per_second
    )
    Console(width=None if sys.stdout.isatty() else 140).print(capacity_table(plan, cores, memory, embed_hours))
