"""The engines that can run the funnel: DuckDB on this machine, Spark on a cluster or on this machine."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb as duckdb_engine
import ibis
import ibis.expr.types as ir

from q2s_tf.errors import InputError
from q2s_tf.files import TableFiles, read_header

_DELIMITER = {"csv": ",", "tsv": "\t"}


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


_SESSION = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.binaryAsString": "true",
    "spark.sql.legacy.parquet.nanosAsLong": "true",
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
    "spark.sql.ansi.enabled": "false",
}


@contextmanager
def spark(memory: str, scratch: Path) -> Iterator[Any]:
    """An Ibis connection to the active Spark session, or to a new one, which is local unless Spark is configured.

    Raises:
        InputError: PySpark or Java is not installed.
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


def read(connection: Any, files: TableFiles, kind: str, columns: tuple[str, ...]) -> ir.Table:
    """A table as a lazy Ibis table of `connection`.

    Columns of text formats are text. CSV is quoted by RFC 4180, TSV is never quoted. A column that one of the files
    lacks is null there.

    Args:
        connection: Ibis on DuckDB or on PySpark.
        files: The files of the table.
        kind: The name of the table in errors.
        columns: The keys to read from JSON lines, which have no header.

    Raises:
        InputError: A CSV or TSV file does not begin with a line of column names in UTF-8.
    """
    read_part = _read_with_spark if connection.name == "pyspark" else _read_with_duckdb
    if files.format in ("parquet", "json"):
        return read_part(connection, files, [str(path) for path in files.paths], columns)
    # Engines guess headers, or take the header of the first file for all: read the headers here instead.
    paths_of: dict[tuple[str, ...], list[str]] = {}
    for path in files.paths:
        header = tuple(read_header(path, kind, _DELIMITER[files.format], quoted=files.format == "csv"))
        paths_of.setdefault(header, []).append(str(path))
    parts = [read_part(connection, files, paths, header) for header, paths in paths_of.items()]
    names = dict.fromkeys(name for part in parts for name in part.columns)
    return ibis.union(
        *(part.select(**{n: part[n] if n in part.columns else ibis.null("string") for n in names}) for part in parts)
    )


def _read_with_duckdb(connection: Any, files: TableFiles, paths: list[str], columns: tuple[str, ...]) -> ir.Table:
    hive: dict[str, Any] = {"hive_partitioning": bool(files.partitions)}
    if files.partitions:
        hive["hive_types_autocast"] = False
    if files.format == "parquet":
        return connection.read_parquet(paths, union_by_name=True, binary_as_string=True, **hive)
    types = {name: "VARCHAR" for name in columns if name not in files.partitions}
    if files.format == "json":
        return connection.read_json(paths, columns=types, format="newline_delimited", **hive)
    quote = "" if files.format == "tsv" else '"'
    options = {"delim": _DELIMITER[files.format], "quote": quote, "escape": quote, "header": True, "auto_detect": False}
    return connection.read_csv(paths, columns=types, **options, **hive)


def _read_with_spark(connection: Any, files: TableFiles, paths: list[str], columns: tuple[str, ...]) -> ir.Table:
    from pyspark.sql import SparkSession

    reader = SparkSession.active().read
    if files.partitions:
        reader = reader.option("basePath", str(files.root))
    if files.format == "parquet":
        frame = reader.option("mergeSchema", "true").parquet(*paths)
    else:
        types = ", ".join(f"`{name}` STRING" for name in columns if name not in files.partitions)
        reader = reader.schema(types).option("mode", "FAILFAST")
        if files.format == "json":
            frame = reader.json(paths)
        else:
            dialect = {"quote": ""} if files.format == "tsv" else {"escape": '"', "multiLine": "true"}
            frame = reader.options(sep=_DELIMITER[files.format], header="true", **dialect).csv(paths)
    name = f"q2s_{files.format}_{abs(hash(tuple(paths))):x}"
    frame.createOrReplaceTempView(name)
    return connection.table(name)


def materialise(connection: Any, scratch: Path, name: str, table: ir.Table) -> ir.Table:
    """Compute `table` once: in DuckDB's memory (which spills), or for Spark as Parquet in `scratch`."""
    if connection.name == "duckdb":
        return connection.create_table(name, table, temp=True)
    table.to_parquet(scratch / name)
    return connection.read_parquet(str(scratch / name))


@contextmanager
def readable(origin: str) -> Iterator[None]:
    """Turn an engine's error about unreadable input or too little memory into an `InputError` that names `origin`."""
    try:
        yield
    except duckdb_engine.OutOfMemoryException:
        raise InputError(f"{origin}: the memory allowed is too little; raise --memory") from None
    except Exception as error:
        # Spark is optional, so its exceptions are recognised by name: a file that cannot be parsed or decoded.
        of_spark = type(error).__name__ in ("SparkException", "AnalysisException") and "FAILED_READ_FILE" in str(error)
        if not of_spark and not isinstance(error, duckdb_engine.Error):
            raise
        if "utf-8" in str(error).lower():
            raise InputError(f"{origin}: must be UTF-8 and is not: save it as UTF-8") from None
        # Keep the reason and leave out advice on settings that the user cannot change.
        first, *rest = (line.strip() for line in str(error).strip().splitlines())
        reason = "; ".join([first, *(line for line in rest if line.startswith(("Expected", "file =")))])
        raise InputError(f"{origin}: cannot be read: {reason}") from None
