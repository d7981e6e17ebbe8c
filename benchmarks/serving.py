#!/usr/bin/env python
"""Latency of serving in one run: text to vector, text to documents, the embedded server, larger catalogues.

Each retriever searches with its embeddings alone and with BM25 added (`lexical_weight`). The titles of a catalogue that
is larger than the table of documents are repeated.

The tower has the paper's geometry with random weights, and the document vectors are those of index.py. So the recall is
measured with the query vectors of index.py, and the times with the given queries, from text to document ids; an effort
costs the same for both. Everything runs on one thread without oneDNN through the session loader, and the compared
retrievers take turns.
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
LEXICAL_WEIGHTS = (0.0, 0.3)
"""Embeddings alone, and hybrid."""
SAMPLE, TEST = 200, 300
"""Queries to choose an effort on, and other queries to measure its recall on."""


class LoadedRetriever(NamedTuple):
    """A loaded retriever, with the seconds of its index's build and its size on disk."""

    kind: str
    servable: "Servable"
    effort: int
    build_seconds: float
    megabytes: float


def main(
    queries: Path = typer.Option(..., help="Parquet file with the columns query and country."),
    documents: Path = typer.Option(..., help="Parquet file with the column title, for the tokenizer and the words."),
    sizes: list[int] = typer.Option([54_667, 1_000_000], help="Number of documents; may be repeated."),
    scann_recall: float = typer.Option(0.98, help="Recall@100 that ScaNN's effort is chosen for."),
    partitioned_recall: float = typer.Option(
        0.95, help="The same for partitions, and for a second ScaNN index to compare with."
    ),
    vocabulary: int = typer.Option(150_000, help="Rows of the token table."),
    rounds: int = typer.Option(1_000, help="Queries of each retriever in one repetition."),
    repeats: int = typer.Option(3, help="Repetitions; the tables show the medians of their percentiles."),
    seconds: float = typer.Option(5.0, help="Duration of the load on the embedded server for each number of clients."),
) -> None:
    """Measure recall and latency of the towers, the retrievers and the embedded server.

    Example: benchmarks/serving.py --queries runs/home_depot_data/judgements_dev.parquet
    --documents runs/home_depot_data/documents.parquet
    """
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    import index
    import query_tower
    import server

    console = Console(width=120)
    query_tower.main(queries, None, documents, vocabulary, 2 * rounds, repeats)
    texts = query_tower.read_queries(queries)
    with cli.console.status("making the tower"):
        tower = query_tower.random_tower([query for query, _ in texts], documents, vocabulary)
    for size in sizes:
        vectors, near = index.make_vectors(size, tower.config.dimension, SAMPLE + TEST)
        postings = make_postings(documents, size)
        with tempfile.TemporaryDirectory() as folder:
            wanted = [("scann", scann_recall), ("scann", partitioned_recall), ("partitioned", partitioned_recall)]
            retrievers = [
                make_retriever(kind, recall, tower, vectors, near[:SAMPLE], postings, Path(folder) / str(number))
                for number, (kind, recall) in enumerate(wanted)
            ]
            console.print(measure(size, retrievers, vectors, near[SAMPLE:], texts, rounds, repeats))
            if size == max(sizes):
                server.main(Path(folder) / "0", 2 * rounds, seconds)


def make_postings(documents: Path, size: int) -> Any:
    """The posting lists of `size` titles: those of the table, again and again."""
    from lexical import count_titles

    from q2s_tf.index.postings import build_postings

    return build_postings(count_titles(documents, size), {"title": 1.0})


def make_retriever(
    kind: str, recall: float, tower: "Tower", vectors: Any, sample: Any, postings: Any, folder: Path
) -> LoadedRetriever:
    """A retriever over the documents, exported with its query tower and loaded again."""
    import pyarrow as pa
    import tensorflow as tf

    from q2s_tf.index import DocumentRows, IndexedDocuments, build_index
    from q2s_tf.server.servable import Servable
    from q2s_tf.serving.retriever import RetrieverServable
    from q2s_tf.serving.tower_servable import TowerServable

    begin = time.perf_counter()
    index, order = build_index(kind, vectors, 0, recall, queries=sample)
    took = time.perf_counter() - begin
    ids = pa.array([str(number).encode() for number in range(len(vectors))], pa.large_binary())
    documents = IndexedDocuments.in_order(DocumentRows(ids, {}), order, vectors.shape[1], postings)
    servables: dict[str, Any] = {
        "query_tower": TowerServable(tower),
        "retriever": RetrieverServable(tower, index, documents),
    }
    options = tf.saved_model.SaveOptions(namespace_whitelist=["TFText", "Scann"])
    with cli.console.status(f"saving {kind}"):
        for name, servable in servables.items():
            tf.saved_model.save(servable, str(folder / name / "1"), servable.endpoints, options)
    folder /= "retriever"
    megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    cli.console.print(f"{kind}: {index.parameters}")
    return LoadedRetriever(kind, Servable("retriever", 1, folder / "1"), index.default_effort, took, megabytes)


def measure(
    size: int,
    retrievers: list[LoadedRetriever],
    vectors: Any,
    near: Any,
    queries: list[tuple[str, str]],
    rounds: int,
    repeats: int,
) -> Table:
    """Recall@100 by vector, and p50 and p99 from text to document ids, of every retriever."""
    import numpy as np

    recalls: list[list[float]] = [[] for _ in retrievers]
    for query in cli.track(near, "recall"):
        exact = np.argpartition(-(vectors @ query), K)[:K].astype(str)
        for values, retriever in zip(recalls, retrievers, strict=True):
            ids = call_signature(retriever, "by_embedding", {"embedding": query[np.newaxis]})
            values.append(len(np.intersect1d(ids.astype(str), exact)) / K)
    searches = [(retriever, weight) for retriever in retrievers for weight in LEXICAL_WEIGHTS]
    percentiles = np.zeros((len(searches), repeats, 2))
    for repeat in cli.track(range(repeats), f"{size:,} documents"):
        taken: list[list[float]] = [[] for _ in searches]
        for begin in range(repeat * rounds, (repeat + 1) * rounds, TURN):
            for position, (retriever, weight) in enumerate(searches):
                for number in range(begin - WARM_UP, begin + TURN):
                    start = time.perf_counter()
                    query, country = queries[number % len(queries)]
                    inputs = {"query": np.array([query.encode()]), "country": np.array([country.encode()])}
                    call_signature(retriever, "retrieve", {**inputs, "lexical_weight": np.float32(weight)})
                    if number >= begin:
                        taken[position].append(time.perf_counter() - start)
        percentiles[:, repeat] = np.percentile(taken, [50, 99], axis=1).T * 1e3
    table = Table(
        "index", "effort", "recall@100", "λ", "p50 ms", "p99 ms", "build s", "MB",
        title=f"{size:,} documents, text to ids",
    )  # fmt: skip
    for (retriever, weight), values in zip(searches, np.median(percentiles, axis=1), strict=True):
        recall = np.mean(recalls[retrievers.index(retriever)])
        times = [f"{value:.2f}" for value in values]
        sizes = [f"{retriever.build_seconds:.0f}", f"{retriever.megabytes:,.0f}"]
        table.add_row(retriever.kind, str(retriever.effort), f"{recall:.3f}", f"{weight:g}", *times, *sizes)
    return table


def call_signature(retriever: LoadedRetriever, name: str, inputs: dict[str, Any]) -> Any:
    """The document ids `[K]` of one query by a signature of the loaded retriever, at the default effort."""
    import numpy as np

    signature = retriever.servable.signatures[name]
    feeds = {**inputs, "k": np.int32(K), "effort": np.int32(0), "min_score": np.float32(-1)}
    return signature._call(*(feeds[key] for key in signature.inputs))[signature.outputs.index("document_id")][0]


if __name__ == "__main__":
    cli.run(main)
