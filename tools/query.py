#!/usr/bin/env python
"""Command line of `q2s_tf.serving.query_command`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from q2s_tf import cli
from q2s_tf.serving import DEFAULT_EFFORT
from q2s_tf.tables import Table

TLS = "PEM file; each of the three options encrypts the connection."


def main(
    query: Annotated[str, typer.Argument(help="The query, in any language.")],
    country: Annotated[str, typer.Option(help="The searcher's country; empty where unknown.")] = "",
    k: Annotated[int, typer.Option(min=1, help="Documents on each page.")] = 10,
    target: Annotated[str, typer.Option(help="HOST:PORT of the server.")] = "127.0.0.1:8500",
    documents: Annotated[Path | None, typer.Option(help="Catalogue (Parquet or TSV) to read titles from.")] = None,
    filters: Annotated[
        list[str] | None, typer.Option("--filter", help="COLUMN=VALUE that documents must have; may be repeated.")
    ] = None,
    pages: Annotated[int, typer.Option(min=1, help="Number of pages; later ones search more of the index.")] = 1,
    effort: Annotated[
        int, typer.Option(min=0, help="Partitions to search; 0 for the default of the index, or of the page.")
    ] = DEFAULT_EFFORT,
    min_score: Annotated[float, typer.Option(help="Least cosine of a document.")] = -1.0,
    version: Annotated[
        str | None, typer.Option(help="Version of the retriever: a number, or a label such as canary.")
    ] = None,
    models: Annotated[Path, typer.Option(help="Folder of the exports, to read channel names from.")] = Path(
        "saved_models"
    ),
    timeout_seconds: Annotated[float, typer.Option(help="Deadline of each request.")] = 10.0,
    tls_ca: Annotated[
        Path | None, typer.Option(help=f"Certificate of the authority that signed the server's. {TLS}")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="The client's certificate, for mutual TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The client's private key, for mutual TLS.")] = None,
) -> None:
    """Print the ranked documents of a query with their scores, and the weight of each channel of the query.

    Example: python tools/query.py "red sofa" --country US --documents documents.parquet
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC reads it at import; errors are reported once, by this tool
    from q2s_tf.serving.connection import read_credentials
    from q2s_tf.serving.query_command import look_up_titles, print_results, read_filters, search

    credentials = read_credentials(tls_ca, tls_cert, tls_key) if tls_ca or tls_cert or tls_key else None
    label = int(version) if version is not None and version.isdecimal() else version
    wanted = read_filters(filters or [])
    table = Table(documents, "documents", ["document_id", "title"], ["language"]) if documents else None
    with cli.console.status("searching"):
        results = search(
            target, query, country, k, pages, effort, min_score, wanted, label, models, timeout_seconds, credentials
        )
        titles = look_up_titles(table, (name for page in results.pages for name, _ in page)) if table else None
    print_results(results, titles, Console(width=None if sys.stdout.isatty() else 160))


if __name__ == "__main__":
    cli.run(main)
