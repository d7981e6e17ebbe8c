"""Commands that export a run, serve it and query it."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from typer import Argument, Option

import q2s_tf
from q2s_tf import cli, extras
from q2s_tf.commands.engine_options import Collection, Engine, EngineOptions, QueryRun, Token, Uri, open_client
from q2s_tf.errors import InputError

BYTES = 64 << 20
SECONDS, PORT = {"min": 0, "max": 86_400}, {"min": 0, "max": 65_535}
POSITIVE_SECONDS = SECONDS | {"min": 0.001}
"""Ranges of options."""
TLS = "PEM file; any of the three makes the connection encrypted."

Models = Annotated[Path, Option(help="Folder of the servables.")]
Run = Annotated[Path, Option(help="A run directory, the --out of `q2s train`.")]
Keep = Annotated[int | None, Option(min=1, max=1_000_000, help="Remove all but this many of the newest versions.")]
ChannelNames = Annotated[Path, Option(help="Folder of the servables, for the names of the channels.")]


def export(
    run: Run,
    documents: Annotated[Path | None, Option(help="The catalogue to search, Parquet or TSV.")] = None,
    embeddings: Annotated[
        Path | None, Option(help="Instead of --documents: the --out of q2s embed, so that nothing is embedded again.")
    ] = None,
    out: Models = Path("saved_models"),
    index: Annotated[
        Literal["scann", "partitioned", "exact"] | None,
        Option(help="Kind of index; scann needs the extra 'scann'. [default: exact up to 20,000 documents]"),
    ] = None,
    recall: Annotated[
        float,
        Option(min=0, max=1, help="Share of the exact top 100 that the default effort must find."),
    ] = 0.95,
    queries: Annotated[
        Path | None, Option(help="Table with query and country to measure it on. [default: documents with noise]")
    ] = None,
    storage: Annotated[
        Literal["float32", "bfloat16", "int8"],
        Option(help="Of --index partitioned: bfloat16 takes half the memory, int8 a quarter, and more time."),
    ] = "float32",
    filter: Annotated[
        list[str] | None, Option(help="A text column that requests can filter by; may be repeated.")
    ] = None,
    collapse: Annotated[
        str | None, Option(help="A text column such as title: return one document at most for each of its values.")
    ] = None,
    lexical: Annotated[
        list[str] | None,
        Option(
            help="A text column of the lexical index and its weight; may be repeated. [default: title=2, description=1]"
        ),
    ] = None,
    lexical_weight: Annotated[
        float | None,
        Option(help="Default weight of BM25 beside the cosine, 0 for none. [default: chosen on --queries, or 0.5]"),
    ] = None,
    keep: Keep = None,
) -> None:
    """Export a run and a catalogue as servables.

    Writes one new version of query_tower, document_tower and retriever.

    Example: q2s export --run runs/first --documents data/documents.parquet --out saved_models --filter country
    """
    version = q2s_tf.export(
        run, documents, embeddings=embeddings, out=out, index=index, recall=recall, storage=storage,
        filters=filter or [], queries=queries, collapse=collapse, keep=keep,
        lexical=read_weights(lexical), lexical_weight=lexical_weight,
    )  # fmt: skip
    print(f"version {version} of query_tower, document_tower and retriever is in {out}")


def read_weights(assignments: list[str] | None) -> dict[str, float] | None:
    """Parse ``column=weight`` texts; None if there are none.

    Raises:
        InputError: A weight is not a number.
    """
    weights: dict[str, float] = {}
    for text in assignments or []:
        column, _, weight = text.partition("=")
        try:
            weights[column] = float(weight or 1)
        except ValueError:
            raise InputError(f"--lexical {text}: must be COLUMN=WEIGHT, for example title=2") from None
    return weights or None


def update_index(
    run: Annotated[Path, Option(help="The run directory that the retriever was exported from.")],
    models: Models = Path("saved_models"),
    upsert: Annotated[Path | None, Option(help="Documents that are new or changed, Parquet or TSV.")] = None,
    delete: Annotated[Path | None, Option(help="Table with document_id, or a .txt file with one id a line.")] = None,
    compact: Annotated[bool, Option(help="Build the index again, with the delta in it and no tombstones.")] = False,
    keep: Keep = None,
) -> None:
    """Add, change and delete documents of a retriever.

    Publishes a new version of the retriever without building its index again.

    Example: q2s update-index --run runs/first --upsert changed.parquet --delete sold.txt --models saved_models
    """
    from q2s_tf.serving.update import update_index
    from q2s_tf.serving.versions import keep_newest

    done = update_index(run, models, upsert, delete, compact)
    print(f"version {done.version} of retriever is in {models}: {done.documents} documents")
    print_changes(done.upserted, done.deleted, done.unknown)
    if keep is not None:
        keep_newest(models, keep)


def print_changes(upserted: int, deleted: int, unknown: list[str]) -> None:
    """Print the counts of changed documents, and the ids to delete that were not there."""
    print(f"{upserted} upserted, {deleted} deleted")
    if unknown:
        more = " …" if len(unknown) > 10 else ""
        print(f"{len(unknown)} to delete were not in the index: {', '.join(unknown[:10])}{more}")


def serve(
    models: Annotated[Path | None, Option(help="Folder of servables, <models>/<model>/<version>/.")] = None,
    model_config_file: Annotated[
        Path | None, Option(help="Instead of --models: TF Serving's model config, with labels and policies.")
    ] = None,
    port: Annotated[int, Option(**PORT, help="gRPC port; 0 takes a free one.")] = 8500,
    rest_port: Annotated[
        int | None,
        Option(**PORT, help="Port of REST and metrics, usually 8501; 0 takes a free one. [default: no REST]"),
    ] = None,
    host: Annotated[
        str, Option(help="Address to listen on. Other machines are served only with another than the default.")
    ] = "127.0.0.1",
    poll_seconds: Annotated[float, Option(min=0.01, max=86_400, help="How often to look for new versions.")] = 1.0,
    ssl_config_file: Annotated[
        Path | None, Option(help="TF Serving's SSLConfig: gRPC over TLS, or mutual TLS with client_verify.")
    ] = None,
    max_request_bytes: Annotated[
        int,
        Option(
            min=1, max=2**31 - 1, help="The largest request that is read, and the largest tensor that it expands to."
        ),
    ] = 4 << 20,
    max_rows: Annotated[int, Option(min=1, max=2**31 - 1, help="The largest batch.")] = 4096,
    max_results: Annotated[int, Option(min=1, max=2**31 - 1, help="The largest product of rows and k.")] = 100_000,
    max_seconds: Annotated[
        float, Option(**POSITIVE_SECONDS, help="The longest a request may wait for others before it is refused.")
    ] = 10.0,
    receive_seconds: Annotated[
        float, Option(**POSITIVE_SECONDS, help="The longest a client may take to send a request.")
    ] = 5.0,
    cache_seconds: Annotated[
        float,
        Option(**SECONDS, help="How long an answer is kept for the same request; 0 for no cache. The paper: 28800."),
    ] = 0.0,
    cache_bytes: Annotated[int, Option(min=0, max=2**40, help="The largest total size of the kept answers.")] = BYTES,
    grace_seconds: Annotated[
        float, Option(**POSITIVE_SECONDS, help="How long running requests may take to finish after SIGTERM.")
    ] = 10.0,
) -> None:
    """Serve exported models over gRPC and REST.

    Serves the newest version of every model and follows the folder, until SIGTERM or Ctrl-C. Needs the extra `server`.

    Example: q2s serve --models saved_models --port 8500 --rest-port 8501

    gRPC: PredictionService (Predict, GetModelMetadata), ModelService, grpc.health.v1.Health. REST: TF
    Serving's /v1/models/M[/versions/V|/labels/L] with :predict and /metadata, and /monitoring/prometheus/metrics.
    """
    extras.require("server")
    # A small model loses more to hand-overs between threads than it gains; read when TensorFlow is first imported.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors are reported once, by q2s_tf; read when it is imported
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from q2s_tf.server import server_config
    from q2s_tf.server.server import run
    from q2s_tf.serving.folders import models_in

    # TensorFlow is imported after these checks, so errors are reported immediately.
    if (models is None) == (model_config_file is None):
        raise InputError("give either --models, a folder, or --model-config-file, a file")
    if models is not None:
        models_in(models)
    run(
        models if model_config_file is None else server_config.read_model_configs(model_config_file),
        host,
        port,
        poll_seconds,
        rest_port=rest_port,
        credentials=None if ssl_config_file is None else server_config.read_server_credentials(ssl_config_file),
        limits=server_config.RequestLimits(max_request_bytes, max_rows, max_results, max_seconds, receive_seconds),
        cache_seconds=cache_seconds,
        cache_bytes=cache_bytes,
        grace_seconds=grace_seconds,
    )


def query(
    query: Annotated[str, Argument(help="The query, in any language.")],
    country: Annotated[str, Option(help="The searcher's country; empty if unknown.")] = "",
    k: Annotated[int, Option(min=1, max=100_000, help="How many documents, on each page.")] = 10,
    target: Annotated[str, Option(help="HOST:PORT of the server.")] = "127.0.0.1:8500",
    documents: Annotated[Path | None, Option(help="Catalogue (Parquet or TSV), for the titles.")] = None,
    filters: Annotated[
        list[str] | None, Option("--filter", help="COLUMN=VALUE that documents must have; may be repeated.")
    ] = None,
    pages: Annotated[
        int, Option(min=1, max=10_000, help="How many pages; more partitions are searched for later ones.")
    ] = 1,
    effort: Annotated[int, Option(min=0, max=2**31 - 1, help="Partitions to search; 0 for the index's default.")] = 0,
    min_score: Annotated[float, Option(min=-2, max=102, help="Lowest score of a result.")] = -1.0,
    lexical_weight: Annotated[
        float,
        Option(max=100, help="Weight of BM25 beside the cosine; 0 for none, below 0 for the default of the export."),
    ] = -1.0,
    version: Annotated[str | None, Option(help="Of the retriever: a number, or a label such as canary.")] = None,
    models: ChannelNames = Path("saved_models"),
    timeout_seconds: Annotated[float, Option(**SECONDS, help="How long to wait for each answer.")] = 10.0,
    tls_ca: Annotated[Path | None, Option(help=f"The authority of the server's certificate. {TLS}")] = None,
    tls_cert: Annotated[Path | None, Option(help="The client's certificate, for mutual TLS.")] = None,
    tls_key: Annotated[Path | None, Option(help="The client's private key, for mutual TLS.")] = None,
    engine: Engine = "retriever",
    uri: Uri = None,
    token: Token = "",
    collection: Collection = "products",
    run: QueryRun = None,
) -> None:
    """Query a server and print the ranked documents.

    With their scores, and the fusion weight of each channel of the query.

    Example: q2s query "red sofa" --country US --documents documents.parquet

    Example with Milvus: q2s query "red sofa" --country US --engine milvus --uri catalogue.db --run runs/first
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors are reported once, by q2s_tf; read when it is imported
    from q2s_tf.serving.connection import read_credentials
    from q2s_tf.serving.query_command import look_up_titles, print_results, read_filters, search
    from q2s_tf.tables import Table

    credentials = read_credentials(tls_ca, tls_cert, tls_key) if tls_ca or tls_cert or tls_key else None
    selected = int(version) if version is not None and version.isdecimal() else version
    wanted = read_filters(filters or [])
    table = Table(documents, "documents", ["document_id", "title"], ["language"]) if documents else None
    options = EngineOptions(engine, uri, token, collection, run)
    with cli.console.status("searching"):
        with open_client(options, target, models, timeout_seconds, credentials) as client:
            results = search(
                client, query, country, k, pages, effort, min_score, lexical_weight, wanted, selected, models
            )
        titles = look_up_titles(table, [name for page in results.pages for name, *_ in page]) if table else None
    print_results(results, titles, Console(width=None if sys.stdout.isatty() else 160))


def demo_app(
    documents: Annotated[Path, Option(help="Catalogue (Parquet or TSV) that the server's index was made from.")],
    target: Annotated[str, Option(help="HOST:PORT of the server, embedded or TF Serving.")] = "127.0.0.1:8500",
    models: ChannelNames = Path("saved_models"),
    port: Annotated[int, Option(**PORT, help="Port of the page; 0 takes a free one.")] = 8080,
    host: Annotated[str, Option(help="Address of the page; 0.0.0.0 for all.")] = "127.0.0.1",
    page_size: Annotated[int, Option(min=1, max=100, help="Results of a page.")] = 10,
    pictures: Annotated[str | None, Option(help="Column with each picture's path or address, if any.")] = None,
    timeout_seconds: Annotated[float, Option(**SECONDS, help="How long to wait for each answer of the server.")] = 5.0,
    engine: Engine = "retriever",
    uri: Uri = None,
    token: Token = "",
    collection: Collection = "products",
    run: QueryRun = None,
    explain: Annotated[
        Path | None, Option(help="The run of the index: each result can show what each of its channels adds.")
    ] = None,
) -> None:
    """Serve a search page in the browser, over a running server.

    The results of the retriever or of Milvus, with the parts of their scores, beside those of BM25. Until Ctrl-C. Needs
    the extra `server`.

    Example: q2s demo-app --documents documents.parquet --target 127.0.0.1:8500 --port 8080
    """
    extras.require("server")
    with cli.console.status("importing TensorFlow"):
        from q2s_tf.demo_app.app import serve

    options = EngineOptions(engine, uri, token, collection, run)
    with open_client(options, target, models, timeout_seconds) as client:
        serve(documents, client, models, host, port, page_size, pictures, explain)
