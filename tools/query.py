#!/usr/bin/env python
"""Asks a server for the documents that answer a query: see --help."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from q2s_tf import cli
from q2s_tf.serving import DEFAULT_EFFORT


def main(
    query: Annotated[str, typer.Argument(help="The query, in any language.")],
    country: Annotated[str, typer.Option(help="The searcher's country; empty where unknown.")] = "",
    k: Annotated[int, typer.Option(min=1, help="How many documents.")] = 10,
    target: Annotated[str, typer.Option(help="HOST:PORT of the server.")] = "127.0.0.1:8500",
    documents: Annotated[Path | None, typer.Option(help="Catalogue (Parquet or TSV) to take titles from.")] = None,
    effort: Annotated[int, typer.Option(min=0, help="Partitions to search; 0: the index decides.")] = DEFAULT_EFFORT,
    min_score: Annotated[float, typer.Option(help="Least cosine that counts.")] = -1.0,
    models: Annotated[Path, typer.Option(help="Exports to take the channels' names from.")] = Path("saved_models"),
    timeout_seconds: Annotated[float, typer.Option(help="How long to wait for each answer.")] = 10.0,
) -> None:
    """Prints the ranked documents with their scores, and how much each channel of the query weighed.

    Example: python tools/query.py "red sofa" --country US --documents documents.parquet
    """
    from q2s_tf.serving.answers import Question, ask, look_up, open_catalogue, show

    catalogue = open_catalogue(documents) if documents else None
    with cli.console.status("asking"):
        answer = ask(Question(query, country, k, effort, min_score), target, models, timeout_seconds)
        titles = look_up(catalogue, [name for name, _ in answer.matches]) if catalogue else None
    show(answer, titles, Console(width=None if sys.stdout.isatty() else 160))


if __name__ == "__main__":
    cli.run(main)
