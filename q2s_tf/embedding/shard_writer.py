"""One shard of embeddings, from the rows of a catalogue to its file."""

import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from q2s_tf.embedding.shards import ROWS, shard_file
from q2s_tf.models import Tower, encode
from q2s_tf.models.encoding import documents_named
from q2s_tf.tables import Table, open_documents


@dataclass(frozen=True)
class EmbeddingJob:
    """What to embed and where to, as it is sent to Spark's workers.

    Attributes:
        run: the run directory.
        documents: the catalogue.
        out: the folder of the shards.
        columns: text columns to copy.
        shard_rows: documents of a shard.
    """

    run: Path
    documents: Path
    out: Path
    columns: tuple[str, ...]
    shard_rows: int

    def open(self, tower: Tower) -> Table:
        """The catalogue, with the columns that the tower reads and those to copy."""
        return open_documents(self.documents, [*tower.input, *self.columns], tower.config.vector_inputs())


def write_shard(job: EmbeddingJob, tower: Tower, table: Table, number: int, batches: Iterable[pa.RecordBatch]) -> None:
    """Embed the documents of one shard and write its file.

    Documents are sorted by length within `ROWS` rows, counted from the beginning of the shard, so the embeddings do not
    depend on the files and row groups of the catalogue.

    Raises:
        InputError: a document that breaks the contract.
    """
    documents = pa.Table.from_batches(batches).combine_chunks()
    dimension = tower.config.dimension
    types = {"document_id": pa.string(), "embedding": pa.list_(pa.float32(), dimension)}
    schema = pa.schema(types | dict.fromkeys(job.columns, pa.string()))
    partial = job.out / f".partial.{uuid.uuid4().hex}.parquet"  # Spark may run a task twice
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=list(job.columns)) as writer:
            for start in range(0, len(documents), ROWS):
                (batch,) = documents.slice(start, ROWS).to_batches()
                with documents_named(table, batch):
                    vectors = encode(tower, batch)["embedding"]
                embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dimension)
                texts = [batch.column(name).cast(pa.string()) for name in job.columns]
                writer.write_batch(pa.record_batch([batch.column("document_id"), embedding, *texts], schema))
        os.replace(partial, job.out / shard_file(number))
    finally:
        partial.unlink(missing_ok=True)


def read_shards(stream: Iterable[pa.RecordBatch], shard_rows: int) -> Iterator[list[pa.RecordBatch]]:
    """Group batches by shard, and cut those that belong to two."""
    shard: list[pa.RecordBatch] = []
    room = shard_rows
    for batch in stream:
        while len(batch):
            shard.append(batch.slice(0, room))
            batch = batch.slice(len(shard[-1]))
            room -= len(shard[-1])
            if not room:
                yield shard
                shard, room = [], shard_rows
    if shard:
        yield shard
