#!/usr/bin/env python
"""Turns a search log into training positives: see docs/search_log.md."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Option

from q2s_tf import cli
from q2s_tf.search_log import Backend, Stage, build_positives, duration

TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]


def main(
    events: Annotated[str, Option(help="The log: a file, folder, glob or partitioned tree; Parquet, CSV, TSV, JSONL.")],
    out: Annotated[Path, Option(help="Parquet or TSV file to write (.tsv, .tsv.gz); also writes a .report.json.")],
    backend: Annotated[Backend, Option(help="Engine; pyspark needs the extra 'spark' and Java.")] = "duckdb",
    window: Annotated[str, Option(help="Longest time from a search to its last step: 24h, 90m, 30s, 7d.")] = "24h",
    require: Annotated[Stage, Option(help="The last step that must have happened.")] = "reply",
    documents: Annotated[str | None, Option(help="Catalogue; events on other documents are left out.")] = None,
    strict: Annotated[bool, Option("--strict", help="Fail if a row of the log would be left out.")] = False,
    validation_days: Annotated[int, Option(min=0, help="Write the last days to --validation-out.")] = 0,
    validation_out: Annotated[Path | None, Option(help="File for the positives of those days.")] = None,
    memory: Annotated[str, Option(help="Memory of the engine; the rest is spilled to disk.")] = "2GB",
    max_searches_per_hour: Annotated[int, Option(min=1, help="Users who search more often are bots.")] = 120,
    max_query_length: Annotated[int, Option(min=1, help="Longest query, in characters.")] = 200,
    now: Annotated[datetime | None, Option(formats=TIMES, help="Later events are in the future; UTC.")] = None,
) -> None:
    """Turns a search log into positives: pairs of a query and a listing whose seller answered.

    Example: tools/build_positives.py --events demo/events.parquet --out demo/positives.parquet --window 24h
    """
    with cli.progress_bar(transient=True) as progress:
        task = progress.add_task("starting", total=4)

        def announce(step: str) -> None:
            progress.update(task, description=step, advance=1)

        report = build_positives(
            events, out, backend=backend, window=duration(window), require=require, documents=documents, strict=strict,
            validation_days=validation_days, validation_out=validation_out, memory=memory,
            max_searches_per_hour=max_searches_per_hour, max_query_length=max_query_length, now=now, announce=announce,
        )  # fmt: skip
    Console().print(report.table())
    if not report.positives:
        cli.console.print("warning: no positives found; the table above shows which rows were left out")


if __name__ == "__main__":
    cli.run(main)
