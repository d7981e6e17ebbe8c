"""Reading published tables strictly, and writing ours whole or not at all."""

import csv
import gzip
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from q2s_tf.errors import InputError


def locate(folder: Path, *names: str) -> Path:
    """The first of ``names`` that is in ``folder``, plain or as ``.gz``.

    Raises:
        InputError: None is.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds {names[0]}")
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise InputError(f"{folder}: {' or '.join(names)} is missing (plain or .gz); give the folder of the data set")


def locate_all(folder: Path, stem: str) -> dict[str, Path]:
    """The files ``stem_PART.tsv`` (plain or ``.gz``) of ``folder``, by part.

    Raises:
        InputError: There is none.
    """
    found = sorted([*folder.glob(f"{stem}_*.tsv"), *folder.glob(f"{stem}_*.tsv.gz")])
    if not found:
        raise InputError(f"{folder}: {stem}_*.tsv is missing (plain or .gz); give the folder of the data set")
    return {path.name.removesuffix(".gz").removesuffix(".tsv").removeprefix(f"{stem}_"): path for path in found}


def read_tsv(path: Path, columns: Sequence[str], optional: Sequence[str] = (), quoted: bool = False) -> pa.Table:
    """The named columns of a tab-separated file, as text; empty cells are null, absent ``optional`` columns too.

    Args:
        path: The file, UTF-8, gzipped if it ends in ``.gz``.
        columns: Columns that must be there.
        optional: Columns that may be.
        quoted: Whether a cell may be quoted (RFC 4180), and then hold tabs, quotes and line breaks.

    Raises:
        InputError: A column is missing, a row has too many or too few cells, or the file is not UTF-8.
    """
    try:
        header = _header(path)
        missing = [name for name in columns if name not in header]
        if missing:
            raise InputError(f"{path}: column {', '.join(missing)} missing; found {', '.join(header)}")
        wanted = [name for name in (*columns, *optional) if name in header]
        table = pa.csv.read_csv(
            path,
            parse_options=pa.csv.ParseOptions(
                delimiter="\t", quote_char='"' if quoted else False, newlines_in_values=quoted
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted, null_values=[""],
                strings_can_be_null=True, quoted_strings_can_be_null=True,
            ),
        )  # fmt: skip
    except (pa.ArrowInvalid, UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a table of tab-separated UTF-8 text: {reason}") from None
    for name in optional:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), pa.string()))
    return table


def _header(path: Path) -> list[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        return next(csv.reader(file, delimiter="\t"), [])


def grades(column: pa.ChunkedArray, scale: Mapping[str, float], origin: Path) -> pa.Array:
    """The relevance of each label, ``scale[label]``; labels are compared in lower case.

    Raises:
        InputError: A label is not in ``scale``.
    """
    labels = pc.utf8_lower(pc.fill_null(column, ""))
    index = pc.index_in(labels, value_set=pa.array(list(scale)))
    if index.null_count:
        stranger = pc.filter(column, pc.is_null(index))[0].as_py()
        raise InputError(f"{origin}: a label must be one of {', '.join(scale)}; got {stranger!r}")
    return pc.take(pa.array(list(scale.values()), pa.float32()), index)


def numbers(column: pa.ChunkedArray, origin: Path) -> pa.ChunkedArray:
    """A text column as float32.

    Raises:
        InputError: A cell is empty or no number.
    """
    try:
        found = column.cast(pa.float32())
    except pa.ArrowInvalid as error:
        raise InputError(f"{origin}: relevance must be a number: {error}") from None
    if found.null_count:
        raise InputError(f"{origin}: relevance must be a number; {found.null_count} cells are empty")
    return found


def unique(table: pa.Table, key: str) -> pa.Table:
    """The rows of ``table`` with the first occurrence of each ``key``; rows without one are dropped."""
    rows = pa.table({"key": table[key], "row": pa.array(range(len(table)), pa.int64())})
    first = rows.filter(pc.is_valid(rows["key"])).group_by("key").aggregate([("row", "min")])["row_min"]
    return table.take(first.take(pc.sort_indices(first)))


def write(folder: Path, tables: Mapping[str, pa.Table]) -> dict[str, int]:
    """Writes ``NAME.parquet`` for each table into ``folder``, all whole, none before all are; returns their rows."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = {folder / f"{name}.parquet": folder / f".{name}.parquet.part" for name in tables}
    try:
        for table, path in zip(tables.values(), partial.values(), strict=True):
            pq.write_table(table, path, compression="zstd")
        for final, path in partial.items():
            os.replace(path, final)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    return {f"{name}.parquet": len(table) for name, table in tables.items()}
