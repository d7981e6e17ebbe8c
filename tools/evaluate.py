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
    out: Path = typer.Option(..., help="Folder for metrics.json."),
    relevant_at: float | None = typer.Option(None, help="Grade from which a pair is relevant, else the run's."),
    recall_relevant_at: float | None = typer.Option(None, help="The same for recall over the catalogue."),
    stage: int | None = typer.Option(None, min=1, max=2, help="Weights of this stage; the last one when not given."),
) -> None:
    """Evaluate a run, and BM25 beside it: ROC AUC, nDCG@10, recall over the catalogue, batch recall.

    Example: tools/evaluate.py --run runs/first --documents data/documents.parquet
    --judgements data/judgements_test.parquet --out runs/first/evaluation
    """
    from q2s_tf.evaluation.evaluate import evaluate, metrics_table

    results = evaluate(run, documents, judgements, out, relevant_at, recall_relevant_at, stage)
    Console().print(metrics_table(results))
    print(f"written to {out / 'metrics.json'}")


if __name__ == "__main__":
    run_command(main)
