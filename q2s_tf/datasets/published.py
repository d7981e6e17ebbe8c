"""Conversion of published data sets: Home Depot, Shopping Queries (ESCI) and WANDS."""

import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from q2s_tf.errors import InputError
from q2s_tf.files import atomic_write, make_folder
from q2s_tf.tables import Table

Name = Literal["home_depot", "esci", "wands"]

HOME_DEPOT_RELEVANT = 2.33
"""The lowest grade of a positive of Home Depot (grades are thirds: 2.33, 2.67 and 3)."""
HOME_DEPOT_TIME = datetime(2016, 1, 1, tzinfo=UTC)
"""The timestamp of its positives: about when the set was published. It has no clicks and no times."""
ESCI_GRADES = {"exact": 3.0, "substitute": 2.0, "complement": 1.0, "irrelevant": 0.0}
ESCI_LANGUAGES = {"US": "en", "ES": "es", "JP": "ja"}
WANDS_GRADES = {"exact": 2.0, "partial": 1.0, "irrelevant": 0.0}


def import_dataset(name: Name, path: Path, out: Path, validation_every: int | None = None) -> dict[str, int]:
    """Convert a published data set into Parquet files of the data contract: `documents`, and judgements by part.

    - `home_depot`: `products.tsv`, `judgements_PART.tsv`. The part `train` also gives `judgements_validation`, all rows
      of some queries, and `positives`: the pairs of the others graded 2.33 or more.
    - `esci`: `products.tsv`, `judgements_PART.tsv`, with the grades exact 3, substitute 2, complement 1, irrelevant 0
      (or E, S, C, I). The documents have a column `brand`.
    - `wands`: `query.csv`, `product.csv`, `label.csv` (tab-separated), with the grades Exact 2, Partial 1, Irrelevant
      0. The documents have `product_class` and `category`.

    Args:
        name: The data set.
        path: The folder that holds its files, plain or with the suffix `.gz`.
        out: The folder to write into.
        validation_every: Home Depot only: use one training query in this many for validation, by a hash; None means 20.

    Returns:
        The number of rows of each file written.

    Raises:
        InputError: A published file or column is missing, a cell is invalid, or `validation_every` is given for a set
            without training queries.
    """
    if name == "home_depot":
        return write_tables(out, _home_depot(path, validation_every or 20))
    if validation_every is not None:
        raise InputError(f"--validation-every {validation_every}: {name} has no training queries; leave it out")
    return write_tables(out, _esci(path) if name == "esci" else _wands(path))


def write_tables(folder: Path, tables: Mapping[str, pa.Table]) -> dict[str, int]:
    """Write each table as `NAME.parquet` into `folder`, all of them or none; returns the rows by file name."""
    make_folder(folder)
    with ExitStack() as stack:
        for name, table in tables.items():
            path = stack.enter_context(atomic_write(folder / f"{name}.parquet"))
            pq.write_table(table, path, compression="zstd")
    return {f"{name}.parquet": len(table) for name, table in tables.items()}


def _home_depot(path: Path, validation_every: int) -> dict[str, pa.Table]:
    products = _products(path, "products.tsv", ["title"])
    written = {"documents": _with_constants(products, language="en", country="US")}
    for name, file in _judgement_files(path).items():
        rows = Table(file, "judgements", ["query", "document_id", "relevance"]).read()
        if missing := rows["relevance"].null_count:
            raise InputError(f"judgements {file}: relevance must be a number; {missing} cells are empty")
        rows = _with_constants(rows, country="US").select(["query", "country", "document_id", "relevance"])
        written[name] = rows.set_column(3, "relevance", rows["relevance"].cast(pa.float32()))
        if name == "judgements_train":
            hashes = (zlib.crc32((query or "").encode()) for query in rows["query"].to_pylist())
            held_out = pa.array([value % validation_every == 0 for value in hashes])
            written["judgements_validation"] = written[name].filter(held_out)
            relevant = pc.greater(rows["relevance"], HOME_DEPOT_RELEVANT - 0.005)  # grades are rounded
            pairs = rows.filter(pc.and_(relevant, pc.invert(held_out))).drop_columns("relevance")
            pairs = pairs.group_by(pairs.column_names, use_threads=False).aggregate([])
            written["positives"] = _with_constants(pairs, timestamp=HOME_DEPOT_TIME, weight=1)
    return written


def _esci(path: Path) -> dict[str, pa.Table]:
    products = _products(path, "products.tsv", ["title", "country"], ["description", "brand"])
    index = pc.index_in(products["country"], value_set=pa.array(list(ESCI_LANGUAGES)))
    languages = pc.take(pa.array(list(ESCI_LANGUAGES.values())), index)
    written = {"documents": products.append_column("language", languages)}
    letters = {label[0]: grade for label, grade in ESCI_GRADES.items()}
    for name, file in _judgement_files(path).items():
        rows = Table(file, "judgements", ["query", "country", "document_id", "esci_label"]).read()
        written[name] = _graded(rows, "esci_label", ESCI_GRADES | letters, file)
    return written


def _wands(path: Path) -> dict[str, pa.Table]:
    columns = {"product_description": "description", "product_class": "product_class", "category hierarchy": "category"}
    products = _products(path, "product.csv", ["product_name"], list(columns))
    products = products.rename_columns({"product_name": "title"} | columns)
    queries = Table(_locate(path, "query.csv")[0], "query", ["query_id", "query"], csv_delimiter="\t").read()
    file = _locate(path, "label.csv")[0]
    labels = Table(file, "label", ["query_id", "document_id", "label"], csv_delimiter="\t").read()
    text = dict(zip(queries["query_id"].to_pylist(), queries["query"].to_pylist(), strict=True))
    texts = [text.get(query_id) for query_id in labels["query_id"].to_pylist()]
    if None in texts:
        unknown = labels["query_id"][texts.index(None)].as_py()
        raise InputError(f"label {file}: query_id {unknown!r} has no query in query.csv; use files of one release")
    judged = _with_constants(labels.append_column("query", pa.array(texts, pa.string())), country="US")
    judged = judged.select(["query", "country", "document_id", "label"])
    documents = _with_constants(products, language="en", country="US")
    return {"documents": documents, "judgements": _graded(judged, "label", WANDS_GRADES, file)}


def _locate(folder: Path, pattern: str) -> list[Path]:
    """The files of `folder` that match a glob pattern, plain or with the suffix `.gz`, sorted."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds {pattern}")
    if paths := sorted([*folder.glob(pattern), *folder.glob(f"{pattern}.gz")]):
        return paths
    raise InputError(f"{folder}: {pattern} is missing (plain or .gz); give the folder of the data set")


def _judgement_files(folder: Path) -> dict[str, Path]:
    return {path.name.split(".")[0]: path for path in _locate(folder, "judgements_*.tsv")}


def _products(folder: Path, name: str, required: list[str], optional: list[str] | None = None) -> pa.Table:
    """The products of a file: the first row of each `document_id`."""
    path, kind = _locate(folder, name)[0], name.split(".")[0]
    table = Table(path, kind, ["document_id", *required], optional or [], csv_delimiter="\t").read()
    rows = table.append_column("row", pa.array(range(len(table)))).filter(pc.is_valid(table["document_id"]))
    first = rows.group_by("document_id").aggregate([("row", "min")])["row_min"]
    return table.take(first.take(pc.sort_indices(first)))


def _with_constants(table: pa.Table, **values: object) -> pa.Table:
    for name, value in values.items():
        scalar = pa.scalar(value, pa.timestamp("us", "UTC") if isinstance(value, datetime) else None)
        table = table.append_column(name, pa.repeat(scalar, len(table)))
    return table


def _graded(rows: pa.Table, column: str, scale: Mapping[str, float], file: Path) -> pa.Table:
    """The rows with the grade of each label as `relevance`, in place of the labels; their case does not matter."""
    labels = rows[column]
    index = pc.index_in(pc.utf8_lower(pc.fill_null(labels, "")), value_set=pa.array(list(scale)))
    if index.null_count:
        unknown = pc.filter(labels, pc.is_null(index))[0].as_py()
        raise InputError(f"{file}: a label must be one of {', '.join(scale)}; got {unknown!r}")
    grades = pc.take(pa.array(list(scale.values()), pa.float32()), index)
    return rows.drop_columns(column).append_column("relevance", grades)
