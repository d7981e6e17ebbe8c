"""Reading the tables of the data contract: documents, positives, judgements.

A table is a Parquet file, a folder of Parquet files, or a tab-separated file with a header (`.tsv`, `.txt`, gzipped or
not, UTF-8, no quoting). It is read in batches, so that a catalogue never has to fit in memory. `product_id` is another
name of `document_id`; an empty cell is a missing value.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset as ds

from q2s_tf.config import IMAGES
from q2s_tf.errors import InputError

VECTORS = pa.list_(pa.list_(pa.float32()))
TYPES = {"relevance": pa.float64(), "weight": pa.float64(), "timestamp": pa.timestamp("us", tz="UTC"), IMAGES: VECTORS}
"""Types of the contract's columns; every other column is text."""
DOCUMENT_COLUMNS = ("description", "language", "country", IMAGES)


class Table:
    """One table of the contract, checked when it is opened and read when it is asked for.

    Args:
        path: the file or folder.
        kind: what it is called in errors: "documents", "positives", "judgements".
        required: columns that must be there.
        optional: columns that are read as missing when they are not there.
        vectors: columns that hold lists of vectors.

    Raises:
        InputError: there is no such file, it cannot be read, a required column is absent.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        required: Sequence[str],
        optional: Sequence[str] = (),
        vectors: Collection[str] = (IMAGES,),
    ):
        self.path = path
        self.kind = kind
        self.types = {**TYPES, **dict.fromkeys(vectors, VECTORS)}
        if not path.exists():
            raise InputError(f"{kind} {path}: there is no such file")
        self._dataset = self._open()
        names = set(self._dataset.schema.names)
        alias = {"document_id": "product_id"} if "document_id" not in names else {}
        self._source = {column: alias.get(column, column) for column in (*required, *optional)}
        absent = [column for column in required if self._source[column] not in names]
        if absent:
            found = ", ".join(self._dataset.schema.names)
            raise InputError(f"{kind} {path}: needs the column {', '.join(absent)}; it has {found}")
        self.columns = [column for column in self._source if self._source[column] in names]
        self.missing = [column for column in self._source if self._source[column] not in names]

    def _open(self) -> ds.Dataset:
        if self.path.is_dir():
            return self._guard(self._open_folder)
        suffixes = [suffix.lower() for suffix in self.path.suffixes[-2:]]
        if suffixes[-1:] in ([".parquet"], [".pq"]):
            return self._guard(lambda: ds.dataset(self.path, format="parquet"))
        if {".tsv", ".txt", ".tab"} & set(suffixes):
            return self._guard(lambda: ds.dataset(self.path, format=self._tsv_format()))
        raise InputError(
            f"{self.kind} {self.path}: expected a .parquet, .tsv or .tsv.gz file, or a folder of .parquet files"
        )

    def _open_folder(self) -> ds.Dataset:
        """All Parquet files of a folder, at any depth, with the columns of all of them (and of `key=value` folders)."""
        files = sorted(str(file) for file in self.path.rglob("*") if file.suffix.lower() in (".parquet", ".pq"))
        if not files:
            raise InputError(f"{self.kind} {self.path}: the folder holds no .parquet file")
        partitioning = ds.partitioning(flavor="hive")
        schemas = [ds.dataset(file, format="parquet", partitioning=partitioning).schema for file in files]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        return ds.dataset(files, schema=schema, format="parquet", partitioning=partitioning)

    def _tsv_format(self) -> ds.CsvFileFormat:
        text = {name: pa.string() for name in self._header()}
        return ds.CsvFileFormat(
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(column_types=text, strings_can_be_null=True, null_values=[""]),
        )

    def _header(self) -> list[str]:
        with pa.input_stream(str(self.path), compression="detect") as stream:
            line = stream.read(65_536).split(b"\n", 1)[0]
        return line.decode("utf-8-sig").rstrip("\r").split("\t")

    def num_rows(self) -> int:
        """How many rows there are (reads a tab-separated file to count them)."""
        return self._guard(self._dataset.count_rows)

    def batches(self, rows: int = 8_192) -> Iterator[pa.RecordBatch]:
        """The table in record batches of at most `rows` rows, with the contract's column names and types.

        Raises:
            InputError: bytes that are not UTF-8, a value that is not of the column's type.
        """
        columns = {column: ds.field(self._source[column]) for column in self.columns}
        scanner = self._dataset.scanner(columns=columns, batch_size=rows, use_threads=False)
        stream = iter(scanner.to_batches())
        while (batch := self._guard(lambda: next(stream, None))) is not None:
            arrays = [self._cast(column, batch.column(column)) for column in self.columns]
            arrays += [pa.nulls(len(batch), self.types.get(column, pa.string())) for column in self.missing]
            if len(batch):
                yield pa.record_batch(arrays, names=[*self.columns, *self.missing])

    def read(self) -> pa.Table:
        """The whole table in memory; `InputError` if it has no row."""
        batches = list(self.batches())
        if not batches:
            raise InputError(f"{self.kind} {self.path}: it has no rows")
        return pa.Table.from_batches(batches)

    def _cast(self, column: str, values: pa.Array) -> pa.Array:
        kind = self.types.get(column, pa.string())
        if kind == VECTORS and pa.types.is_string(values.type):
            values = self._guard(lambda: pa.array([json.loads(text) if text else None for text in values.to_pylist()]))
        if pa.types.is_string(kind) and pa.types.is_floating(values.type):
            raise InputError(
                f"{self.kind} {self.path}: column {column} must be text or whole numbers; it is {values.type}"
            )
        cast = self._guard(lambda: _to_timestamp(values) if column == "timestamp" else pc.cast(values, kind), column)
        return pc.if_else(pc.equal(cast, ""), None, cast) if pa.types.is_string(kind) else cast

    def _guard(self, read: Any, column: str | None = None) -> Any:
        try:
            return read()
        except (
            pa.ArrowInvalid,
            pa.ArrowNotImplementedError,
            UnicodeDecodeError,
            OSError,
            json.JSONDecodeError,
        ) as error:
            reason = _first_line(error)
            if isinstance(error, UnicodeDecodeError) or "UTF8" in reason:
                raise InputError(f"{self.kind} {self.path}: must be UTF-8 and is not: save it as UTF-8") from None
            place = f"column {column}: " if column else ""
            raise InputError(f"{self.kind} {self.path}: {place}cannot be read: {reason}") from None


def open_documents(path: Path, inputs: Sequence[str] = DOCUMENT_COLUMNS, vectors: Collection[str] = (IMAGES,)) -> Table:
    """The catalogue: `document_id`, `title`, and whatever other columns the document tower reads."""
    optional = dict.fromkeys((*DOCUMENT_COLUMNS, *inputs))
    return Table(path, "documents", ["document_id", "title"], [name for name in optional if name != "title"], vectors)


def open_positives(path: Path) -> Table:
    """Which document answered which query: `query, country, document_id, timestamp`, optional `weight`."""
    return Table(path, "positives", ["query", "country", "document_id", "timestamp"], ["weight"])


def open_judgements(path: Path) -> Table:
    """Rated pairs: `query, country, document_id, relevance`. A positives table is accepted too: see `is_rated`."""
    return Table(path, "judgements", ["query", "country", "document_id"], ["relevance", "timestamp"])


def check_judgements(table: Table) -> bool:
    """Whether the judgements are rated; False for a positives table, whose every row counts as relevant.

    Raises:
        InputError: it has neither `relevance` nor the `timestamp` that tells a positives table.
    """
    if "relevance" in table.columns:
        return True
    if "timestamp" in table.columns:
        return False
    raise InputError(
        f"judgements {table.path}: needs the column relevance (or timestamp, if these are later positives)"
    )


def _to_timestamp(values: pa.Array) -> pa.Array:
    kind = TYPES["timestamp"]
    if pa.types.is_timestamp(values.type) and values.type.tz is None:
        return pc.assume_timezone(pc.cast(values, pa.timestamp("us"), safe=False), "UTC")
    if pa.types.is_integer(values.type):
        return pc.cast(pc.cast(values, pa.timestamp("s")), kind)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        try:
            return pc.cast(values, kind)
        except pa.ArrowInvalid:  # no offset: it is UTC
            return pc.assume_timezone(pc.cast(values, pa.timestamp("us")), "UTC")
    return pc.cast(values, kind, safe=False)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
