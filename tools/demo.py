#!/usr/bin/env python
"""Command line of `q2s_tf.demo`."""

from pathlib import Path

import typer

from q2s_tf.cli import run

TOOLS = Path(__file__).parent


def main(
    out: Path = typer.Option(Path("demo"), help="Folder for everything it makes."),
    config: Path = typer.Option(Path("configs/marketplace.toml"), help="Config of the training."),
    listings: int = typer.Option(8_000, help="Size of the generated catalogue."),
    seed: int = typer.Option(1, help="Seed of the generated marketplace."),
) -> None:
    """Run everything on a generated marketplace: log, positives, training, evaluation, export, serving, queries.

    Example: tools/demo.py --out demo
    """
    from q2s_tf.demo import demo

    demo(out, TOOLS, config, listings, seed)


if __name__ == "__main__":
    run(main)
