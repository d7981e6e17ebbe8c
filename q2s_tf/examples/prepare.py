"""Preparation of training examples: the second pass over the catalogue and the positives.

It stores preprocessed rows, each document and each distinct query once; a positive is a pair of row numbers. The
preprocessing of the towers runs in `tf.data`, the join runs in DuckDB. Several workers share the preprocessing: each of
them stores the rows of its shards, see `stored_rows`. The chief joins.
"""

import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from q2s_tf.cli import console, track
from q2s_tf.config import Config
from q2s_tf.errors import InputError
from q2s_tf.examples.batches import TEACHER, Examples, HeadLabels
from q2s_tf.examples.join import (
    NORMALISED,
    TEXTS,
    Join,
    insert,
    open_join,
    read_counts,
    read_records,
    write_pairs,
    write_texts,
)
from q2s_tf.examples.stored_rows import RowReader, RowWriter, TowerRows, shard_parts, store_rows, vectors
from q2s_tf.models import Tower, Towers
from q2s_tf.models.encoding import documents_named
from q2s_tf.tables import Table
from q2s_tf.text import normalise

Teacher = Callable[[Mapping[str, list[Any]]], np.ndarray]
"""From columns `query` and `country` to vectors `[B, D]` in the space of the channel vectors; zeros without text."""
DOCUMENTS, QUERIES = "documents", "queries"
"""Folders of the stored rows, beside that of `TEACHER`. What a worker stores in them is named after its index."""


def build_examples(
    folder: Path,
    towers: Towers,
    documents: Table,
    positives: Table | None,
    teacher: Teacher | None = None,
    worker: int = 0,
    num_workers: int = 1,
    barrier: Callable[[], Any] = lambda: None,
) -> Examples:
    """Stores everything that training reads.

    The examples do not depend on the number of workers.

    Args:
        folder: folder of the stores, which is emptied first. All workers share it.
        towers: their preprocessors are applied.
        documents: the catalogue.
        positives: the pairs; those whose document is not in the catalogue are left out and counted on the console. None
            for pseudo-queries alone.
        teacher: embeds every distinct query.
        worker: index of this worker; 0 is the chief.
        num_workers: number of workers that call this function with the same arguments.
        barrier: waits for all workers.

    Raises:
        InputError: no positive with a document of the catalogue, image vectors of another width, or a teacher without
            an embedding for any query.
    """
    config, chief = towers.config, worker == 0
    if chief:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    barrier()
    with open_join(folder) if chief else nullcontext() as join:
        _store_documents(folder / DOCUMENTS, towers.document, documents, worker, num_workers, join)
        if join:
            write_texts(join, folder, positives, documents)
        barrier()
        _store_queries(folder, towers.query, worker, num_workers)
        if teacher:
            _store_teacher(folder, teacher, config.dimension, worker, num_workers)
        barrier()
        document_rows, query_rows = (
            TowerRows([folder / name / str(number) for number in range(num_workers)], tower)
            for name, tower in ((DOCUMENTS, towers.document), (QUERIES, towers.query))
        )
        same_country = config.stage2.negatives == "same_country"
        if join:
            num_labels = config.head.queries if config.head else 0
            write_pairs(join, folder, len(document_rows), num_labels, same_country)
        barrier()
    pairs, counts, num_documents = read_records(folder, "pairs"), read_counts(folder), len(document_rows)
    return Examples(
        pairs=pairs,
        num_positives=counts["num_positives"],
        num_queries=counts["num_queries"],
        group=read_records(folder, "group"),
        known=read_records(folder, "known"),
        queries=query_rows,
        documents=document_rows,
        num_documents=num_documents,
        pseudo_share=config.pseudo_queries.batch_share if len(pairs) > counts["num_positives"] else 0.0,
        labels=HeadLabels.from_records(read_records(folder, "labels"), counts["num_labels"], num_documents)
        if config.head
        else None,
        teacher=_read_teacher(folder, config, num_workers, chief) if teacher else None,
        query_country=read_records(folder, "query_country")["country"] if same_country else None,
        document_country=read_records(folder, "document_country")["country"] if same_country else None,
    )


def _store_documents(
    folder: Path, tower: Tower, documents: Table, worker: int, num_workers: int, join: Join | None
) -> None:
    """Stores the documents of a worker's shards; the chief adds all of them, and pseudo-queries, to the join."""
    generator = random.Random(tower.config.seed)

    def inputs() -> Iterator[dict[str, tf.Tensor]]:
        rows = 0
        for batch in track(documents.batches(1_024), "preparing documents", documents.num_batches(1_024)):
            if join:
                ids, country = batch.column("document_id"), batch.column("country")
                insert(join, "documents", np.arange(rows, rows + len(batch)), ids, country)
                _insert_pseudo_queries(join, batch, rows, tower.config.pseudo_queries.per_document, generator)
            for _, part in shard_parts(batch, rows, worker, num_workers):
                with documents_named(documents, part):
                    yield tower.as_inputs(part)
            rows += len(batch)

    if join:
        join.begin()
    _store(folder / str(worker), tower, inputs())
    if join:
        join.commit()


def _insert_pseudo_queries(
    join: Join, documents: pa.RecordBatch, first: int, per_document: int, generator: random.Random
) -> None:
    """Adds pseudo-queries of documents, whose first one has the row number `first`, to the positives."""
    if not per_document:
        return
    titles = documents.column("title").to_pylist()
    queries = [pseudo_query(title or "", generator) for title in titles for _ in range(per_document)]
    kept = np.flatnonzero(np.array(queries) != "")
    rows = pa.array(kept // per_document)
    columns = [documents.column(name).take(rows) for name in ("country", "document_id")]
    texts, weight = pa.array([queries[number] for number in kept], pa.string()), pa.nulls(len(kept), pa.float64())
    insert(join, "positives", pa.repeat(True, len(kept)), first * per_document + kept, texts, *columns, weight)


def pseudo_query(title: str, generator: random.Random) -> str:
    """One to five words of a title in their order; of a title without spaces, two to six neighbouring characters."""
    words = title.split()
    if len(words) == 1:
        length = min(len(words[0]), generator.randint(2, 6))
        start = generator.randint(0, len(words[0]) - length)
        return words[0][start : start + length]
    positions = generator.sample(range(len(words)), min(len(words), generator.randint(1, 5)))
    return " ".join(words[position] for position in sorted(positions))


def _store_queries(folder: Path, tower: Tower, worker: int, num_workers: int) -> None:
    """Stores the queries of a worker's shards, preprocessed and normalised."""

    def inputs() -> Iterator[dict[str, tf.Tensor]]:
        schema = pa.schema({"query": pa.int32(), "text": pa.binary()})
        with closing(pq.ParquetWriter(folder / NORMALISED.format(worker), schema)) as writer:
            for first, part in _own_queries(folder, "preparing queries", worker, num_workers):
                texts = part.column("text").to_pylist()
                rows = np.arange(first, first + len(part), dtype=np.int32)
                normalised = normalise(tf.constant(texts)).numpy().tolist()
                writer.write_table(pa.table([rows, normalised], schema=schema))
                yield tower.as_inputs({"query": texts, "country": part.column("country")})

    _store(folder / QUERIES / str(worker), tower, inputs())


def _store_teacher(folder: Path, teacher: Teacher, dimension: int, worker: int, num_workers: int) -> None:
    """Stores the teacher embeddings of the queries of a worker's shards."""
    columns = {TEACHER: vectors(dimension)}
    with closing(RowWriter(folder / TEACHER / str(worker), columns)) as writer:
        for _, part in _own_queries(folder, "computing teacher embeddings", worker, num_workers):
            texts, countries = (part.column(name).to_pylist() for name in ("text", "country"))
            writer.append({TEACHER: teacher({"query": texts, "country": countries})[:, np.newaxis]})


def _own_queries(folder: Path, description: str, worker: int, num_workers: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The distinct queries of a worker's shards, as `shard_parts`, with a progress bar."""
    first = 0
    with pq.ParquetFile(folder / TEXTS) as file:
        for batch in track(file.iter_batches(4_096), description, -(-file.metadata.num_rows // 4_096)):
            yield from shard_parts(batch, first, worker, num_workers)
            first += len(batch)


def _read_teacher(folder: Path, config: Config, num_workers: int, chief: bool) -> RowReader:
    """The stored teacher embeddings; `InputError` if there is none."""
    paths = [folder / TEACHER / str(number) for number in range(num_workers)]
    rows = RowReader(paths, {TEACHER: vectors(config.dimension)})
    taught = int(np.count_nonzero(rows.lengths(np.arange(len(rows)))))
    if not taught:
        raise InputError(
            f"distillation.teacher: {config.distillation.teacher} has an embedding for none of the {len(rows):,} "
            "queries: give a table with the queries of the positives"
        )
    if chief and taught < len(rows):
        console.print(f"{len(rows) - taught:,} of {len(rows):,} queries have no teacher embedding")
    return rows


def _store(folder: Path, tower: Tower, inputs: Iterator[dict[str, tf.Tensor]]) -> None:
    """`store_rows` of generated inputs; an `InputError` of the generator is raised as it is."""
    refused: list[InputError] = []

    def generate() -> Iterator[dict[str, tf.Tensor]]:
        try:
            yield from inputs
        except InputError as error:  # tf.data would turn it into an error of its own
            refused.append(error)

    dataset = tf.data.Dataset.from_generator(generate, output_signature=tower.signature())
    store_rows(folder, tower, dataset)
    if refused:
        raise refused[0]
