"""The whole system on the generated marketplace: the command lines a user would type, one after the other."""

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

QUERIES = (("red sofa", "US"), ("sofá rojo", "ES"), ("赤いソファ", "JP"))
PARTS = ("data", "run", "saved_models")
console = Console(soft_wrap=True)


def demo(out: Path, tools: Path, config: Path, listings: int, seed: int) -> None:
    """Generates a marketplace, cleans its log, trains, exports, evaluates with a report, serves and asks over gRPC.

    Args:
        out: folder for `data`, `run` and `saved_models`, which are made anew.
        tools: folder of the command lines.
        config: of the training.
        listings: size of the catalogue.
        seed: of the marketplace.

    Raises:
        InputError: `out` holds something that is not a demo's.
        subprocess.CalledProcessError: a step failed; what it printed says why.
    """
    if out.exists() and any(entry.name not in PARTS for entry in out.iterdir()):
        raise InputError(f"--out {out}: holds files of something else; give a folder that is new or a demo's")
    for part in PARTS:
        shutil.rmtree(out / part, ignore_errors=True)
    data, run, models = (out / part for part in PARTS)
    documents = data / "documents.parquet"
    begin = time.monotonic()
    _step(tools, "make_marketplace", out=data, listings=listings, seed=seed)
    positives, later = data / "positives.parquet", data / "later_positives.parquet"
    events = data / "events.parquet"
    _step(
        tools,
        "build_positives",
        events=events,
        documents=documents,
        out=positives,
        validation_days=4,
        validation_out=later,
    )
    validation, test = data / "judgements_validation.parquet", data / "judgements_test.parquet"
    _step(tools, "train", config=config, documents=documents, positives=positives, validation=validation, out=run)
    _step(tools, "export", run=run, documents=documents, out=models)
    report = run / "evaluation"
    tables = {"documents": documents, "judgements": test, "positives": positives, "later": later}
    _step(tools, "evaluate", run=run, **tables, models=models, out=report)
    with _server(tools, models) as target:
        for query, country in QUERIES:
            _step(tools, "query", query, country=country, target=target, models=models, documents=documents)
    minutes = (time.monotonic() - begin) / 60
    serve = _shown(tools, "serve", models=models)
    ask = _shown(tools, "query", "blue jacket", country="US", models=models, documents=documents)
    page = _shown(tools, "demo_app", models=models, documents=documents)
    console.print(
        f"""
[bold]Done in {minutes:.1f} minutes.[/bold] What there is now:
  {data}/           the catalogue, the search log, the positives and their report, judgements
  {run}/            the trained towers: config.toml, weights, metrics.jsonl, tensorboard/
  {report}/report.html   how good they are, where, and why
  {models}/   the servables, for TF Serving (see serving_config/) or the embedded server

Start the server in one terminal, and ask the next query, or search in a browser, from another:
  {serve}
  {ask}
  {page}

In Python:
  import q2s_tf
  towers = q2s_tf.load("{run}")
  towers.query.predict({{"query": ["blue jacket"], "country": ["US"]}})""",
        highlight=False,
    )


def _arguments(values: tuple[str, ...], options: dict[str, object]) -> list[str]:
    named = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return [*values, *named]


def _shown(tools: Path, tool: str, *values: str, **options: object) -> str:
    """A step as a user would type it."""
    here = Path.cwd()
    paths = (Path(sys.executable), tools.absolute() / f"{tool}.py")
    shown = [str(path.relative_to(here) if path.is_relative_to(here) else path) for path in paths]
    return shlex.join([*shown, *_arguments(values, options)])


def _step(tools: Path, tool: str, *values: str, **options: object) -> None:
    console.print(f"\n[bold]$ {_shown(tools, tool, *values, **options)}[/bold]", highlight=False)
    subprocess.run([sys.executable, tools / f"{tool}.py", *_arguments(values, options)], check=True)


@contextmanager
def _server(tools: Path, models: Path) -> Iterator[str]:
    """An embedded server on a free port; gives its HOST:PORT, and ends it."""
    console.print(f"\n[bold]$ {_shown(tools, 'serve', models=models, port=0)} &[/bold]", highlight=False)
    command = [sys.executable, str(tools / "serve.py"), *_arguments((), {"models": models, "port": 0})]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            ready = server.stdout.readline().strip() if server.stdout else ""
            if not ready:
                raise subprocess.CalledProcessError(server.wait(), command)
            console.print(ready, highlight=False)
            yield ready.rsplit(" ", 1)[-1]
        finally:
            server.terminate()
