#!/usr/bin/env python
"""Asks a server for the documents that answer a query: see --help."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from q2s_tf import cli
from q2s_tf.serving import DEFAULT_EFFORT

TLS = "PEM file; any of the three makes the connection an encrypted one."


def main(
    query: Annotated[str, typer.Argument(help="The query, in any language.")],
    country: Annotated[str, typer.Option(help="The searcher's country; empty where unknown.")] = "",
    k: Annotated[int, typer.Option(min=1, help="How many documents, on each page.")] = 10,
    target: Annotated[str, typer.Option(help="HOST:PORT of the server.")] = "127.0.0.1:8500",
    documents: Annotated[Path | None, typer.Option(help="Catalogue (Parquet or TSV) to take titles from.")] = None,
    filters: Annotated[
        list[str] | None, typer.Option("--filter", help="COLUMN=VALUE that documents must have; may be repeated.")
    ] = None,
    pages: Annotated[int, typer.Option(min=1, help="How many pages; later ones are searched for harder.")] = 1,
    effort: Annotated[
        int, typer.Option(min=0, help="Partitions to search; 0: the index, or the page, decides.")
    ] = DEFAULT_EFFORT,
    min_score: Annotated[float, typer.Option(help="Least cosine that counts.")] = -1.0,
    version: Annotated[str | None, typer.Option(help="Of the retriever: a number, or a label such as canary.")] = None,
    models: Annotated[Path, typer.Option(help="Exports to take the channels' names from.")] = Path("saved_models"),
    timeout_seconds: Annotated[float, typer.Option(help="How long to wait for each answer.")] = 10.0,
    tls_ca: Annotated[Path | None, typer.Option(help=f"Who signed the server's certificate. {TLS}")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="The client's certificate, for mutual TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The client's private key, for mutual TLS.")] = None,
) -> None:
    """Prints the ranked documents with their scores, and how much each channel of the query weighed.

    Example: python tools/query.py "red sofa" --country US --documents documents.parquet
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is told once, by us; read when it is imported
    from q2s_tf.serving.answers import Question, ask, look_up, open_catalogue, read_filters, show
    from q2s_tf.serving.connection import read_credentials

    credentials = read_credentials(tls_ca, tls_cert, tls_key) if tls_ca or tls_cert or tls_key else None
    selected = int(version) if version is not None and version.isdecimal() else version
    question = Question(query, country, k, effort, min_score, read_filters(filters or []), selected, pages)
    catalogue = open_catalogue(documents) if documents else None
    with cli.console.status("asking"):
        answer = ask(question, target, models, timeout_seconds, credentials)
        titles = look_up(catalogue, answer.document_ids) if catalogue else None
    show(answer, titles, Console(width=None if sys.stdout.isatty() else 160))


if __name__ == "__main__":
    cli.run(main)
