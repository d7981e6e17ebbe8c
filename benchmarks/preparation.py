#!/usr/bin/env python
"""Time, memory and disk of preparing training examples, and the time of a training step, by size of the catalogue.

The catalogue and the positives are generated. A title has 3 to 9 words and a description 12 to 24, drawn by rank from a
vocabulary of 30,000 words. A positive is a document, the popular ones much more often, and a query of 1 to 3 words of
its title. The config is `configs/marketplace.toml` without images. Its tokenizer is trained once, on a sample.

`prepare_training` runs in a process of its own for each size. While it prepares, its resident memory is sampled:
anonymous memory, and pages of mapped files, which the system can drop; and the size of its run directory. Then the
processes take turns: each reads batches, and trains on batches that it reads.
"""

import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table

from q2s_tf import CONFIGS, cli

if TYPE_CHECKING:
    from q2s_tf.config import Config

WORDS, COUNTRIES, LANGUAGES = 30_000, ["AE", "BR", "DE", "JP", "US"], ["ar", "de", "en", "ja", "pt"]
CHUNK = 250_000
"""Rows that are generated at a time."""
JUDGEMENTS = 2_000
STEPS = 10
"""Batches of a turn, after one that is not counted."""


def main(
    documents: str = typer.Option("500000,5000000", help="Sizes of the catalogue, with commas between them."),
    positives_per_document: int = typer.Option(4, min=1),
    batch_size: int = typer.Option(256, min=2),
    turns: int = typer.Option(7, min=1, help="Turns of each size; the table has medians over their steps."),
    folder: Path | None = typer.Option(None, help="For the generated tables and the examples; a temporary one."),
    out: Path | None = typer.Option(None, help="JSON file for the result."),
) -> None:
    """Measure the preparation of training examples.

    Example: benchmarks/preparation.py --documents 500000,5000000 --positives-per-document 4 --out preparation.json
    """
    from q2s_tf.evaluation.results import write_json

    results = []
    pipes: list[Connection] = []
    with tempfile.TemporaryDirectory(dir=folder) as name, ExitStack() as stack:
        scratch = Path(name)
        tokenizer = scratch / "tokenizer.model"
        train_sample_tokenizer(tokenizer)
        for size in map(int, documents.split(",")):
            tables = scratch / f"tables{size}"
            make_tables(tables, size, size * positives_per_document)
            pipe, prepared = measure(tables, scratch / f"run{size}", tokenizer, batch_size, stack)
            pipes.append(pipe)
            results.append({"documents": size, **prepared, "read_seconds": [], "step_seconds": []})
            shutil.rmtree(tables)
        for number in cli.track(list(range(len(pipes))) * turns, "training in turns"):
            pipes[number].send(STEPS)
            for key, seconds in pipes[number].recv().items():
                results[number][key] += seconds
    Console().print(show(results))
    if out:
        write_json({"batch_size": batch_size, "sizes": results}, out)


def uniform(numbers: np.ndarray, stream: int) -> np.ndarray:
    """Uniform values in [0, 1) that depend on an integer and the number of a stream (splitmix64).

    Any row of the tables can therefore be generated without those before it.
    """
    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream * 0xD1B54A32D192ED03 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))).astype(np.float64) / 2.0**64


def make_vocabulary() -> pa.Array:
    """`WORDS` made-up words."""
    letters = np.array(list("aeiouaeioubcdfghjklmnprstvz"))
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 10, WORDS)
    return pa.array(["".join(generator.choice(letters, length)) for length in lengths], pa.string())


def word(documents: np.ndarray, position: int) -> np.ndarray:
    """Number of the word at a position of the title and description of documents: 0 is the most frequent word."""
    cumulative = np.cumsum(1 / (np.arange(WORDS) + 10))
    return np.searchsorted(cumulative, uniform(documents, position) * cumulative[-1])


def texts(vocabulary: pa.Array, documents: np.ndarray, first: int, lengths: np.ndarray) -> pa.Array:
    """For each document the words from `first` on, as many as its length, joined."""
    words = np.stack([word(documents, first + position) for position in range(lengths.max())], axis=1)
    used = np.arange(words.shape[1]) < lengths[:, None]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pc.binary_join(pa.ListArray.from_arrays(offsets, vocabulary.take(pa.array(words[used]))), " ")


def choice(documents: np.ndarray, stream: int, low: int, high: int) -> np.ndarray:
    """Integers from `low` to `high`, drawn for each document."""
    return low + (uniform(documents, stream) * (high - low + 1)).astype(np.int64)


def document_rows(vocabulary: pa.Array, documents: np.ndarray) -> pa.Table:
    """Rows of the catalogue by number."""
    return pa.table(
        {
            "document_id": pc.binary_join_element_wise("d", pa.array(documents).cast(pa.string()), ""),
            "title": texts(vocabulary, documents, 0, choice(documents, 100, 3, 9)),
            "description": texts(vocabulary, documents, 9, choice(documents, 101, 12, 24)),
            "language": pa.array(LANGUAGES).take(pa.array(choice(documents, 102, 0, 4))),
            "country": pa.array(COUNTRIES).take(pa.array(choice(documents, 103, 0, 4))),
        }
    )


def positive_rows(vocabulary: pa.Array, positives: np.ndarray, num_documents: int) -> pa.Table:
    """Rows of the positives by number."""
    popularity = (uniform(positives, 200) ** 3 * num_documents).astype(np.int64)
    documents = (uniform(popularity, 201) * num_documents).astype(np.int64)  # popular ones are anywhere in the table
    lengths = np.minimum(choice(positives, 202, 1, 3), choice(documents, 100, 3, 9))
    return pa.table(
        {
            "query": texts(vocabulary, documents, 0, lengths),
            "country": pa.array(COUNTRIES).take(pa.array(choice(positives, 203, 0, 4))),
            "document_id": pc.binary_join_element_wise("d", pa.array(documents).cast(pa.string()), ""),
            "weight": pa.array(choice(positives, 204, 1, 3).astype(np.float64)),
        }
    )


def make_tables(folder: Path, num_documents: int, num_positives: int) -> None:
    """Writes `documents.parquet`, `positives.parquet` and `judgements.parquet`, chunk by chunk."""
    folder.mkdir(parents=True)
    vocabulary = make_vocabulary()
    kinds: list[tuple[str, int, Callable[[np.ndarray], pa.Table]]] = [
        ("documents", num_documents, lambda numbers: document_rows(vocabulary, numbers)),
        ("positives", num_positives, lambda numbers: positive_rows(vocabulary, numbers, num_documents)),
    ]
    for name, total, make in kinds:
        writer = None
        for start in cli.track(range(0, total, CHUNK), f"generating {name}"):
            rows = make(np.arange(start, min(total, start + CHUNK)))
            writer = writer or pq.ParquetWriter(folder / f"{name}.parquet", rows.schema)
            writer.write_table(rows)
        if writer:
            writer.close()
    judged = positive_rows(vocabulary, np.arange(JUDGEMENTS) + num_positives, num_documents).drop_columns("weight")
    relevance = pa.array(np.arange(len(judged)) % 2 * 3.0)
    pq.write_table(judged.append_column("relevance", relevance), folder / "judgements.parquet")


def read_marketplace() -> "Config":
    """The config of the marketplace without images."""
    from q2s_tf.config_files import check_config, read_config

    config = read_config(CONFIGS / "marketplace.toml").model_dump(mode="json", exclude_none=True)
    del config["channels"]["images"], config["blending"]["weights"]["document"]["images"]
    return check_config(config, "marketplace", [])


def train_sample_tokenizer(path: Path) -> None:
    """A tokenizer of the titles and descriptions of 20,000 documents."""
    from q2s_tf.text import train_tokenizer

    rows = document_rows(make_vocabulary(), np.arange(20_000))
    sample = rows["title"].to_pylist() + rows["description"].to_pylist()
    path.write_bytes(train_tokenizer(sample, read_marketplace().tokenizer.vocabulary_size))


def measure(
    tables: Path, run: Path, tokenizer: Path, batch_size: int, stack: ExitStack
) -> tuple[Connection, dict[str, Any]]:
    """Runs `prepare` in a new process: its pipe, and what it reports, with the highest samples in bytes."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=prepare, args=(theirs, tables, run, tokenizer, batch_size), daemon=True)
    process.start()
    stack.callback(process.terminate)
    theirs.close()
    ended, peaks = threading.Event(), dict.fromkeys(("RssAnon", "RssFile", "VmRSS", "disk"), 0)
    sampler = threading.Thread(target=sample, args=(process.pid, run, peaks, ended))
    sampler.start()
    try:
        prepared = ours.recv()
    finally:
        ended.set()
        sampler.join()
    return ours, prepared | {f"peak_{name}": value for name, value in peaks.items()}


def memory(pid: int | None) -> dict[str, int]:
    """Figures of the memory of a process in bytes, by their names in `/proc/PID/status`."""
    try:
        lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    except OSError:  # it has ended
        return {}
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[-1] == "kB"}


def disk_bytes(folder: Path) -> int:
    """Bytes on disk of the files in a folder, some of which may be removed at the same time."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_blocks * 512
    return total


def sample(pid: int | None, run: Path, peaks: dict[str, int], ended: threading.Event) -> None:
    """Raises the peaks to the highest figures of a process and its run directory, ten times a second."""
    while not ended.wait(0.1):
        now = {**memory(pid), "disk": disk_bytes(run)}
        for name in peaks:
            peaks[name] = max(peaks[name], now.get(name, 0))


def prepare(pipe: Connection, tables: Path, run: Path, tokenizer: Path, batch_size: int) -> None:
    """Prepares the tables and sends what that took; then sends seconds of a number of steps, whenever it gets one."""
    import tensorflow as tf

    from q2s_tf.training import RetrievalModel, compile_stage, prepare_training

    config = read_marketplace()
    documents, positives, judgements = (tables / f"{name}.parquet" for name in ("documents", "positives", "judgements"))
    begin, cpu_begin = time.perf_counter(), time.process_time()
    towers, head, examples, _, _ = prepare_training(config, documents, positives, judgements, run, tokenizer)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    rows = {"positives": len(examples), "queries": len(examples.queries)}
    resources = {"bytes": disk_bytes(run), "peak_VmHWM": memory(os.getpid())["VmHWM"]}
    pipe.send({**rows, "seconds": seconds, "cpu_seconds": cpu_seconds, **resources})
    model = RetrievalModel(towers, head)
    compile_stage(model, 1, examples.steps_per_epoch(batch_size))
    model.optimizer.build(model.trainable_variables)
    dataset = examples.dataset(batch_size, (1,))
    step = tf.function(model.train_step, input_signature=[dataset.element_spec], autograph=False)
    drawn, batches = examples.batches(batch_size, (0,)), iter(dataset)
    while True:
        steps = pipe.recv()
        reads = time_each(steps, lambda: next(drawn))
        trained = time_each(steps, lambda: step(next(batches))["loss"].numpy())
        pipe.send({"read_seconds": reads, "step_seconds": trained})


def time_each(steps: int, call: Callable[[], Any]) -> list[float]:
    """Seconds of each of a number of calls, after one that is not counted."""
    moments = []
    for _ in range(steps + 1):
        call()
        moments.append(time.perf_counter())
    return np.diff(moments).tolist()


def show(results: list[dict[str, Any]]) -> Table:
    """The sizes as a table, one a column; memory in GiB, disk in GB, medians of the steps."""
    table = Table("", title="preparing training examples")
    for result in results:
        table.add_column(f"{result['documents']:,} documents", justify="right")

    def add_row(name: str, cell: Callable[[dict[str, Any]], str]) -> None:
        table.add_row(name, *map(cell, results))

    def per_million(result: dict[str, Any], key: str) -> str:
        return f"{result[key] / (result['documents'] + result['positives']) * 1e6:,.1f}"

    add_row("positives", lambda result: f"{result['positives']:,}")
    add_row("distinct queries", lambda result: f"{result['queries']:,}")
    add_row("seconds", lambda result: f"{result['seconds']:,.0f}")
    add_row("seconds / million rows", lambda result: per_million(result, "seconds"))
    add_row("CPU seconds / million rows", lambda result: per_million(result, "cpu_seconds"))
    add_row("peak resident memory, GiB", lambda result: f"{result['peak_VmHWM'] / 2**30:.2f}")
    add_row("peak anonymous memory, GiB", lambda result: f"{result['peak_RssAnon'] / 2**30:.2f}")
    add_row("peak file-backed memory, GiB", lambda result: f"{result['peak_RssFile'] / 2**30:.2f}")
    add_row("examples on disk, GB", lambda result: f"{result['bytes'] / 1e9:.2f}")
    add_row("peak on disk, GB", lambda result: f"{result['peak_disk'] / 1e9:.2f}")
    add_row("ms to read a batch", lambda result: f"{statistics.median(result['read_seconds']) * 1e3:,.1f}")
    add_row("ms of a training step", lambda result: f"{statistics.median(result['step_seconds']) * 1e3:,.1f}")
    return table


if __name__ == "__main__":
    cli.run(main)
