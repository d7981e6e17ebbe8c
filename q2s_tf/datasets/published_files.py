"""Finding and converting the files of published data sets, and writing the converted tables."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from q2s_tf.errors import InputError
from q2s_tf.files import atomic_write


def locate(folder: Path, pattern: str) -> list[Path]:
    """The files of `folder` that match a glob pattern, plain or with the suffix `.gz`, sorted.

    Raises:
        InputError: There is no such folder or file.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds {pattern}")
    paths = sorted([*folder.glob(pattern), *folder.glob(f"{pattern}.gz")])
    if not paths:
        raise InputError(f"{folder}: {pattern} is missing (plain or .gz); give the folder of the data set")
    return paths


def locate_judgements(folder: Path) -> dict[str, Path]:
    """The files `judgements_PART.tsv` (plain or `.gz`) of `folder` by `judgements_PART`; raises as `locate`."""
    return {path.name.split(".")[0]: path for path in locate(folder, "judgements_*.tsv")}


def constant(value: str, table: pa.Table) -> pa.Array:
    """A text column with the same value in each row of `table`."""
    return pa.repeat(pa.scalar(value, pa.string()), len(table))


def grades(column: pa.ChunkedArray, scale: Mapping[str, float], origin: Path) -> pa.Array:
    """The relevance of each label, `scale[label]`; labels are compared in lower case.

    Raises:
        InputError: A label is not in `scale`; `origin` is the file that the error names.
    """
    index = pc.index_in(pc.utf8_lower(pc.fill_null(column, "")), value_set=pa.array(list(scale)))
    if index.null_count:
        unknown = pc.filter(column, pc.is_null(index))[0].as_py()
        raise InputError(f"{origin}: a label must be one of {', '.join(scale)}; got {unknown!r}")
    return pc.take(pa.array(list(scale.values()), pa.float32()), index)


def unique(table: pa.Table, key: str) -> pa.Table:
    """The first row of each value of the column `key`; rows without a value are dropped."""
    rows = pa.table({"key": table[key], "row": pa.array(range(len(table)), pa.int64())})
    first = rows.filter(pc.is_valid(rows["key"])).group_by("key").aggregate([("row", "min")])["row_min"]
    return table.take(first.take(pc.sort_indices(first)))


def write_tables(folder: Path, tables: Mapping[str, pa.Table]) -> dict[str, int]:
    """Write each table as `NAME.parquet` into `folder`, all of them or none; returns the rows by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for name, table in tables.items():
            path = stack.enter_context(atomic_write(folder / f"{name}.parquet"))
            pq.write_table(table, path, compression="zstd")
    return {f"{name}.parquet": len(table) for name, table in tables.items()}
