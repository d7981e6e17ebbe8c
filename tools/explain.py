#!/usr/bin/env python
"""Explains one score: see --help."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from q2s_tf import cli


def main(
    query: Annotated[str, typer.Argument(help="The query, in any language.")],
    document: Annotated[str, typer.Option(help="Id of the document.")],
    run: Annotated[Path, typer.Option(help="A run directory of tools/train.py.")],
    documents: Annotated[Path, typer.Option(help="The catalogue, Parquet or TSV.")],
    country: Annotated[str, typer.Option(help="Country of the searcher; empty if unknown.")] = "",
    k: Annotated[int, typer.Option(min=0, help="Number of first documents to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Explain the score of a document for a query: channels, 3-grams, weights, rank and nearest competitor.

    Example: python tools/explain.py "red sofa" --country US --document d0000042 --run demo/run
    --documents demo/data/documents.parquet
    """
    from q2s_tf.report.explain import explain, print_explanation

    explanation = explain(run, documents, query, country or None, document, k)
    if as_json:
        print(json.dumps(asdict(explanation), ensure_ascii=False, indent=2))
    else:
        print_explanation(explanation, Console(width=None if sys.stdout.isatty() else 140))


if __name__ == "__main__":
    cli.run(main)
