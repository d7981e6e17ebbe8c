#!/usr/bin/env python
"""Command line of `q2s_tf.evaluation.compare`."""

from pathlib import Path

import typer
from rich.console import Console

from q2s_tf.cli import run as run_command


def main(
    run_a: Path = typer.Argument(..., help="A run directory of tools/train.py, the current one."),
    run_b: Path = typer.Argument(..., help="Another run directory."),
    documents: Path = typer.Option(..., help="The catalogue, Parquet or TSV."),
    judgements: Path = typer.Option(..., help="Rated pairs, or later positives."),
    out: Path | None = typer.Option(None, help="Folder for comparison.json and per_query.parquet."),
    later: Path | None = typer.Option(None, help="Positives of later days, for recall of what users chose then."),
    relevant_at: float | None = typer.Option(None, help="Lowest relevant grade; that of the runs by default."),
    recall_relevant_at: float | None = typer.Option(None, help="The same for recall and MRR over the catalogue."),
    stage_a: int | None = typer.Option(None, min=1, max=2, help="Stage of RUN_A; the last one by default."),
    stage_b: int | None = typer.Option(None, min=1, max=2, help="Stage of RUN_B; the last one by default."),
) -> None:
    """Compare two runs on the same judgements: differences, intervals, p-values, and the queries that changed most.

    Both runs are evaluated again, on the same data.

    Example: tools/compare.py runs/first runs/second --documents data/documents.parquet
    --judgements data/judgements_test.parquet
    """
    from q2s_tf.evaluation.compare import compare, comparison_tables

    results = compare(
        run_a, run_b, documents, judgements, out, later, relevant_at, recall_relevant_at, stage_a, stage_b
    )
    console = Console()
    for table in comparison_tables(results):
        console.print(table)
    if out:
        print(f"written to {out / 'comparison.json'}")


if __name__ == "__main__":
    run_command(main)
