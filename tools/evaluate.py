#!/usr/bin/env python
"""Command line of `q2s_tf.evaluation.evaluate`."""

from pathlib import Path

import typer
from rich.console import Console

from q2s_tf.cli import run as run_command


def main(
    run: Path = typer.Option(..., help="A run directory of tools/train.py."),
    documents: Path = typer.Option(..., help="The catalogue, Parquet or TSV."),
    judgements: Path = typer.Option(..., help="Rated pairs, or later positives."),
    out: Path = typer.Option(..., help="Folder for report.html, report.md and the figures."),
    later: Path | None = typer.Option(None, help="Positives of later days, for recall of what users chose then."),
    positives: Path | None = typer.Option(None, help="The training positives, for slices by query frequency."),
    models: Path | None = typer.Option(None, help="Exported servables, to measure search through the index."),
    relevant_at: float | None = typer.Option(None, help="Lowest relevant grade; that of the run by default."),
    recall_relevant_at: float | None = typer.Option(None, help="The same for recall and MRR over the catalogue."),
    stage: int | None = typer.Option(None, min=1, max=2, help="Stage of the weights; the last one by default."),
) -> None:
    """Evaluate a run, BM25 and their fusion: ROC AUC, nDCG, MRR and recall with intervals, also in slices.

    Example: tools/evaluate.py --run runs/first --documents data/documents.parquet
    --judgements data/judgements_test.parquet --out runs/first/evaluation
    """
    from q2s_tf.evaluation.evaluate import evaluate
    from q2s_tf.evaluation.results import metrics_table
    from q2s_tf.report.report import write_report

    evaluation = evaluate(
        run, documents, judgements, out, relevant_at, recall_relevant_at, stage, later, positives, models
    )
    Console().print(metrics_table(evaluation.results))
    print(f"written to {write_report(evaluation, out)}")


if __name__ == "__main__":
    run_command(main)
