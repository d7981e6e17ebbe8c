#!/usr/bin/env python
"""Seconds that a retriever takes to load, with its warm-up, each time in a fresh process.

Give several folders of servables to compare exports: they take turns, so that the speed of the machine is the same for
all of them. The loader is that of the embedded server, which is TensorFlow's session loader.
"""

import statistics
import subprocess
import sys
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from q2s_tf import cli
from q2s_tf.serving.folders import versions_in

CODE = """
import sys, time
from pathlib import Path
import q2s_tf.server.servable as servable
begin = time.perf_counter()
servable.Servable("retriever", 1, Path(sys.argv[1]))
print(time.perf_counter() - begin)
"""


def main(
    models: list[Path] = typer.Option(..., help="Folder of exported servables; may be repeated."),
    rounds: int = typer.Option(3, help="Loads of each retriever."),
) -> None:
    """Compare the load time of the newest retriever of each folder.

    Example: benchmarks/retriever_load.py --models demo/saved_models
    """
    seconds: dict[Path, list[float]] = {max(versions_in(folder / "retriever").items())[1]: [] for folder in models}
    for _ in cli.track(range(rounds), "loading"):
        for folder, values in seconds.items():
            done = subprocess.run([sys.executable, "-c", CODE, str(folder)], capture_output=True, text=True, check=True)
            values.append(float(done.stdout))
    table = Table("retriever", "median s", "least s")
    for folder, values in seconds.items():
        table.add_row(str(folder), f"{statistics.median(values):.2f}", f"{min(values):.2f}")
    Console().print(table)


if __name__ == "__main__":
    cli.run(main)
