"""Where tables come from: one file, a folder, a glob or a partitioned tree, read lazily by DuckDB or by Spark."""

import csv
import glob
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from q2s_tf.errors import InputError

FORMATS = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv",
    ".json": "json", ".jsonl": "json", ".ndjson": "json",
}  # fmt: skip

SUFFIXES = "Parquet (.parquet), CSV (.csv), TSV (.tsv) or JSON lines (.jsonl, .ndjson, .json), plain or .gz"


@dataclass(frozen=True)
class Source:
    """The files of one table: all of one format; ``root`` is the folder that Hive partitions are counted from."""

    files: tuple[str, ...]
    format: str
    root: Path

    @property
    def partitions(self) -> set[str]:
        """The columns that folders below the root are named after (``column=value``)."""
        folders = (part for file in self.files for part in Path(file).relative_to(self.root).parts[:-1])
        return {folder.split("=", 1)[0] for folder in folders if "=" in folder}


def find(path: str | Path) -> Source:
    """The files behind ``path``: a file, a folder (searched to any depth), or a glob (``**`` crosses folders).

    In folders, files that begin with ``_`` or ``.`` and files of other formats are passed over.

    Raises:
        InputError: Nothing is there, nothing there can be read, or the formats differ.
    """
    text = str(path)
    if Path(text).is_file():
        files, root = [Path(text)], Path(text).parent
        if _format(files[0]) is None:
            raise InputError(f"{text}: the name must say its format: {SUFFIXES}")
    elif Path(text).is_dir():
        root = Path(text)
        files = [file for file in root.rglob("*") if _visible(file, root)]
    else:
        root = _before_wildcards(Path(text))
        matches = (Path(match) for match in glob.glob(text, recursive=True)) if glob.has_magic(text) else ()
        files = [file for match in matches for file in ([match] if match.is_file() else match.rglob("*"))]
        files = sorted({file for file in files if _visible(file, root)})
    if not files:
        what = "no such file or folder" if not Path(text).exists() else "nothing in it can be read"
        raise InputError(f"{text}: {what}; give a file, a folder or a glob of {SUFFIXES}")
    formats = sorted({str(_format(file)) for file in files})
    if len(formats) > 1:
        raise InputError(f"{text}: one table must be in one format; found {' and '.join(formats)}; give a glob")
    return Source(tuple(str(file) for file in sorted(files)), formats[0], root)


def read(connection: Any, source: Source, columns: tuple[str, ...]) -> ir.Table:
    """The table in ``source`` as a lazy Ibis table of ``connection`` (Ibis on DuckDB or on PySpark).

    Text formats give text columns. CSV is quoted by RFC 4180; TSV is not quoted at all. Files may differ in their
    columns: one that a file lacks is null there. JSON lines have no header: ``columns`` names the keys to look for.

    Raises:
        InputError: A CSV or TSV file does not begin with a line of column names in UTF-8.
    """
    with_engine = _with_spark if connection.name == "pyspark" else _with_duckdb
    if source.format == "parquet":
        return with_engine(connection, source, source.files, ())
    if source.format == "json":
        return with_engine(connection, source, source.files, columns)
    # Engines guess headers, or take all files' from the first: read them here instead.
    files_of: dict[tuple[str, ...], list[str]] = {}
    for file in source.files:
        files_of.setdefault(_header(file, source.format), []).append(file)
    parts = [with_engine(connection, source, tuple(files), header) for header, files in files_of.items()]
    names = dict.fromkeys(name for part in parts for name in part.columns)
    return ibis.union(
        *(part.select(**{n: part[n] if n in part.columns else ibis.null("string") for n in names}) for part in parts)
    )


def _header(file: str, kind: str) -> tuple[str, ...]:
    opener = gzip.open if file.lower().endswith(".gz") else open
    try:
        with opener(file, "rt", encoding="utf-8-sig", newline="") as text:
            line = text.readline().rstrip("\r\n")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{file}: cannot be read as UTF-8 text ({error}); convert it to UTF-8") from None
    names = tuple(line.split("\t") if kind == "tsv" else next(csv.reader([line]), []))
    if not line or len(set(names)) < len(names):
        raise InputError(f"{file}: must begin with a line of different column names; found {line!r}")
    return names


def _with_duckdb(connection: Any, source: Source, files: tuple[str, ...], columns: tuple[str, ...]) -> ir.Table:
    hive: dict[str, Any] = {"hive_partitioning": bool(source.partitions)}
    if source.partitions:
        hive["hive_types_autocast"] = False
    if source.format == "parquet":
        return connection.read_parquet(list(files), union_by_name=True, binary_as_string=True, **hive)
    types = {name: "VARCHAR" for name in columns if name not in source.partitions}
    if source.format == "json":
        return connection.read_json(list(files), columns=types, format="newline_delimited", **hive)
    quote = "" if source.format == "tsv" else '"'
    dialect = {"delim": "\t" if source.format == "tsv" else ",", "quote": quote, "escape": quote}
    return connection.read_csv(list(files), columns=types, header=True, auto_detect=False, **dialect, **hive)


def _with_spark(connection: Any, source: Source, files: tuple[str, ...], columns: tuple[str, ...]) -> ir.Table:
    reader = connection._session.read
    if source.partitions:
        reader = reader.option("basePath", str(source.root))
    if source.format == "parquet":
        frame = reader.option("mergeSchema", "true").parquet(*files)
    else:
        types = ", ".join(f"`{name}` STRING" for name in columns if name not in source.partitions)
        reader = reader.schema(types).option("mode", "FAILFAST")
        if source.format == "json":
            frame = reader.json(list(files))
        else:
            tabs, commas = {"sep": "\t", "quote": ""}, {"escape": '"', "multiLine": "true"}
            reader = reader.option("header", "true").options(**(tabs if source.format == "tsv" else commas))
            frame = reader.csv(list(files))
    name = f"q2s_{source.format}_{abs(hash(files)):x}"
    frame.createOrReplaceTempView(name)
    return connection.table(name)


def _format(file: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        return FORMATS.get(suffixes[-2]) if len(suffixes) > 1 and suffixes[-2] != ".parquet" else None
    return FORMATS.get(suffixes[-1]) if suffixes else None


def _visible(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(("_", ".")) for part in file.relative_to(root).parts)
    return file.is_file() and not hidden and _format(file) is not None


def _before_wildcards(path: Path) -> Path:
    plain = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        plain.append(part)
    return Path(*plain)
