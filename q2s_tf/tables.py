"""Reading the tables of the data contract: documents, positives, judgements, events, deletions.

A table is a file, a folder (read at any depth; `column=value` subfolders are columns) or a glob of Parquet, TSV, CSV
or JSON lines. Text is UTF-8 and may be gzipped; TSV and CSV have a header. In folders, names that begin with `_` or `.`
are skipped. `product_id` is another name of `document_id`; an empty cell is a missing value. Tables are read in
batches: a catalogue does not have to fit in memory.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.config import IMAGES
from q2s_tf.errors import InputError
from q2s_tf.files import find_files
from q2s_tf.table_files import TableFile, open_file, readable, text_lines
from q2s_tf.table_types import NUMBER, TEXT, TIME, VECTORS, CellError, as_number, as_text, as_times, as_vectors

TYPES = {"relevance": NUMBER, "weight": NUMBER, "timestamp": TIME}
"""Types of the contract's columns; columns of vectors are `VECTORS`, every other column is text."""
DOCUMENT_COLUMNS = ("description", "language", "country", IMAGES)
EVENT_COLUMNS = ("user_id", "event", "timestamp", "query", "document_id", "country", "search_id")
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


class _Part(NamedTuple):
    file: TableFile
    sources: dict[str, str]
    """The column of the file by column of the contract."""
    constants: dict[str, str | None]
    """Values of columns that folders are named after."""


class Table:
    """One table of the contract: checked when it is opened, read by `batches` or `read`.

    Args:
        path: The file, folder or glob.
        kind: The name of the table in errors: "documents", "positives", "judgements".
        required: Columns that the table must have.
        optional: Columns that are read as missing values if the table does not have them.
        vectors: Columns that hold lists of vectors, with the width of the vectors if it is known.
        csv_delimiter: The character between two cells of a `.csv` file.
        mark_unparsable: Read cells of `timestamp` that hold no time as null, with true in the additional column
            `unparsable`, instead of an error.

    Attributes:
        columns: The required and optional columns that the table has.
        missing: The optional columns that it does not have.
        available: All columns that it has.

    Raises:
        InputError: There is no such file, it cannot be read, or a required column is absent.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        required: Sequence[str],
        optional: Sequence[str] = (),
        vectors: Collection[str] | Mapping[str, int | None] = (IMAGES,),
        csv_delimiter: str = ",",
        mark_unparsable: bool = False,
    ):
        self.path, self.kind, self.mark_unparsable = path, kind, mark_unparsable
        self._widths = dict(vectors) if isinstance(vectors, Mapping) else dict.fromkeys(vectors)
        columns = (*required, *optional)
        files = find_files(path, kind)
        self._parts = []
        for file_path in files.paths:
            file = open_file(file_path, files.format, kind, csv_delimiter)
            folders = [folder.partition("=") for folder in file_path.relative_to(files.root).parts[:-1]]
            constants = {
                name: _partition(value) for name, equals, value in folders if equals and name not in file.names
            }
            names = [*file.names, *constants]
            if "document_id" in columns and {"document_id", "product_id"} <= set(names):
                raise InputError(
                    f"{kind} {file_path}: has document_id and product_id, two names of one column: drop or rename one"
                )
            sources = {name: name for name in columns if name in names}
            if "document_id" in columns and "product_id" in names:
                sources["document_id"] = "product_id"
            self._parts.append(_Part(file, sources, constants))
        present = {name for part in self._parts for name in part.sources}
        self.available = list(
            dict.fromkeys(name for part in self._parts for name in (*part.file.names, *part.constants))
        )
        self.columns = [column for column in columns if column in present]
        self.missing = [column for column in columns if column not in present]
        if absent := [column for column in required if column not in present]:
            found = ", ".join(self.available) or "no columns"
            raise InputError(f"{kind} {path}: needs the column {', '.join(absent)}; it has {found}")

    @property
    def schema(self) -> pa.Schema:
        """The columns of the batches: `columns`, then `missing` ones."""
        kinds = {
            name: VECTORS if name in self._widths else TYPES.get(name, TEXT) for name in self.columns + self.missing
        }
        return pa.schema(kinds | ({"unparsable": pa.bool_()} if self.mark_unparsable else {}))

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [part.file.path for part in self._parts]

    def num_rows(self) -> int:
        """The number of rows; a text file is read to count them."""
        counts = [part.file.num_rows for part in self._parts]
        return sum(map(len, self.batches())) if None in counts else sum(filter(None, counts))

    def num_batches(self, rows: int) -> int | None:
        """The number of batches of `rows` rows, for a progress bar; None for a text file, which has no row count."""
        counts = [part.file.num_rows for part in self._parts]
        return None if None in counts else sum(-(-count // rows) for count in counts if count)

    def batches(self, rows: int = 8_192, first: int = 0) -> Iterator[pa.RecordBatch]:
        """The table in record batches of at most `rows` rows, with the contract's column names and types.

        Args:
            rows: the largest number of rows of a batch.
            first: the row of the table to begin with, counted from 0. Row groups of Parquet before it are not read.

        Raises:
            InputError: A value that cannot be read or is not of the column's type; it names file, row and column.
        """
        for part in self._parts:
            columns = [*set(part.sources.values()) - set(part.constants)]
            if first and (count := _count_rows(part.file)) <= first:
                first -= count
                continue
            stream = iter(part.file.read(columns, rows, first))
            position, first = first, 0
            while True:
                with readable(f"{self.kind} {part.file.path}"):
                    batch = next(stream, None)
                if batch is None:
                    break
                if len(batch):
                    yield self._convert(part, batch, position + 1)
                position += len(batch)

    def read(self) -> pa.Table:
        """The whole table in memory.

        Raises:
            InputError: As in `batches`, or the table has no rows.
        """
        batches = list(self.batches())
        if not batches:
            raise InputError(f"{self.kind} {self.path}: it has no rows")
        return pa.Table.from_batches(batches)

    def _convert(self, part: _Part, batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
        """A batch of a file with the columns of the table; its first row is row `first` of the file."""
        converted: dict[str, pa.Array] = {}
        schema = self.schema
        for column in (*self.columns, *self.missing):
            source = part.sources.get(column)
            if source is None:
                values = pa.nulls(len(batch), schema.field(column).type)
            elif source in part.constants:
                values = pa.repeat(pa.scalar(part.constants[source], TEXT), len(batch))
            else:
                values = batch.column(source)
            try:
                with readable(f"{self.kind} {part.file.path}: column {column}"):
                    converted[column] = self._cast(column, values, converted)
            except CellError as error:
                place = f"{self.kind} {part.file.path}: "
                if error.row is not None:
                    identity = converted["document_id"][error.row].as_py() if "document_id" in converted else None
                    place += f"row {first + error.row}, " + (f"document_id {identity!r}, " if identity else "")
                raise InputError(f"{place}column {column} {error.rule}") from None
        return pa.RecordBatch.from_pydict(converted, schema)

    def _cast(self, column: str, values: pa.Array, converted: dict[str, pa.Array]) -> pa.Array:
        if column in self._widths:
            return as_vectors(values, self._widths[column])
        kind = TYPES.get(column, TEXT)
        if kind == NUMBER:
            return as_number(values, minimum=0 if column == "weight" else None)
        if kind != TIME:
            return as_text(values, column)
        times, unparsable = as_times(values)
        if self.mark_unparsable:
            converted["unparsable"] = unparsable
        elif (row := pc.index(unparsable, True).as_py()) >= 0:
            rule = "must be a time in ISO 8601 or an epoch number (seconds to nanoseconds, from 1973 on)"
            raise CellError(f"{rule}; got {values[row].as_py()!r}", row)
        return times


def _count_rows(file: TableFile) -> int:
    return file.num_rows if file.num_rows is not None else sum(map(len, file.read(file.names[:1], 8_192, 0)))


def _partition(value: str) -> str | None:
    return None if value == NULL_PARTITION else unquote(value)


def open_documents(
    path: Path,
    inputs: Sequence[str] = DOCUMENT_COLUMNS,
    vectors: Collection[str] | Mapping[str, int | None] = (IMAGES,),
) -> Table:
    """The catalogue: `document_id`, `title`, optional `DOCUMENT_COLUMNS` and other `inputs` of the document tower."""
    optional = dict.fromkeys((*DOCUMENT_COLUMNS, *inputs))
    return Table(path, "documents", ["document_id", "title"], [name for name in optional if name != "title"], vectors)


def open_positives(path: Path) -> Table:
    """Pairs of a query and a relevant document: `query, document_id`, optional `country, timestamp, weight`."""
    return Table(path, "positives", ["query", "document_id"], ["country", "timestamp", "weight"])


def open_judgements(path: Path) -> Table:
    """Rated pairs: `query, document_id, relevance`, optional `country`; or positives: see `check_judgements`."""
    return Table(path, "judgements", ["query", "document_id"], ["country", "relevance", "timestamp", "weight"])


def open_events(path: Path) -> Table:
    """A search log: `EVENT_COLUMNS`, of which `country` and `search_id` are optional, and `unparsable`."""
    return Table(path, "events", EVENT_COLUMNS[:5], EVENT_COLUMNS[5:], mark_unparsable=True)


def read_deletions(path: Path) -> pa.Array:
    """The ids of documents to delete: a table with `document_id`, or a `.txt` file with one id a line.

    Raises:
        InputError: The file cannot be read, or an id is empty or occurs twice.
    """
    if path.suffix.lower() == ".txt" and path.is_file():
        with readable(f"delete {path}"):
            lines = [line.decode().strip() for line in text_lines(path, "delete")]
            ids = as_text(pa.array([line for line in lines if line], TEXT), "document_id")
        if len(ids) and ids[0].as_py() in ("document_id", "product_id"):  # a header
            ids = ids[1:]
    else:
        table = Table(path, "delete", ["document_id"])
        ids = pa.concat_arrays([pa.array([], TEXT), *(batch.column("document_id") for batch in table.batches())])
    if ids.null_count:
        raise InputError(f"delete {path}: every row needs a document_id; {ids.null_count} have none")
    repeated = [count["values"] for count in ids.value_counts().to_pylist() if count["counts"] > 1]
    if repeated:
        raise InputError(f"delete {path}: a document_id may occur once; {repeated[0]!r} occurs more often")
    return ids


def check_judgements(table: Table, relevant_at: float | None = None) -> bool:
    """Whether the judgements are rated; False for a positives table, whose rows are all relevant.

    Args:
        table: The judgements.
        relevant_at: The lowest relevant grade if the user gave one, so that there must be grades.

    Raises:
        InputError: The table has no `relevance`, and `relevant_at` is given, or it has no column that only positives
            have (`timestamp`, `weight`) either.
    """
    if "relevance" in table.columns:
        return True
    found = f"it has {', '.join(table.available)}"
    if relevant_at is not None:
        raise InputError(
            f"judgements {table.path}: a lowest relevant grade of {relevant_at:g} is given, but there is no column "
            f"relevance; {found}: rename the column of the grades, or leave the grade out if every pair is relevant"
        )
    if {"timestamp", "weight"} & set(table.columns):
        return False
    raise InputError(
        f"judgements {table.path}: needs the column relevance (or timestamp or weight, if these are later positives); "
        f"{found}"
    )
