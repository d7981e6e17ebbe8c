"""The two engines that run the funnel: DuckDB on this machine, Spark on a cluster (or here)."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
from duckdb import InvalidInputException

from q2s_tf.errors import InputError


@contextmanager
def duckdb(memory: str, scratch: Path) -> Iterator[Any]:
    """An Ibis connection to an in-memory DuckDB that holds at most ``memory`` and spills into ``scratch``.

    Raises:
        InputError: ``memory`` is not an amount such as ``2GB``.
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
    hide_progress(connection)
    try:
        yield connection
    finally:
        connection.disconnect()


def hide_progress(connection: Any) -> None:
    """Keeps DuckDB's own progress bar off the terminal; ours say what goes on."""
    with suppress(InvalidInputException):  # in a notebook without ipywidgets it has no bar, and refuses the setting
        connection.raw_sql("SET enable_progress_bar = false")


@contextmanager
def spark(memory: str, scratch: Path) -> Iterator[Any]:
    """An Ibis connection to the active Spark session, or to a new one, local unless Spark's own files say otherwise.

    Raises:
        InputError: pyspark or Java is not installed.
    """
    try:
        from pyspark import SparkConf
        from pyspark.errors import PySparkRuntimeError
        from pyspark.sql import SparkSession
    except ImportError:
        raise InputError("backend pyspark needs pyspark: pip install 'q2s_tf[spark]', or use duckdb") from None
    active = SparkSession.getActiveSession()
    cores = os.cpu_count() or 1
    conf = SparkConf()
    if not conf.contains("spark.master"):
        conf.setMaster(f"local[{cores}]").setIfMissing("spark.sql.shuffle.partitions", str(4 * cores))
    conf.setIfMissing("spark.driver.memory", memory.rstrip("iB").replace(" ", "").lower())
    conf.setIfMissing("spark.local.dir", str(scratch / "spill"))
    conf.setIfMissing("spark.ui.enabled", "false")
    conf.setIfMissing("spark.ui.showConsoleProgress", "false")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="PySpark does not yet fully support pandas", category=FutureWarning)
        try:
            session = active or SparkSession.builder.config(conf=conf).getOrCreate()
        except PySparkRuntimeError as error:
            raise InputError(f"backend pyspark needs Java 17 or later ({error}); install it or use duckdb") from None
        session.sparkContext.setLogLevel("ERROR")
        for name, value in _SESSION.items():
            session.conf.set(name, value)
        try:
            yield ibis.pyspark.connect(session)
        finally:
            if active is None:
                session.stop()


_SESSION = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.binaryAsString": "true",
    "spark.sql.legacy.parquet.nanosAsLong": "true",
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
    "spark.sql.ansi.enabled": "false",
}


def keep(connection: Any, scratch: Path, name: str, table: ir.Table) -> ir.Table:
    """Computes ``table`` once and gives back the result as a table.

    In DuckDB's memory, spilled where it does not fit; for Spark as Parquet in ``scratch``.
    """
    if connection.name == "duckdb":
        return connection.create_table(name, table, temp=True)
    table.to_parquet(scratch / name)
    return connection.read_parquet(str(scratch / name))


@contextmanager
def readable(origin: str) -> Iterator[None]:
    """Turns what an engine says about unreadable input or too little memory into one line that names the input."""
    import duckdb as engine

    try:
        yield
    except engine.OutOfMemoryException:
        raise InputError(f"{origin}: the memory allowed is too little; raise --memory") from None
    except engine.Error as error:
        raise InputError(f"{origin}: cannot be read: {_summary(error)}") from None
    except Exception as error:
        # Spark is optional, so its exceptions are known by name: a file that cannot be parsed or decoded.
        if type(error).__name__ in ("SparkException", "AnalysisException") and "FAILED_READ_FILE" in str(error):
            raise InputError(f"{origin}: cannot be read: {_summary(error)}") from None
        raise


def _summary(error: Exception) -> str:
    """What an engine says, without its advice on settings that nobody here can change."""
    first, *rest = (line.strip() for line in str(error).strip().splitlines())
    return "; ".join([first, *(line for line in rest if line.startswith(("Expected", "file =")))])
