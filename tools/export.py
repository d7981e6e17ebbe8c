#!/usr/bin/env python
"""Command line of `q2s_tf.serving.export`."""

from enum import StrEnum
from pathlib import Path

import typer

from q2s_tf.cli import run as run_command


class IndexKind(StrEnum):
    """The kinds of index that `--index` takes."""

    scann = "scann"
    partitioned = "partitioned"
    exact = "exact"


def main(
    run: Path = typer.Option(..., help="A run directory of tools/train.py."),
    documents: Path = typer.Option(..., help="The catalogue to be searched, Parquet or TSV."),
    out: Path = typer.Option(Path("saved_models"), help="Folder of the servables."),
    index: IndexKind | None = typer.Option(
        None, help="Not given: exact up to 20,000 documents, then partitioned if it pays."
    ),
) -> None:
    """Export a run and a catalogue as one new version of query_tower, document_tower and retriever.

    Example: tools/export.py --run runs/first --documents data/documents.parquet --out saved_models
    """
    from q2s_tf.serving.export import export

    version = export(run, documents, out, index.value if index else None)
    print(f"version {version} of query_tower, document_tower and retriever is in {out}")


if __name__ == "__main__":
    run_command(main)
