"""Reading the tables of the data contract: documents, positives, judgements.

A table is a file, a folder (read at any depth; `column=value` subfolders are columns) or a glob of Parquet, TSV (never
quoted) or CSV (quoted by RFC 4180) files. Text is UTF-8 with a header and may be gzipped. In folders, names that begin
with `_` or `.` are skipped. `product_id` is another name of `document_id`; an empty cell is a missing value. Tables are
read in batches: a catalogue does not have to fit in memory.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from q2s_tf.config import IMAGES
from q2s_tf.errors import InputError
from q2s_tf.files import find_files, read_header

VECTORS = pa.list_(pa.list_(pa.float32()))
TYPES = {"relevance": pa.float64(), "weight": pa.float64(), "timestamp": pa.timestamp("us", tz="UTC"), IMAGES: VECTORS}
"""Types of the contract's columns; every other column is text."""
DOCUMENT_COLUMNS = ("description", "language", "country", IMAGES)


class Table:
    """One table of the contract: checked when it is opened, read by `batches` or `read`.

    Args:
        path: The file, folder or glob.
        kind: The name of the table in errors: "documents", "positives", "judgements".
        required: Columns that the table must have.
        optional: Columns that are read as missing values if the table does not have them.
        vectors: Columns that hold lists of vectors.
        csv_delimiter: The character between two cells of a `.csv` file.

    Attributes:
        columns: The required and optional columns that the table has.
        missing: The optional columns that it does not have.
        types: The Arrow types of columns that are not text.

    Raises:
        InputError: There is no such file, it cannot be read, or a required column is absent.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        required: Sequence[str],
        optional: Sequence[str] = (),
        vectors: Collection[str] = (IMAGES,),
        csv_delimiter: str = ",",
    ):
        self.path = path
        self.kind = kind
        self.types = {**TYPES, **dict.fromkeys(vectors, VECTORS)}
        self._dataset = self._guard(lambda: self._open(csv_delimiter))
        names = self._dataset.schema.names
        alias = {"document_id": "product_id"} if "document_id" not in names else {}
        self._source = {column: alias.get(column, column) for column in (*required, *optional)}
        absent = [column for column in required if self._source[column] not in names]
        if absent:
            raise InputError(f"{kind} {path}: needs the column {', '.join(absent)}; it has {', '.join(names)}")
        self.columns = [column for column in self._source if self._source[column] in names]
        self.missing = [column for column in self._source if self._source[column] not in names]

    def _open(self, csv_delimiter: str) -> ds.Dataset:
        """A dataset with the columns of all files (and of `column=value` folders)."""
        files = find_files(self.path, self.kind, ("parquet", "tsv", "csv"))
        if files.format == "parquet":
            schemas = [pq.read_schema(path) for path in files.paths]
            file_format: ds.FileFormat = ds.ParquetFileFormat()
        else:
            quoted = files.format == "csv"
            delimiter, quote = (csv_delimiter, '"') if quoted else ("\t", False)
            headers = [read_header(path, self.kind, delimiter, quoted) for path in files.paths]
            text = {name: pa.string() for header in headers for name in header}
            parse = pyarrow.csv.ParseOptions(delimiter=delimiter, quote_char=quote, newlines_in_values=quoted)
            convert = pyarrow.csv.ConvertOptions(column_types=text, strings_can_be_null=True, null_values=[""])
            file_format = ds.CsvFileFormat(parse_options=parse, convert_options=convert)
            schemas = [pa.schema(text)]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        for name in files.partitions:
            schema = schema if name in schema.names else schema.append(pa.field(name, pa.string()))
        partitions = pa.schema([schema.field(name) for name in files.partitions])
        return ds.dataset(
            [str(path) for path in files.paths],
            schema,
            format=file_format,
            partitioning=ds.partitioning(partitions, flavor="hive"),
            partition_base_dir=str(files.root),
        )

    def num_rows(self) -> int:
        """The number of rows (reads a text file to count them)."""
        return self._guard(self._dataset.count_rows)

    def num_batches(self, rows: int) -> int | None:
        """The number of batches of `rows` rows, for a progress bar; None for a text file, which has no row count."""
        is_parquet = isinstance(self._dataset.format, ds.ParquetFileFormat)
        return -(-self.num_rows() // rows) if is_parquet else None

    def batches(self, rows: int = 8_192) -> Iterator[pa.RecordBatch]:
        """The table in record batches of at most `rows` rows, with the contract's column names and types.

        Raises:
            InputError: Text that is not UTF-8, or a value that is not of the column's type.
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
        """The whole table in memory.

        Raises:
            InputError: As in `batches`, or the table has no rows.
        """
        batches = list(self.batches())
        if not batches:
            raise InputError(f"{self.kind} {self.path}: it has no rows")
        return pa.Table.from_batches(batches)

    def _cast(self, column: str, values: pa.Array) -> pa.Array:
        kind = self.types.get(column, pa.string())
        if pa.types.is_string(kind) and pa.types.is_floating(values.type):
            raise InputError(
                f"{self.kind} {self.path}: column {column} must be text or whole numbers; it is {values.type}"
            )
        cast = self._guard(lambda: _convert(values, kind), f"column {column}: ")
        return pc.if_else(pc.equal(cast, ""), None, cast) if pa.types.is_string(kind) else cast

    def _guard(self, read: Any, where: str = "") -> Any:
        try:
            return read()
        except (pa.ArrowException, UnicodeDecodeError, OSError, json.JSONDecodeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if isinstance(error, UnicodeDecodeError) or "UTF8" in reason:
                raise InputError(f"{self.kind} {self.path}: must be UTF-8 and is not: save it as UTF-8") from None
            raise InputError(f"{self.kind} {self.path}: {where}cannot be read: {reason}") from None


def open_documents(path: Path, inputs: Sequence[str] = DOCUMENT_COLUMNS, vectors: Collection[str] = (IMAGES,)) -> Table:
    """The catalogue: `document_id`, `title`, optional `DOCUMENT_COLUMNS` and other `inputs` of the document tower."""
    optional = dict.fromkeys((*DOCUMENT_COLUMNS, *inputs))
    return Table(path, "documents", ["document_id", "title"], [name for name in optional if name != "title"], vectors)


def open_positives(path: Path) -> Table:
    """Pairs of a query and a relevant document: `query, document_id`, optional `country, timestamp, weight`."""
    return Table(path, "positives", ["query", "document_id"], ["country", "timestamp", "weight"])


def open_judgements(path: Path) -> Table:
    """Rated pairs: `query, document_id, relevance`, optional `country`; or positives: see `check_judgements`."""
    return Table(path, "judgements", ["query", "document_id"], ["country", "relevance", "timestamp", "weight"])


def check_judgements(table: Table) -> bool:
    """Whether the judgements are rated; False for a positives table, whose rows are all relevant.

    Raises:
        InputError: The table has neither `relevance` nor a column that only positives have (`timestamp`, `weight`).
    """
    if "relevance" in table.columns:
        return True
    if {"timestamp", "weight"} & set(table.columns):
        return False
    raise InputError(
        f"judgements {table.path}: needs the column relevance (or timestamp or weight, if these are later positives)"
    )


def _convert(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast a column to a type of the contract; text may hold vectors as JSON and times in ISO 8601."""
    text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    if kind == VECTORS and text:
        values = pa.array([json.loads(cell) if cell else None for cell in values.to_pylist()])
    if not pa.types.is_timestamp(kind):
        return pc.cast(values, kind)
    if pa.types.is_timestamp(values.type) and values.type.tz is None:
        return pc.assume_timezone(pc.cast(values, pa.timestamp("us"), safe=False), "UTC")
    if pa.types.is_integer(values.type):  # seconds, milliseconds, microseconds or nanoseconds, by the size
        number = pc.cast(values, pa.int64())
        sizes = pc.make_struct(*(pc.less(number, limit) for limit in (10**8, 10**11, 10**14, 10**17)))
        scaled = (pc.multiply(number, 10**6), pc.multiply(number, 10**3), number, pc.divide(number, 10**3))
        return pc.cast(pc.case_when(sizes, pa.scalar(None, pa.int64()), *scaled), kind)
    if text:
        try:
            return pc.cast(values, kind)
        except pa.ArrowInvalid:  # without an offset, text is UTC
            return pc.assume_timezone(pc.cast(values, pa.timestamp("us")), "UTC")
    return pc.cast(values, kind, safe=False)
