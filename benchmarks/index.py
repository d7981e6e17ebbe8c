#!/usr/bin/env python
"""Build time, size, and recall against latency by effort of ScaNN and of the partitioned index, by catalogue size.

The vectors are generated from a tree of four levels with about 20,000, 2,000, 200 and 20 documents a node, of
log-normal sizes. The offsets of its nodes have lengths .35, .4, .45 and .5; documents are .6 from the last node and
queries 1.2. All are scaled to unit length. The indexes take turns, one query at a time, through the session loader with
one thread.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import typer

from q2s_tf.cli import console, run, track

LEVELS = ((20_000, 0.35), (2_000, 0.4), (200, 0.45), (20, 0.5))
DOCUMENT_LENGTH, QUERY_LENGTH = 0.6, 1.2
NEIGHBOURS = 100


class LoadedIndex(NamedTuple):
    """One kind of index, saved and loaded again; `order` has the document of each row."""

    name: str
    build_seconds: float
    megabytes: float
    efforts: list[int]
    search: Callable[[Any, int], Any]
    order: Any


def main(
    sizes: list[int] = typer.Option([100_000, 1_000_000], help="Number of documents; may be repeated."),
    kinds: list[str] = typer.Option(
        ["scann", "partitioned"], help="Kinds of index, with a storage or not: partitioned:int8; may be repeated."
    ),
    dimension: int = typer.Option(128),
    queries: int = typer.Option(300, help="Queries of each index and effort, after 20 that are not counted."),
    recall: float = typer.Option(0.95, help="Recall that the default effort is chosen for, on 100 other queries."),
) -> None:
    """Measure build time, size, recall@100 and latency by effort.

    Example: benchmarks/index.py --sizes 100000 --recall 0.98
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # as tools/serve.py does
    for size in sizes:
        documents, vectors = make_vectors(size, dimension, queries + 120)
        sample, test = vectors[:100], vectors[100:]
        indexes = [build(kind, documents, recall, sample) for kind in kinds]
        for index in indexes:
            console.print(f"{size:,} {index.name}: built in {index.build_seconds:.1f} s, {index.megabytes:,.0f} MB")
        measure(size, indexes, documents, test)


def make_vectors(count: int, dimension: int, queries: int, seed: int = 0) -> tuple[Any, Any]:
    """Documents `[count, dimension]` and queries `[queries, dimension]`, unit vectors."""
    draw = vector_source(count, dimension, seed)
    return draw(count, DOCUMENT_LENGTH), draw(queries, QUERY_LENGTH)


def vector_source(count: int, dimension: int, seed: int = 0) -> Callable[[int, float], Any]:
    """The tree of a catalogue of `count` documents; draws unit vectors from their number and distance to a node."""
    import numpy as np

    generator = np.random.default_rng(seed)

    def noise(rows: int, length: float) -> Any:
        return np.float32(length / dimension**0.5) * generator.standard_normal((rows, dimension), np.float32)

    nodes = noise(1, 0)
    for share, length in LEVELS:
        weight = generator.lognormal(size=len(nodes))
        children = max(1, count // share)
        nodes = nodes[generator.choice(len(nodes), children, p=weight / weight.sum())] + noise(children, length)
    weight = generator.lognormal(size=len(nodes))

    def draw(rows: int, length: float) -> Any:
        vectors = nodes[generator.choice(len(nodes), rows, p=weight / weight.sum())] + noise(rows, length)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return draw


def build(kind: str, documents: Any, recall: float, sample: Any) -> LoadedIndex:
    """Build an index, save it with one signature, and load it by the session loader."""
    import tensorflow as tf

    from q2s_tf.index import build_index

    begin = time.perf_counter()
    name, _, storage = kind.partition(":")
    index, order = build_index(name, documents, 0, recall, storage or "float32", sample)
    seconds = time.perf_counter() - begin
    specs = [
        tf.TensorSpec([None, documents.shape[1]], tf.float32, "queries"),
        tf.TensorSpec([], tf.int32, "k"),
        tf.TensorSpec([], tf.int32, "effort"),
    ]
    search = tf.function(lambda *inputs: {"rows": index.search(*inputs)[1]}, input_signature=specs, autograph=False)
    with tempfile.TemporaryDirectory() as folder:
        options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"])
        tf.saved_model.save(index, folder, signatures={"search": search}, options=options)
        megabytes = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e6
        loaded = load(folder)
    usual, partitions = index.default_effort, index.parameters["partitions"]
    efforts = sorted({max(1, min(partitions, int(usual * factor))) for factor in (0.25, 0.5, 1, 2, 4)})
    console.print(f"{kind}: {index.parameters}")
    return LoadedIndex(kind, seconds, megabytes, efforts, loaded, order)


def load(folder: str) -> Callable[[Any, int], Any]:
    """The saved search as a prepared call of a session with one thread, from queries and effort to rows."""
    import numpy as np
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2

    graph = tf.Graph()
    threads = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    session = tf.compat.v1.Session(graph=graph, config=threads)
    with graph.as_default():
        signature = tf.compat.v1.saved_model.loader.load(session, ["serve"], folder).signature_def["search"]
    names = [signature.inputs[name].name for name in ("queries", "k", "effort")]
    options = config_pb2.CallableOptions(feed=names, fetch=[signature.outputs["rows"].name])
    options.run_options.inter_op_thread_pool = -1
    call = session._make_callable_from_options(options)
    return lambda queries, effort: call(queries, np.int32(NEIGHBOURS), np.int32(effort))[0]


def measure(size: int, indexes: list[LoadedIndex], documents: Any, queries: Any) -> None:
    """Print recall@100 and p50 and p99 of each index at each effort."""
    import numpy as np

    exact = [
        np.argpartition(-(documents @ query), NEIGHBOURS)[:NEIGHBOURS] for query in track(queries, "exact answers")
    ]
    seconds: dict[tuple[str, int], list[float]] = {}
    recalls: dict[tuple[str, int], list[float]] = {}
    for number, query in enumerate(track(queries, "searching")):
        for step in range(max(len(index.efforts) for index in indexes)):
            for index in indexes:
                effort = index.efforts[min(step, len(index.efforts) - 1)]
                begin = time.perf_counter()
                rows = index.search(query[np.newaxis], effort)[0]
                if number >= 20:
                    seconds.setdefault((index.name, effort), []).append(time.perf_counter() - begin)
                    results = index.order[rows[rows >= 0]]
                    recalls.setdefault((index.name, effort), []).append(
                        len(np.intersect1d(results, exact[number])) / NEIGHBOURS
                    )
    for (name, effort), values in sorted(seconds.items()):
        p50, p99 = np.percentile(values, [50, 99]) * 1e3
        print(
            f"{size:>9,} {name:20} effort {effort:5}  recall@100 {np.mean(recalls[name, effort]):.3f}  "
            f"p50 {p50:6.2f} ms  p99 {p99:6.2f} ms"
        )


if __name__ == "__main__":
    run(main)
