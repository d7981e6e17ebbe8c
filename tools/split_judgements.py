#!/usr/bin/env python
"""Splits rated pairs into positives for training, and judgements for validation and test: see docs/guide.md."""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table
from typer import Option

from q2s_tf import cli
from q2s_tf.datasets import split_judgements


def main(
    judgements: Annotated[Path, Option(help="query, document_id, relevance, optional country; Parquet or TSV.")],
    out: Annotated[Path, Option(help="Folder for the three Parquet files.")],
    relevant_at: Annotated[float, Option(help="Lowest relevance of a relevant pair.")] = 1.0,
) -> None:
    """Splits rated pairs by query: 80 % become positives for training, 10 % are for validation, 10 % for test.

    Example: tools/split_judgements.py --judgements data/judgements.tsv --out data --relevant-at 2
    """
    written = split_judgements(judgements, out, relevant_at)
    view = Table("file", "rows", title=f"judgements split into {out}", title_justify="left")
    for file, rows in written.items():
        view.add_row(file, f"{rows:,}")
    Console().print(view)


if __name__ == "__main__":
    cli.run(main)
