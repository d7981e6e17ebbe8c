#!/usr/bin/env python
"""What serving costs, in one run: text to vector, text to documents, the embedded server, larger catalogues.

The tower has the paper's geometry with random weights, the document vectors are those of index.py. So recall is that of
index.py's queries, by their vectors, and the times are those of the given queries, from text to document ids; an effort
costs both the same. Everything runs on one thread without oneDNN through the session loader, and what is compared takes
turns.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from q2s_tf import cli

if TYPE_CHECKING:
    from q2s_tf.models import Tower
    from q2s_tf.server.servable import Servable

K, TURN, WARM_UP = 100, 50, 5
SAMPLE, TEST = 200, 300
"""Queries that an effort is chosen on, and others that its recall is measured on."""


class Way(NamedTuple):
    """A retriever that is loaded, and what it took to make it."""

    kind: str
    servable: "Servable"
    effort: int
    build_seconds: float
    megabytes: float


def main(
    queries: Path = typer.Option(..., help="Parquet file with the columns query and country."),
    documents: Path = typer.Option(..., help="Parquet file with the column title: the tokenizer is trained on them."),
    sizes: list[int] = typer.Option([100_000, 1_000_000], help="Documents; may be given again."),
    scann_recall: float = typer.Option(0.98, help="Recall@100 that ScaNN's effort is chosen for."),
    partitioned_recall: float = typer.Option(0.95, help="The same for partitions, and ScaNN beside them."),
    vocabulary: int = typer.Option(150_000, help="Rows of the token table."),
    rounds: int = typer.Option(1_000, help="Queries of each way in one repetition."),
    repeats: int = typer.Option(3, help="Repetitions; the tables have the medians of their percentiles."),
    seconds: float = typer.Option(5.0, help="How long each number of clients asks the embedded server."),
) -> None:
    """Measure everything that serving is judged by.

    Example: benchmarks/serving.py --queries runs/home_depot_data/judgements_dev.parquet
    --documents runs/home_depot_data/documents.parquet
    """
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    import index
    import query_tower
    import server

    console = Console(width=120)
    query_tower.main(queries, None, documents, vocabulary, 2 * rounds, repeats)
    asked = query_tower.read_queries(queries)
    with cli.console.status("making the tower"):
        tower = query_tower.random_tower([query for query, _ in asked], documents, vocabulary)
    for size in sizes:
        vectors, near = index.make_vectors(size, tower.dimension, SAMPLE + TEST)
        with tempfile.TemporaryDirectory() as folder:
            wanted = [("scann", scann_recall), ("scann", partitioned_recall), ("partitioned", partitioned_recall)]
            ways = [
                make_way(kind, recall, tower, vectors, near[:SAMPLE], Path(folder) / str(place))
                for place, (kind, recall) in enumerate(wanted)
            ]
            console.print(measure(size, ways, vectors, near[SAMPLE:], asked, rounds, repeats))
            if size == max(sizes):
                server.main(Path(folder) / "0", 2 * rounds, seconds)


def make_way(kind: str, recall: float, tower: "Tower", vectors: Any, sample: Any, folder: Path) -> Way:
    """A retriever over the documents, exported with its query tower and loaded again."""
    import numpy as np
    import tensorflow as tf

    from q2s_tf.index import build_index
    from q2s_tf.index.catalogue import new_catalogue
    from q2s_tf.server.servable import Servable
    from q2s_tf.serving.retriever import RetrieverServable
    from q2s_tf.serving.signatures import TowerServable

    begin = time.perf_counter()
    index, order = build_index(kind, vectors, 0, recall, queries=sample)
    took = time.perf_counter() - begin
    ids = np.array([str(place).encode() for place in order], object)
    servables = {"query_tower": TowerServable(tower)}
    servables["retriever"] = RetrieverServable(tower, index, new_catalogue(ids, {}, vectors.shape[1]))
    options = tf.saved_model.SaveOptions(namespace_whitelist=["TFText", "Scann"])
    with cli.console.status(f"saving {kind}"):
        for name, servable in servables.items():
            tf.saved_model.save(servable, str(folder / name / "1"), servable.endpoints, options)
    folder /= "retriever"
    megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    cli.console.print(f"{kind}: {index.parameters}")
    return Way(kind, Servable("retriever", 1, folder / "1"), index.default_effort, took, megabytes)


def measure(
    size: int, ways: list[Way], vectors: Any, near: Any, asked: list[tuple[str, str]], rounds: int, repeats: int
) -> Table:
    """Recall@100 by vector, and p50 and p99 from text to document ids, of every way."""
    import numpy as np

    recalls: list[list[float]] = [[] for _ in ways]
    for query in cli.track(near, "recall"):
        exact = np.argpartition(-(vectors @ query), K)[:K].astype(str)
        for found, way in zip(recalls, ways, strict=True):
            ids = call_signature(way, "by_embedding", {"embedding": query[np.newaxis]})
            found.append(len(np.intersect1d(ids.astype(str), exact)) / K)
    percentiles = np.zeros((len(ways), repeats, 2))
    for repeat in cli.track(range(repeats), f"{size:,} documents"):
        taken: list[list[float]] = [[] for _ in ways]
        for begin in range(repeat * rounds, (repeat + 1) * rounds, TURN):
            for place, way in enumerate(ways):
                for number in range(begin - WARM_UP, begin + TURN):
                    start = time.perf_counter()
                    query, country = asked[number % len(asked)]
                    texts = {"query": np.array([query.encode()]), "country": np.array([country.encode()])}
                    call_signature(way, "retrieve", texts)
                    if number >= begin:
                        taken[place].append(time.perf_counter() - start)
        percentiles[:, repeat] = np.percentile(taken, [50, 99], axis=1).T * 1e3
    table = Table(
        "index", "effort", "recall@100", "p50 ms", "p99 ms", "build s", "MB", title=f"{size:,} documents, text to ids"
    )
    for way, recall, values in zip(ways, recalls, np.median(percentiles, axis=1), strict=True):
        cells = [f"{np.mean(recall):.3f}", *(f"{value:.2f}" for value in values)]
        table.add_row(way.kind, str(way.effort), *cells, f"{way.build_seconds:.0f}", f"{way.megabytes:,.0f}")
    return table


def call_signature(way: Way, name: str, inputs: dict[str, Any]) -> Any:
    """The document ids `[K]` that a signature of the loaded retriever gives for one query, at the default effort."""
    import numpy as np

    signature = way.servable.signatures[name]
    feeds = {**inputs, "k": np.int32(K), "effort": np.int32(0), "min_score": np.float32(-1)}
    return signature._call(*(feeds[key] for key in signature.inputs))[signature.outputs.index("document_id")][0]


if __name__ == "__main__":
    cli.run(main)
