#!/usr/bin/env python
"""How many pairs a second training learns from, beside PyTorch on the same geometry, and with ten times the tables.

The towers of the paper: 3-grams and an XLM-R of 2 layers (4 heads, 128, 384) for the query, 3-grams and one of 6 layers
for the title, attention fusion, in-batch softmax over the batch without known positives, clipping at 1.0, Adam at two
rates, dropout. Each way is a process of its own; they take turns, with as many threads and the same batches of ids,
each padded to its longest text. The texts were cut into ids before, which counts for none of them.

Two comparisons, each with `q2s_tf`: `RetrievalModel.train_step` as one graph, on batches in memory.

- `peers`: the same on batches drawn from the prepared tables, as `tools/train.py` draws them, and PyTorch on batches in
  memory (training_speed_torch.py), which is left out where the extra `peers` is not installed.
- `tables`: the same with ten times as many tokens and 3-gram buckets.

A thread of PyTorch waits for the others after every operation: where other jobs want the cores, more than one each
measures who is scheduled when.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from itertools import chain, count, cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from q2s_tf import cli

if TYPE_CHECKING:
    from q2s_tf.config import Config
    from q2s_tf.examples.batches import Examples

Batch = dict[str, Any]
Training = Callable[..., Iterator[float]]
"""Learns from a batch whenever its next value is asked for, and yields its loss."""
Way = tuple[Training, tuple[Any, ...]]
"""A training and its arguments."""
OURS, OURS_DATA, TORCH, LARGE = "q2s_tf", "q2s_tf, tf.data", "PyTorch", "q2s_tf, tables × 10"
PIECES = 8_000
"""Pieces of the tokenizer; the token tables can have more rows."""
BATCHES = 8
"""Batches in memory, which are learnt from again and again."""


def main(
    documents: Path = typer.Option(Path("demo/data/documents.parquet"), help="The catalogue; `make demo` leaves one."),
    positives: Path = typer.Option(Path("demo/data/positives.parquet"), help="The pairs; `make demo` leaves some."),
    batch_size: int = typer.Option(768, min=2, help="Pairs of a batch."),
    vocabulary: int = typer.Option(15_000, min=PIECES, help="Rows of the token tables."),
    buckets: int = typer.Option(100_000, min=1, help="Rows of the 3-gram tables."),
    threads: int = typer.Option(1, min=1, help="Of each process."),
    turns: int = typer.Option(7, min=1, help="Turns of each way; the table has medians over them."),
    steps: int = typer.Option(3, min=1, help="Steps of a turn, after one that does not count."),
    out: Path | None = typer.Option(None, help="JSON file for the result."),
) -> None:
    """Compare pairs per second of training with PyTorch's, and with tables ten times as large.

    Example: benchmarks/training_speed.py --documents runs/home_depot_data/documents.parquet
    --positives runs/home_depot_data/positives.parquet --out training_speed.json
    """
    from q2s_tf.evaluation.results import write_json

    comparisons: dict[str, dict[str, Way]] = {}
    with tempfile.TemporaryDirectory() as folder:

        def prepared(times: int) -> tuple[Any, ...]:
            config, model, examples = prepare(documents, positives, buckets * times, Path(folder) / f"{times}")
            drawn = islice(examples.batches(batch_size, (0,)), BATCHES)
            batches = [spread(batch, vocabulary * times) for batch in drawn]
            return config, model, vocabulary * times, threads, examples, batch_size, batches

        small, large = prepared(1), prepared(10)
        ours = {OURS: (our_training, small)}
        comparisons["peers"] = {**ours, OURS_DATA: (our_training, (*small[:-1], None))}
        if find_spec("torch") and find_spec("transformers"):
            import training_speed_torch

            arguments = small[0].model_dump(), vocabulary, threads, small[-1]
            comparisons["peers"][TORCH] = training_speed_torch.training, arguments
        comparisons["tables"] = {**ours, LARGE: (our_training, large)}
        runs = {name: take_turns(ways, turns, steps) for name, ways in comparisons.items()}
    result = {"batch_size": batch_size, "vocabulary": vocabulary, "buckets": buckets, "threads": threads, **runs}
    for name in comparisons:
        Console().print(show(result, name))
    if out:
        write_json(result, out)


def paper_config(buckets: int) -> "Config":
    """The towers of the paper over queries and titles."""
    from q2s_tf.config import Config, Encoder, TextChannel, TrigramsChannel

    grams: dict[str, Any] = {"kind": "trigrams", "buckets": buckets}
    return Config(
        channels={
            "query_trigrams": TrigramsChannel(tower="query", input="query", max_trigrams=64, **grams),
            "query_text": TextChannel(tower="query", input="query", kind="text", encoder="query", max_tokens=16),
            "title_trigrams": TrigramsChannel(tower="document", input="title", max_trigrams=128, **grams),
            "title_text": TextChannel(tower="document", input="title", kind="text", encoder="document", max_tokens=32),
        },
        encoders={"query": Encoder(num_layers=2), "document": Encoder(num_layers=6)},
    )


def prepare(documents: Path, positives: Path, buckets: int, folder: Path) -> tuple["Config", bytes, "Examples"]:
    """The config, a tokenizer of the titles, and the tables cut into ids with it."""
    from q2s_tf.evaluation.rankers import normalised
    from q2s_tf.examples.prepare import build_examples
    from q2s_tf.models import build_towers
    from q2s_tf.tables import open_documents, open_positives
    from q2s_tf.text import train_tokenizer

    config, catalogue = paper_config(buckets), open_documents(documents)
    pairs = open_positives(positives)
    model = train_tokenizer(normalised(catalogue.read()["title"].drop_null().to_pylist()), PIECES)
    towers = build_towers(config, {"query": model, "document": model})
    return config, model, build_examples(folder, towers, catalogue, pairs)


def spread(batch: Batch, vocabulary: int) -> Batch:
    """The batch with its token ids as far apart as a vocabulary of this size allows; 0 stays the padding."""
    towers = {"query": "query_text", "document": "title_text"}
    return batch | {
        tower: batch[tower] | {text: batch[tower][text] * (vocabulary // PIECES)} for tower, text in towers.items()
    }


def our_training(
    config: "Config",
    model: bytes,
    vocabulary: int,
    threads: int,
    examples: "Examples",
    batch_size: int,
    batches: list[Batch] | None,
) -> Iterator[float]:
    """Stage 1 of `tools/train.py`, on batches in memory again and again, or on those that it draws itself."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)

    from q2s_tf.models import Tower, Towers
    from q2s_tf.training.retrieval_model import RetrievalModel, compile_stage

    # The token tables have more rows than the tokenizer has pieces.
    towers = Towers(*(Tower(config, side, {side: vocabulary}, {side: model}) for side in ("query", "document")))
    trained = RetrievalModel(towers)
    compile_stage(trained, 1, 100_000)
    trained.optimizer.build(trained.trainable_variables)
    specs = examples.dataset(batch_size, (0,)).element_spec
    step = tf.function(trained.train_step, input_signature=[specs], autograph=False)
    data: Iterable[Any]
    if batches:
        data = cycle([tf.nest.map_structure(tf.constant, batch) for batch in batches])
    else:
        data = chain.from_iterable(examples.dataset(batch_size, (epoch,)) for epoch in count())
    for batch in data:
        trained.reset_metrics()
        yield float(step(batch)["loss"])


def take_turns(ways: dict[str, Way], turns: int, steps: int) -> dict[str, dict[str, Any]]:
    """Runs every way in a process of its own, one at a time, turn by turn.

    Returns:
        By way `seconds` and `cpu_seconds`, the mean of a step in each turn, and `loss`, that of its last step.
    """
    context = multiprocessing.get_context("spawn")
    runs: dict[str, dict[str, Any]] = {name: {"seconds": [], "cpu_seconds": [], "loss": None} for name in ways}
    pipes: dict[str, Connection] = {}
    processes = []
    try:
        for name, way in ways.items():
            pipes[name], theirs = context.Pipe()
            processes.append(context.Process(target=answer, args=(theirs, *way), daemon=True))
            processes[-1].start()
            theirs.close()
        for name, pipe in cli.track(pipes.items(), "warming up", len(pipes)):
            ask(pipe, 1, name)
        for name in cli.track(list(ways) * turns, "training in turns"):
            for key, value in ask(pipes[name], steps, name).items():
                runs[name][key] = [*runs[name][key], value] if key != "loss" else value
    finally:
        for process in processes:
            process.terminate()
    return runs


def answer(pipe: Connection, training: Training, arguments: tuple[Any, ...]) -> None:
    """A way's process: trains as many steps as it is asked for, after one that does not count."""
    losses = training(*arguments)
    while True:
        steps = pipe.recv()
        next(losses)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        last = [next(losses) for _ in range(steps)][-1]
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
        pipe.send({"seconds": seconds / steps, "cpu_seconds": cpu_seconds / steps, "loss": last})


def ask(pipe: Connection, steps: int, name: str) -> dict[str, float]:
    """What `answer` sends."""
    pipe.send(steps)
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError(f"the process of {name} ended") from None


def show(result: dict[str, Any], comparison: str) -> Table:
    """One comparison as a table: medians over the turns, of the ratios too, since the machine's speed changes."""
    title = "{batch_size} pairs a batch, tables of {vocabulary:,} tokens and {buckets:,} buckets, threads: {threads}"
    table = Table(title=title.format_map(result))
    for name in (comparison, "ms a step", "pairs/s", f"time / {OURS}", "CPU ms a step", f"CPU / {OURS}", "loss"):
        table.add_column(name, justify="left" if name == comparison else "right")
    for name, run in result[comparison].items():
        cells = [name]
        for key in ("seconds", "cpu_seconds"):
            middle = statistics.median(run[key])
            cells += [f"{middle * 1e3:,.0f}"] + [f"{result['batch_size'] / middle:,.0f}"] * (key == "seconds")
            cells += [f"{ratio(run[key], result[comparison][OURS][key]):.2f}"]
        table.add_row(*cells, f"{run['loss']:.3f}")
    return table


def ratio(slower: list[float], faster: list[float]) -> float:
    """The median over the turns of how many times as long one took as the other."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


if __name__ == "__main__":
    cli.run(main)
