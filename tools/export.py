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


class Storage(StrEnum):
    """What `--storage` takes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


def main(
    run: Path = typer.Option(..., help="A run directory of tools/train.py."),
    documents: Path = typer.Option(..., help="The catalogue to be searched, Parquet or TSV."),
    out: Path = typer.Option(Path("saved_models"), help="Folder of the servables."),
    index: IndexKind | None = typer.Option(
        None, help="Not given: exact up to 20,000 documents, then partitioned if it pays."
    ),
    recall: float = typer.Option(0.95, help="Share of the exact top 100 that the default effort is to find."),
    queries: Path | None = typer.Option(
        None, help="A table with query and country to measure that on; else documents with noise."
    ),
    storage: Storage = typer.Option(
        Storage.float32, help="Of --index partitioned: bfloat16 takes half the memory, int8 a quarter, and more time."
    ),
    filter: list[str] = typer.Option([], help="A text column that requests can filter by; may be given again."),
    keep: int | None = typer.Option(None, min=1, help="Remove all but this many of the newest versions."),
) -> None:
    """Export a run and a catalogue as one new version of query_tower, document_tower and retriever.

    Example: tools/export.py --run runs/first --documents data/documents.parquet --out saved_models --filter country
    """
    from q2s_tf.serving.export import export
    from q2s_tf.serving.versions import keep_newest

    kind = index.value if index else None
    version = export(run, documents, out, kind, recall, storage.value, filter, queries)
    print(f"version {version} of query_tower, document_tower and retriever is in {out}")
    if keep is not None:
        keep_newest(out, keep)


if __name__ == "__main__":
    run_command(main)
