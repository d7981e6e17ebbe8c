"""The engines that can run the funnel: DuckDB on this machine, Spark on a cluster or on this machine."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb as duckdb_engine
import ibis
import ibis.expr.types as ir

from q2s_tf.errors import InputError
from q2s_tf.spark import spark_session


@contextmanager
def duckdb(memory: str, scratch: Path) -> Iterator[Any]:
    """An Ibis connection to an in-memory DuckDB that uses at most `memory` and spills the rest into `scratch`.

    Raises:
        InputError: `memory` is not an amount such as `2GB`.
    """
    if not re.fullmatch(r"\d+(\.\d+)? ?[KMGT]i?B", memory):
        raise InputError(f"memory must be an amount such as 500MB or 2GB; got {memory!r}")
    connection = ibis.duckdb.connect(
        memory_limit=memory,
        temp_directory=str(scratch / "spill"),
        threads=os.cpu_count() or 1,
        preserve_insertion_order=False,
    )
    connection.raw_sql("SET TimeZone = 'UTC'")
    with suppress(duckdb_engine.InvalidInputException):  # in a notebook without ipywidgets there is no such setting
        connection.raw_sql("SET enable_progress_bar = false")
    try:
        yield connection
    finally:
        connection.disconnect()


@contextmanager
def spark(memory: str, scratch: Path) -> Iterator[Any]:
    """An Ibis connection to a Spark session; see `spark_session`."""
    with spark_session(memory, scratch) as session:
        yield ibis.pyspark.connect(session)


def materialise(connection: Any, scratch: Path, name: str, table: ir.Table) -> ir.Table:
    """Compute `table` once: in DuckDB's memory (which spills), or for Spark as Parquet in `scratch`."""
    if connection.name == "duckdb":
        return connection.create_table(name, table, temp=True)
    table.to_parquet(scratch / name)
    return connection.read_parquet(str(scratch / name))


@contextmanager
def resources_checked() -> Iterator[None]:
    """Turn DuckDB's errors about too little memory or disk into an `InputError`."""
    try:
        yield
    except duckdb_engine.OutOfMemoryException:
        raise InputError("the memory allowed is too little; raise --memory") from None
    except duckdb_engine.IOException as error:
        raise InputError(f"a temporary file or the output cannot be written: {str(error).splitlines()[0]}") from None
