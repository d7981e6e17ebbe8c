"""Embedding on Spark: one task for each shard, through Arrow."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from q2s_tf.cli import progress_bar
from q2s_tf.embedding.shard_writer import EmbeddingJob, read_shards, write_shard
from q2s_tf.embedding.shards import ROWS
from q2s_tf.errors import InputError
from q2s_tf.models import Tower, load
from q2s_tf.spark import spark_session
from q2s_tf.tables import Table

MEMORY = "1GB"
"""Memory of a local Spark's Java part."""


def embed_on_spark(job: EmbeddingJob, missing: list[int], rows: int, scratch: Path) -> None:
    """Write the missing shards of a job, each in one Spark task.

    Args:
        job: the job.
        missing: the numbers of the shards.
        rows: documents of the catalogue, for the progress bar.
        scratch: folder for what a local Spark spills.

    Raises:
        InputError: a document breaks the contract, a task failed, or PySpark or Java is not installed.
    """
    from pyspark.errors import PySparkException

    with spark_session(MEMORY, scratch) as session, progress_bar() as progress:
        shards = pa.table({"shard": pa.array(missing, pa.int32())})
        tasks = session.createDataFrame(shards).repartitionByRange(max(1, len(missing)), "shard")
        done = tasks.mapInArrow(_spark_task(job), "shard int, error string")
        progress_task = progress.add_task("embedding documents on Spark", total=rows)
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(done.collect)
            while not result.done():
                wait([result], timeout=1)
                written = sum(1 for _ in job.out.glob("part-*.parquet"))
                progress.update(progress_task, completed=min(rows, written * job.shard_rows))
        try:
            errors = [row.error for row in result.result() if row.error]
        except PySparkException as error:
            lines = str(error).strip().splitlines()
            raise InputError(
                f"backend pyspark: a task failed: {lines[-1] if lines else type(error).__name__}"
            ) from error
    if errors:
        raise InputError(errors[0])


def _spark_task(job: EmbeddingJob) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The function of Spark's workers, from shard numbers to these and the error of each, if its input is bad."""

    def embed_shards(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            errors = [_embed_in_worker(job, number) for number in batch.column("shard").to_pylist()]
            yield pa.record_batch([batch.column("shard"), pa.array(errors, pa.string())], ["shard", "error"])

    return embed_shards


def _embed_in_worker(job: EmbeddingJob, number: int) -> str | None:
    try:
        tower, table = _load_in_worker(job)
        shards = read_shards(table.batches(ROWS, number * job.shard_rows), job.shard_rows)
        write_shard(job, tower, table, number, next(shards))
    except InputError as error:
        return str(error)
    return None


@cache
def _load_in_worker(job: EmbeddingJob) -> tuple[Tower, Table]:
    """The document tower and the catalogue, once in a process, with as many threads as a task has cores."""
    import tensorflow as tf
    from pyspark import TaskContext

    context: Any = TaskContext.get()
    tf.config.threading.set_intra_op_parallelism_threads(context.cpus())
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tower = load(job.run).document
    return tower, job.open(tower)
