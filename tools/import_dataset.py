#!/usr/bin/env python
"""Turns a published search data set into documents, judgements and positives."""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from q2s_tf import cli
from q2s_tf.datasets import Name, import_dataset


def main(
    name: Annotated[Name, Argument(help="The data set.")],
    path: Annotated[Path, Argument(help="The folder that holds its files.")],
    out: Annotated[Path, Option(help="The folder to write Parquet files into.")],
    validation_every: Annotated[
        int | None, Option(min=2, help="Home Depot: use one training query in this many for validation.  [default: 20]")
    ] = None,
) -> None:
    """Turns a published search data set into documents, judgements and positives.

    Example: tools/import_dataset.py home_depot data/homedepot --out data/home_depot
    """
    with cli.console.status(f"importing {name}"):
        written = import_dataset(name, path, out, validation_every)
    view = Table("file", "rows", title=f"{name} in {out}", title_justify="left")
    for file, rows in written.items():
        view.add_row(file, f"{rows:,}")
    Console().print(view)


if __name__ == "__main__":
    cli.run(main)
