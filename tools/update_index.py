#!/usr/bin/env python
"""Command line of `q2s_tf.serving.update`."""

from pathlib import Path

import typer

from q2s_tf.cli import run as run_command


def main(
    run: Path = typer.Option(..., help="The run directory that the retriever was exported from."),
    models: Path = typer.Option(Path("saved_models"), help="Folder of the servables."),
    upsert: Path | None = typer.Option(None, help="Documents that are new or changed, Parquet or TSV."),
    delete: Path | None = typer.Option(None, help="Table with document_id, or a .txt file with one id a line."),
    compact: bool = typer.Option(False, help="Build the index again, with the delta in it and no tombstones."),
    keep: int | None = typer.Option(None, min=1, help="Remove all but this many of the newest versions."),
) -> None:
    """Publish a new version of the retriever with documents added, changed and deleted, without a new index.

    Example: tools/update_index.py --run runs/first --upsert changed.parquet --delete sold.txt --models saved_models
    """
    from q2s_tf.serving.update import update_index
    from q2s_tf.serving.versions import keep_newest

    done = update_index(run, models, upsert, delete, compact)
    print(f"version {done.version} of retriever is in {models}: {done.documents} documents")
    print(f"{done.upserted} upserted, {done.deleted} deleted, {done.unknown} to delete were not there")
    if keep is not None:
        keep_newest(models, keep)


if __name__ == "__main__":
    run_command(main)
