"""The command that publishes a catalogue in a vector engine."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from q2s_tf import extras
from q2s_tf.commands.deployment import print_changes, read_weights
from q2s_tf.commands.engine_options import Collection, Token
from q2s_tf.errors import InputError


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
