#!/usr/bin/env python
"""Time, memory and recall of the partitioned index by catalogue size, built from a memory-mapped file of vectors.

The vectors are those of the tree of index.py. Each index is built, and exported in a retriever with a small query tower
and without a lexical index, in a process of its own. Memory is the most that the process has more than before the
ids are read and the index is built: anonymous memory (RssAnon), and all memory with the mapped files (VmHWM). Another
process loads the retriever as a server does, and searches with one thread.
"""

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from q2s_tf import cli

K, SAMPLE, TEST, WARM_UP = 100, 200, 300, 20
PARTS = {
    "find_centres": "centres",
    "nearest_centres": "assignment",
    "store_rows": "ordering",
    "draw_sample": "exact sample",
    "calibrate": "calibration",
}
"""The functions that an index is built by, with the names of their columns."""
CHUNK = 100_000


def main(
    sizes: list[int] = typer.Option([100_000, 1_000_000], help="Number of documents; may be repeated."),
    storages: list[str] = typer.Option(["float32", "bfloat16", "int8"], help="dtype of the rows; may be repeated."),
    dimension: int = typer.Option(128),
    recall: float = typer.Option(0.95, help="Recall@100 that the default effort is chosen for."),
    folder: Path | None = typer.Option(None, help="Folder for the vectors and the retrievers, which are removed."),
) -> None:
    """Measure the build of a partitioned index, its memory, its recall@100, and the latency of one query.

    Example: benchmarks/scaling_index.py --sizes 10000000 --storages int8 --folder /data
    """
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # as tools/serve.py does
    console = Console(width=150)
    results = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            vectors, near, model = (Path(temporary) / name for name in ("vectors.npy", "queries.npy", "retriever"))
            fresh_process(write_vectors, vectors, near, size, dimension)
            for storage in storages:
                result = fresh_process(build, vectors, near, storage, recall, model)
                result |= fresh_process(search, vectors, near, model)
                cli.console.print(size, storage, result)
                results.append((f"{size:,}", storage, result))
    seconds = ["build µs a document", "CPU µs a document", *PARTS.values(), "build", "saving"]
    console.print(table_of("seconds", results, seconds))
    memory = ["rows MB", "build anonymous MB", "build all MB", "export anonymous MB", "before MB", "disk MB"]
    console.print(table_of("memory", results, ["build / rows", "export / rows", *memory]))
    console.print(table_of("search", results, ["partitions", "effort", "recall@100", "p50 ms", "p99 ms"]))


def fresh_process(function: Any, *arguments: Any) -> Any:
    """The result of a function in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def table_of(title: str, results: list[tuple[str, str, dict[str, Any]]], columns: list[str]) -> Table:
    """Some columns of the results."""
    table = Table("documents", "storage", *columns, title=title)
    for size, storage, result in results:
        table.add_row(size, storage, *(f"{result[name]:,}" for name in columns))
    return table


def write_vectors(vectors: Path, near: Path, size: int, dimension: int) -> None:
    """Write documents and queries as NumPy files, some documents at a time."""
    import index
    import numpy as np

    draw = index.vector_source(size, dimension)
    file = np.lib.format.open_memmap(vectors, "w+", np.float32, (size, dimension))
    for start in cli.track(range(0, size, CHUNK), f"writing {size:,} vectors"):
        file[start : start + CHUNK] = draw(min(CHUNK, size - start), index.DOCUMENT_LENGTH)
    file.flush()
    np.save(near, draw(SAMPLE + TEST, index.QUERY_LENGTH))


class Memory:
    """The most memory of this process, in MB, by a thread that reads it 200 times a second."""

    def __init__(self) -> None:
        self.peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, read_memory("RssAnon"))
            time.sleep(0.005)


def read_memory(name: str) -> int:
    """A number of this process's memory, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 // 10**6 for line in lines if line.startswith(f"{name}:"))


@contextmanager
def timed_parts(seconds: dict[str, float]) -> Iterator[None]:
    """Adds up the seconds of the functions that an index is built by."""
    from q2s_tf.index import partitioned

    originals = {name: getattr(partitioned, name) for name in PARTS}

    def timed(name: str) -> Any:
        def call(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = originals[name](*arguments)
            seconds[PARTS[name]] = round(time.perf_counter() - begin, 1)
            return result

        return call

    for name in PARTS:
        setattr(partitioned, name, timed(name))
    yield
    for name, function in originals.items():
        setattr(partitioned, name, function)


def build(vectors: Path, near: Path, storage: str, recall: float, model: Path) -> dict[str, Any]:
    """Build an index and export it in a retriever; returns seconds, memory and facts."""
    import numpy as np
    import pyarrow as pa
    import tensorflow as tf

    from q2s_tf.config import Config, TrigramsChannel
    from q2s_tf.index import DocumentRows, IndexedDocuments, build_index
    from q2s_tf.models import Tower
    from q2s_tf.serving.retriever import RetrieverServable

    documents, sample = np.load(vectors, mmap_mode="r"), np.load(near)[:SAMPLE]
    count, dimension = documents.shape
    channels: dict[str, Any] = {
        "query": TrigramsChannel(tower="query", input="query", kind="trigrams", buckets=1_000),
        "title": TrigramsChannel(tower="document", input="title", kind="trigrams", buckets=1_000),
    }
    tower = Tower(Config(channels=channels, dimension=dimension), "query")
    build_index("partitioned", np.array(documents[:2_000]), 0, recall, storage, sample)  # loads libraries and kernels
    before, all_before, memory = read_memory("RssAnon"), read_memory("VmRSS"), Memory()
    result: dict[str, Any] = {}
    ids = pa.array(np.arange(count)).cast(pa.string()).cast(pa.binary()).cast(pa.large_binary())
    pa.default_memory_pool().release_unused()  # as export does
    begin, cpu = time.perf_counter(), time.process_time()
    with timed_parts(result):
        index, order = build_index("partitioned", documents, 0, recall, storage, sample)
    result["build"] = round(time.perf_counter() - begin, 1)
    result["build µs a document"] = round((time.perf_counter() - begin) / count * 1e6, 1)
    result["CPU µs a document"] = round((time.process_time() - cpu) / count * 1e6, 1)
    size = np.dtype(tf.as_dtype(storage).as_numpy_dtype).itemsize * count * dimension // 10**6
    result |= {"rows MB": size, "before MB": before, "build anonymous MB": memory.peak - before}
    result["build all MB"] = read_memory("VmHWM") - all_before
    begin = time.perf_counter()
    rows = IndexedDocuments.in_order(DocumentRows(ids, {}), order, dimension)
    del ids, order
    pa.default_memory_pool().release_unused()
    servable = RetrieverServable(tower, index, rows)
    tf.saved_model.save(servable, str(model / "1"), servable.endpoints)
    result["saving"] = round(time.perf_counter() - begin, 1)
    result["export anonymous MB"] = memory.peak - before
    result["disk MB"] = sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) // 10**6
    for part in ("build", "export"):
        result[f"{part} / rows"] = round(result[f"{part} anonymous MB"] / size, 2)
    return result | {"partitions": index.parameters["partitions"], "effort": index.default_effort}


def search(vectors: Path, near: Path, model: Path) -> dict[str, Any]:
    """Load the retriever and search with one thread; returns the recall@100 and percentiles of the latency."""
    import numpy as np

    from q2s_tf.index.effort import exact_nearest
    from q2s_tf.server.servable import Servable

    queries = np.load(near)[SAMPLE:]
    exact = exact_nearest(np.load(vectors, mmap_mode="r"), queries)
    signature = Servable("retriever", 1, model / "1").signatures["by_embedding"]
    seconds, found = [], []
    for number in cli.track(range(-WARM_UP, TEST), "searching"):
        feeds = {"embedding": queries[[number]], "k": np.int32(K), "effort": np.int32(0), "min_score": np.float32(-1)}
        begin = time.perf_counter()
        answer = signature._call(*(feeds[key] for key in signature.inputs))
        if number >= 0:
            seconds.append(time.perf_counter() - begin)
            ids = answer[signature.outputs.index("document_id")][0].astype(int)
            found.append(len(np.intersect1d(ids, exact[number])) / K)
    p50, p99 = (round(float(value) * 1e3, 2) for value in np.percentile(seconds, [50, 99]))
    return {"recall@100": round(float(np.mean(found)), 3), "p50 ms": p50, "p99 ms": p99}


if __name__ == "__main__":
    cli.run(main)
