"""Reading one file of a table, of any format, as Arrow batches with the types of the file.

Text files are checked when they are opened: UTF-8 without NUL bytes, a header of distinct names, one rule of quoting.
"""

import csv
import gzip
import json
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem

from q2s_tf.errors import InputError

LONGEST_ROW = 16 << 20
"""Bytes of the longest row of a TSV or CSV file."""

_QUOTED = re.compile(rb'"(?:[^"]|"")*"')
"""A cell that is quoted by RFC 4180."""


class TableFile(NamedTuple):
    """One file of a table, opened."""

    path: Path
    names: list[str]
    """Its columns."""
    read: Callable[[Sequence[str], int, int], Iterator[pa.RecordBatch]]
    """From some of the columns, a number of rows and the first row to batches of at most so many rows, from it on."""
    num_rows: int | None
    """The number of rows, where the format stores it."""


def open_file(path: Path, file_format: str, kind: str, csv_delimiter: str = ",") -> TableFile:
    """Open a file of a table.

    Args:
        path: The file; text is gzipped if the name ends in `.gz`.
        file_format: A value of `q2s_tf.files.FORMATS`.
        kind: The name of the table in errors.
        csv_delimiter: The character between two cells of a CSV file.

    Raises:
        InputError: The file cannot be read; the message names the line, if there is one.
    """
    with readable(f"{kind} {path}"):
        if file_format == "parquet":
            return _open_parquet(path, kind)
        if file_format == "json":
            return _open_json(path, kind)
        return _open_delimited(path, kind, "\t" if file_format == "tsv" else csv_delimiter, file_format == "csv")


@contextmanager
def readable(origin: str) -> Iterator[None]:
    """Turns an error of a reader into an `InputError` of one line about `origin`."""
    try:
        yield
    except InputError:
        raise
    except UnicodeDecodeError:
        raise InputError(f"{origin}: must be UTF-8 and is not: save it as UTF-8") from None
    except (pa.ArrowException, OSError, EOFError, ValueError, MemoryError, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        if "UTF8" in reason:
            raise InputError(f"{origin}: must be UTF-8 and is not: save it as UTF-8") from None
        raise InputError(f"{origin}: cannot be read: {reason}") from None


def _open_parquet(path: Path, kind: str) -> TableFile:
    dataset = ds.dataset(str(path), format="parquet", filesystem=LocalFileSystem())
    names = dataset.schema.names
    _check_names(names, f"{kind} {path}", f"its columns are {', '.join(names)}")

    def read(columns: Sequence[str], rows: int, first: int) -> Iterator[pa.RecordBatch]:
        (fragment,) = dataset.get_fragments()
        ends = list(accumulate(group.num_rows for group in fragment.row_groups))
        groups = [number for number, end in enumerate(ends) if end > first]
        before = ends[groups[0] - 1] if groups and groups[0] else 0
        fields = {name: ds.field(name) for name in columns}
        batches = fragment.subset(row_group_ids=groups).to_batches(
            schema=dataset.schema, columns=fields, batch_size=rows, use_threads=False
        )
        yield from _skip(batches, first - before)

    return TableFile(path, names, read, num_rows=dataset.count_rows())


def _open_json(path: Path, kind: str) -> TableFile:
    def records() -> Iterator[dict[str, object]]:
        for number, line in enumerate(text_lines(path, kind), 1):
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{kind} {path}: line {number} is not JSON: {error}") from None
            if not isinstance(record, dict):
                raise InputError(f"{kind} {path}: line {number} must be one JSON object, a row; got {line[:40]!r}")
            yield record

    def read(columns: Sequence[str], rows: int, first: int) -> Iterator[pa.RecordBatch]:
        stream = islice(records(), first, None)
        while batch := list(islice(stream, rows)):
            arrays = [_json_column([record.get(name) for record in batch]) for name in columns]
            yield pa.RecordBatch.from_arrays(arrays, list(columns))

    names = list(dict.fromkeys(name for record in records() for name in record))
    return TableFile(path, names, read, num_rows=None)


def _json_column(values: list[object]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):  # values of several types, or beyond 64 bits: as they were written
        return pa.array(
            [
                value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                for value in values
            ]
        )


def _open_delimited(path: Path, kind: str, delimiter: str, is_csv: bool) -> TableFile:
    lines = text_lines(path, kind)
    header = next(lines, b"").rstrip(b"\r\n")
    quoted = is_csv or _is_quoted(f"{kind} {path}", header, lines)
    for _ in lines:  # the rest is checked too
        pass
    text = header.decode()
    names = next(csv.reader([text], delimiter=delimiter), []) if quoted else text.split(delimiter)
    _check_names(names, f"{kind} {path}", f"it begins with {text[:200]!r}")
    parse = pyarrow.csv.ParseOptions(
        delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted
    )  # fmt: skip

    def read(columns: Sequence[str], rows: int, first: int) -> Iterator[pa.RecordBatch]:
        convert = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), include_columns=list(columns) or names[:1],
            strings_can_be_null=True, null_values=[""],
        )  # fmt: skip
        block = pyarrow.csv.ReadOptions(block_size=LONGEST_ROW, use_threads=False)  # so that errors name the row
        with _open(path) as stream, pyarrow.csv.open_csv(stream, block, parse, convert) as reader:
            for batch in _skip(reader, first):
                for start in range(0, len(batch), rows):
                    yield batch.slice(start, rows)

    return TableFile(path, names, read, num_rows=None)


def _skip(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The batches without the first `rows` rows."""
    for batch in batches:
        if rows < len(batch):
            yield batch.slice(rows)
        rows = max(0, rows - len(batch))


def _check_names(names: Sequence[str], origin: str, received: str) -> None:
    if not any(names) or len(set(names)) < len(names):
        raise InputError(f"{origin}: must have distinct column names, and in text a first line with them; {received}")


def _open(path: Path) -> gzip.GzipFile:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def text_lines(path: Path, kind: str) -> Iterator[bytes]:
    """The lines of a text file, without the byte order mark; `InputError` if one is not UTF-8 or has a NUL byte."""
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                rule = f"must be UTF-8 and is not: save it as UTF-8 (line {number})"
                raise InputError(f"{kind} {path}: {rule}") from None
            if b"\0" in line:
                raise InputError(f"{kind} {path}: line {number} has a NUL byte (is it UTF-16?): save it as UTF-8")
            yield line.removeprefix(BOM_UTF8) if number == 1 else line


def _is_quoted(origin: str, header: bytes, lines: Iterator[bytes]) -> bool:
    """Whether the cells of a TSV file are quoted as in CSV. Pandas, R and spreadsheets do so, TSV itself has no quotes.

    A header whose names are all quoted proves quoting. So does a quoted cell with a doubled quote, or one that goes on
    after a tab or in another line. A cell with any other quote in it proves that quotes are plain text.

    Raises:
        InputError: The file has cells of both kinds, or quotes that are escaped by backslashes.
    """
    if all(map(_QUOTED.fullmatch, header.split(b"\t"))):
        return True
    width = header.count(b"\t") + 1
    quoted = likely = plain = unclosed = 0  # numbers of lines
    inside = False  # a quoted cell that goes on in the next line
    for number, line in enumerate(lines, 2):
        regular, odd = line.count(b"\t") + 1 == width, line.count(b'"') % 2 == 1
        if unclosed:  # the last cell of the line before begins with a quote: it goes on here, or it is plain text
            plain, quoted = (plain or unclosed, quoted) if regular else (plain, quoted or unclosed)
            inside, unclosed = not regular, 0
        if inside:
            inside = not odd
            continue
        for position, cell in enumerate(line.rstrip(b"\r\n").split(b"\t") if b'"' in line else (), 1):
            inner, at_begin, at_end = cell[1:-1], cell.startswith(b'"'), cell.endswith(b'"')
            if at_begin and at_end and b'\\"' in inner:
                rule = "quotes are escaped by backslashes: double them, or write Parquet"
                raise InputError(f"{origin}: line {number}: {rule}")
            if b'"' not in cell:
                continue
            if _QUOTED.fullmatch(cell):
                quoted = quoted or (number if b'""' in inner else 0)
                likely = likely or (number if b"," in inner else 0)  # spreadsheets quote commas too
            elif not regular and (at_begin or at_end):
                quoted, inside = quoted or number, odd
            elif regular and at_begin and position == width:
                unclosed = number
            elif regular:
                plain = plain or number
    plain = plain or unclosed
    if quoted and plain:
        raise InputError(
            f"{origin}: line {quoted} is quoted as in CSV, but line {plain} has a plain quote: write all cells by one "
            "rule, or write Parquet"
        )
    return bool(quoted or (likely and not plain))
