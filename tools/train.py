#!/usr/bin/env python
"""Command line of `q2s_tf.training.train`."""

from pathlib import Path

import typer

from q2s_tf.cli import run


def main(
    config: Path = typer.Option(..., help="TOML config, for example configs/marketplace.toml."),
    documents: Path = typer.Option(..., help="The catalogue, Parquet or TSV."),
    positives: Path = typer.Option(..., help="Pairs of a query and its document, from tools/build_positives.py."),
    validation: Path = typer.Option(..., help="Judgements, or later positives; they choose the best epoch."),
    out: Path = typer.Option(..., help="The run directory to make."),
    set_: list[str] = typer.Option([], "--set", help="Another value for a key of the config: stage1.batch_size=512."),
    tokenizer: Path | None = typer.Option(None, help="A tokenizer.model of an earlier run; trained when not given."),
    resume: bool = typer.Option(False, "--resume", help="Go on with a run that was cut short."),
) -> None:
    """Train both towers in two stages and leave a run directory.

    Example: tools/train.py --config configs/marketplace.toml --documents data/documents.parquet
    --positives data/positives.parquet --validation data/judgements_validation.parquet --out runs/first
    """
    from q2s_tf.config import read_config
    from q2s_tf.training import train

    train(read_config(config, set_), documents, positives, validation, out, tokenizer, resume)


if __name__ == "__main__":
    run(main)
