#!/usr/bin/env python
"""Makes the embedded default input: a simulated catalogue and search log, and judgements of simulated raters."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from q2s_tf.cli import run
from q2s_tf.simulation import START, make_marketplace


def main(
    out: Annotated[Path, typer.Option(help="Folder for the four Parquet files; created if necessary.")],
    listings: Annotated[int, typer.Option(help="Number of listings.")] = 8000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same tables.")] = 1,
    users: Annotated[int | None, typer.Option(help="Number of shoppers.  [default: 8 for every 5 listings]")] = None,
    days: Annotated[int, typer.Option(help="Length of the log.")] = 28,
    start: Annotated[
        datetime, typer.Option(formats=["%Y-%m-%d"], help="First day, UTC.", show_default=str(START.date()))
    ] = START,
    image_dimension: Annotated[int, typer.Option(help="Width of the image vectors.")] = 64,
) -> None:
    """Writes documents, events and judgements of a simulated marketplace as Parquet.

    Example: tools/make_marketplace.py --out data/marketplace --listings 8000 --seed 1
    """
    summary = make_marketplace(
        out, listings, seed, users=users, days=days, start=start, image_dimension=image_dimension, show_progress=True
    )
    Console().print(summary.table())


if __name__ == "__main__":
    run(main)
