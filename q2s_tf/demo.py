"""The whole system on the generated marketplace: the commands that a user would type, one after the other."""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from q2s_tf.errors import InputError
from q2s_tf.extras import missing

QUERIES = (("red sofa", "US"), ("sofá rojo", "ES"), ("赤いソファ", "JP"))
PARTS = ("data", "run", "saved_models")
console = Console(soft_wrap=True, highlight=False)


def demo(out: Path, config: str, listings: int, seed: int) -> None:
    """Generates a marketplace, cleans its log, trains, exports, evaluates with a report, serves and queries over gRPC.

    Without the extra `report` the evaluation has no HTML report; without the extra `server` nothing is served.

    Args:
        out: folder for `data`, `run` and `saved_models`, which are replaced.
        config: of the training; a file or the name of a shipped config.
        listings: size of the catalogue.
        seed: of the marketplace.

    Raises:
        InputError: `out` holds files that are not of a demo.
        subprocess.CalledProcessError: a step failed; its own message is on standard error.
    """
    if out.exists() and any(entry.name not in PARTS for entry in out.iterdir()):
        raise InputError(f"--out {out}: holds other files; give a new folder or that of an earlier demo")
    for part in PARTS:
        shutil.rmtree(out / part, ignore_errors=True)
    data, run, models = (out / part for part in PARTS)
    documents, positives, later = (data / f"{n}.parquet" for n in ("documents", "positives", "later_positives"))
    validation, test = (data / f"judgements_{part}.parquet" for part in ("validation", "test"))
    report = run / "evaluation"
    no_server = missing("server")
    begin = time.monotonic()
    _step("make-marketplace", out=data, listings=listings, seed=seed)
    _step(
        "build-positives", events=data / "events.parquet", documents=documents, out=positives, validation_days=4,
        validation_out=later,
    )  # fmt: skip
    _step("train", config=config, documents=documents, positives=positives, validation=validation, out=run)
    _step("export", run=run, documents=documents, out=models, queries=validation)
    _step(
        "evaluate", run=run, documents=documents, judgements=test, positives=positives, later=later, models=models,
        out=report,
    )  # fmt: skip
    if not no_server:
        with _server(models) as target:
            for query, country in QUERIES:
                _step("query", query, country=country, target=target, models=models, documents=documents)
    minutes = (time.monotonic() - begin) / 60
    page = report / ("metrics.json" if missing("report") else "report.html")
    console.print(
        f"""
[bold]Done in {minutes:.1f} minutes.[/bold] The results:
  {data}/           the catalogue, the search log, the positives and their report, judgements
  {run}/            the trained towers: config.toml, weights, metrics.jsonl, tensorboard/
  {page}   how good they are
  {models}/   the servables, for TF Serving or the embedded server"""
    )
    if no_server:
        console.print(f"\nNothing was served or queried: {no_server}", markup=False)
    else:
        console.print(
            f"""
Start the server in one terminal; query it, or search in a browser, from another:
  {_shown("serve", models=models)}
  {_shown("query", "blue jacket", country="US", models=models, documents=documents)}
  {_shown("demo-app", models=models, documents=documents)}"""
        )
    console.print(
        f"""
In Python:
  import q2s_tf
  towers = q2s_tf.load("{run}")
  towers.encode_queries(["blue jacket"], countries=["US"])""",
        markup=False,
    )


def _arguments(command: str, values: tuple[str, ...], options: dict[str, object]) -> list[str]:
    named = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return [command, *values, *named]


def _shown(command: str, *values: str, **options: object) -> str:
    """A step as a user would type it: with the path of `q2s` where the shell does not find it by its name."""
    script = Path(sys.executable).with_name("q2s")
    if script.is_file() and shutil.which("q2s") != str(script):
        program = str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)
    else:
        program = "q2s"
    return shlex.join([program, *_arguments(command, values, options)])


def _step(command: str, *values: str, **options: object) -> None:
    console.print(f"\n[bold]$ {_shown(command, *values, **options)}[/bold]")
    subprocess.run([sys.executable, "-m", "q2s_tf", *_arguments(command, values, options)], check=True)


@contextmanager
def _server(models: Path) -> Iterator[str]:
    """An embedded server on a free port; yields its HOST:PORT, and ends it."""
    console.print(f"\n[bold]$ {_shown('serve', models=models, port=0)} &[/bold]")
    command = [sys.executable, "-m", "q2s_tf", *_arguments("serve", (), {"models": models, "port": 0})]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            ready = server.stdout.readline().strip() if server.stdout else ""
            if not ready:
                raise subprocess.CalledProcessError(server.wait(), command)
            console.print(ready)
            yield ready.rsplit(" ", 1)[-1]
        finally:
            server.terminate()
