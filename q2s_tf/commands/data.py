"""Commands that make tables: a marketplace, positives from a log, splits of judgements, published data sets."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from q2s_tf import cli, extras

TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]


def make_marketplace(
    out: Annotated[Path, Option(help="Folder for the four Parquet files; created if it does not exist.")],
    listings: Annotated[int, Option(min=1, max=10_000_000, help="Number of listings.")] = 8000,
    seed: Annotated[int, Option(min=0, max=2**32 - 1, help="The same seed gives the same tables.")] = 1,
    users: Annotated[
        int | None, Option(min=1, max=100_000_000, help="Number of shoppers.  [default: 8 for every 5 listings]")
    ] = None,
    days: Annotated[int, Option(min=1, max=3650, help="Length of the log.")] = 28,
    image_dimension: Annotated[int, Option(min=1, max=8192, help="Width of the image vectors.")] = 64,
) -> None:
    """Generate a marketplace: catalogue, search log, judgements.

    Example: q2s make-marketplace --out data/marketplace --listings 8000 --seed 1
    """
    from q2s_tf.simulation import make_marketplace

    summary = make_marketplace(
        out, listings, seed, users=users, days=days, image_dimension=image_dimension, show_progress=True
    )
    Console().print(summary.table())


def build_positives(
    events: Annotated[str, Option(help="The log: a file, folder, glob or partitioned tree; Parquet, CSV, TSV, JSONL.")],
    out: Annotated[Path, Option(help="Parquet file to write, or TSV (.tsv, .tsv.gz); a .report.json goes beside it.")],
    backend: Annotated[
        Literal["duckdb", "pyspark"], Option(help="Engine; pyspark needs the extra 'spark' and Java.")
    ] = "duckdb",
    window: Annotated[str, Option(help="Longest time from a search to its last step: 24h, 90m, 30s, 7d.")] = "24h",
    require: Annotated[
        Literal["click", "message", "reply"], Option(help="The last step that must have happened.")
    ] = "reply",
    documents: Annotated[str | None, Option(help="Catalogue; events on other documents are left out.")] = None,
    strict: Annotated[bool, Option("--strict", help="Refuse the log if anything in it must be left out.")] = False,
    allow_empty: Annotated[bool, Option("--allow-empty", help="Write an empty table if there is no positive.")] = False,
    validation_days: Annotated[int, Option(min=0, max=3650, help="Last days to keep for --validation-out.")] = 0,
    validation_out: Annotated[Path | None, Option(help="File for the positives of those days.")] = None,
    memory: Annotated[str, Option(help="Memory limit of the engine; the rest is spilled to disk.")] = "2GB",
    max_searches_per_hour: Annotated[
        int, Option(min=1, max=1_000_000, help="Users who search more often are bots.")
    ] = 120,
    max_query_length: Annotated[int, Option(min=1, max=1_000_000, help="Longest query, in characters.")] = 200,
    now: Annotated[datetime | None, Option(formats=TIMES, help="Later events lie in the future; UTC.")] = None,
) -> None:
    """Turn a search log into queries with answered listings.

    The output is the positives table of `q2s train`.

    Example: q2s build-positives --events demo/events.parquet --out demo/positives.parquet --window 24h
    """
    if backend == "pyspark":
        extras.require("spark")
    from q2s_tf.search_log import build_positives, duration

    with cli.progress_bar(transient=True) as progress:
        task = progress.add_task("starting", total=4)

        def announce(step: str) -> None:
            progress.update(task, description=step, advance=1)

        report = build_positives(
            events, out, backend=backend, window=duration(window), require=require, documents=documents, strict=strict,
            allow_empty=allow_empty, validation_days=validation_days, validation_out=validation_out, memory=memory,
            max_searches_per_hour=max_searches_per_hour, max_query_length=max_query_length, now=now, announce=announce,
        )  # fmt: skip
    Console().print(report.table())


def split_judgements(
    judgements: Annotated[Path, Option(help="query, document_id, relevance, optional country; Parquet or TSV.")],
    out: Annotated[Path, Option(help="Folder for the three Parquet files.")],
    relevant_at: Annotated[
        float | None, Option(min=-1000, max=1000, help="Lowest relevance of a positive pair. [default: 1]")
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an earlier split.")] = False,
) -> None:
    """Split rated pairs into positives, validation and test.

    By query: eight tenths become positives for training, one tenth validates, one tenth tests.

    Example: q2s split-judgements --judgements data/judgements.tsv --out data --relevant-at 2
    """
    from q2s_tf.datasets import split_judgements

    _print_rows(split_judgements(judgements, out, relevant_at, overwrite), f"judgements split into {out}")


def import_dataset(
    name: Annotated[Literal["home_depot", "esci", "wands"], Argument(help="The data set.")],
    path: Annotated[Path, Argument(help="The folder with its files.")],
    out: Annotated[Path, Option(help="Folder for the Parquet files.")],
    validation_every: Annotated[
        int | None, Option(min=2, max=1000, help="Home Depot only: every n-th training query validates. [default: 20]")
    ] = None,
) -> None:
    """Convert a published data set (Home Depot, ESCI, WANDS).

    Example: q2s import-dataset home_depot data/homedepot --out data/home_depot
    """
    from q2s_tf.datasets import import_dataset

    with cli.console.status(f"importing {name}"):
        written = import_dataset(name, path, out, validation_every)
    _print_rows(written, f"{name} in {out}")


def _print_rows(written: dict[str, int], title: str) -> None:
    table = Table("file", "rows", title=title, title_justify="left")
    for file, rows in written.items():
        table.add_row(file, f"{rows:,}")
    Console().print(table)
