"""The join of positives, queries and documents in DuckDB, which spills what does not fit into its memory.

Its results are files of records, which `Examples` maps.
"""

import glob
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from q2s_tf.cli import console
from q2s_tf.errors import InputError
from q2s_tf.examples.batches import NO_COUNTRY
from q2s_tf.examples.stored_rows import mapped
from q2s_tf.tables import Table

MEMORY = "2GiB"
"""Memory of DuckDB. The rest is spilled into the folder of the examples."""
TEXTS = "texts.parquet"
"""The distinct pairs of a query and a country, as typed, in the order of the query rows; columns `text`, `country`."""
NORMALISED = "normalised-{}.parquet"
"""Normalised queries of the shards of one worker; columns `query` (row) and `text`."""

Join = duckdb.DuckDBPyConnection
"""Connection with the tables `documents` (row, id, country) and `positives`, pseudo-queries among them."""
RECORDS = {
    "pairs": [("query", "i4"), ("document", "i4"), ("weight", "f4")],
    "group": [("group", "i8")],
    "known": [("known", "i8")],
    "labels": [("document", "i4"), ("label", "i4")],
    "query_country": [("country", "i4")],
    "document_country": [("country", "i4")],
}
"""Fields of the files of records."""


@contextmanager
def open_join(folder: Path) -> Iterator[Join]:
    """A new database in a folder, which is removed in the end."""
    path, spill = folder / "join.duckdb", folder / "spill"
    with duckdb.connect(path, config={"memory_limit": MEMORY, "temp_directory": str(spill)}) as join:
        join.execute("""
            CREATE TABLE documents (document INTEGER, document_id VARCHAR, country VARCHAR);
            CREATE TABLE positives (
                pseudo BOOLEAN, position BIGINT, query VARCHAR, country VARCHAR, document_id VARCHAR, weight DOUBLE)""")
        yield join
    path.unlink()
    shutil.rmtree(spill, ignore_errors=True)


def insert(join: Join, table: str, *columns: Any) -> None:
    """Appends rows, given by column, to a table."""
    join.register("inserted", pa.table(list(columns), [f"column{number}" for number in range(len(columns))]))
    join.execute(f"INSERT INTO {table} SELECT * FROM inserted")


def write_texts(join: Join, folder: Path, positives: Table | None, documents: Table) -> None:
    """Reads the positives and writes `TEXTS`.

    Raises:
        InputError: no positive can be used.
    """
    if positives:
        join.begin()
        rows = 0
        for batch in positives.batches():
            names = ("query", "country", "document_id", "weight")
            position = np.arange(rows, rows + len(batch))
            insert(join, "positives", pa.repeat(False, len(batch)), position, *map(batch.column, names))
            rows += len(batch)
        join.commit()
        _check_positives(join, positives, documents)
    join.sql("""
        SELECT DISTINCT query AS text, country FROM positives WHERE query IS NOT NULL ORDER BY text, country
        """).write_parquet(str(folder / TEXTS))


def write_pairs(join: Join, folder: Path, num_documents: int, num_labels: int, countries: bool) -> None:
    """Writes the files of records and the counts.

    Args:
        join: after `write_texts`.
        folder: has `TEXTS` and the files `NORMALISED` of all workers.
        num_documents: size of the catalogue.
        num_labels: number of queries of the classification head.
        countries: whether to number the countries.
    """
    escaped = Path(glob.escape(str(folder)))
    join.read_parquet(str(escaped / TEXTS), file_row_number=True).create_view("typed")
    join.read_parquet(str(escaped / NORMALISED.format("*"))).create_view("normalised")
    join.execute("""
        CREATE VIEW texts AS SELECT file_row_number::INTEGER AS query, text, country FROM typed;
        CREATE TABLE groups AS SELECT query, dense_rank() OVER (ORDER BY text) - 1 AS text_group FROM normalised;
        CREATE TABLE pairs AS
        SELECT texts.query, document, (1 + ln(greatest(1, coalesce(weight, 1))))::FLOAT AS weight, pseudo, position
        FROM positives
        JOIN texts ON positives.query = texts.text AND positives.country IS NOT DISTINCT FROM texts.country
        JOIN documents USING (document_id);
        DROP TABLE positives""")
    _save(join, folder, "pairs", "SELECT query, document, weight FROM pairs ORDER BY pseudo, position")
    _save(join, folder, "group", "SELECT text_group FROM groups ORDER BY query")
    known = f"SELECT DISTINCT text_group * {num_documents} + document AS known FROM pairs JOIN groups USING (query)"
    _save(join, folder, "known", f"{known} ORDER BY known")
    if countries:
        _write_countries(join, folder)
    num_positives, num_queries, distinct = join.execute(f"""
        SELECT count(*), count(DISTINCT text_group), count(DISTINCT query::BIGINT * {num_documents} + document)
        FROM pairs JOIN groups USING (query) WHERE NOT pseudo""").fetchall()[0]
    if repeated := num_positives - distinct:
        console.print(f"{repeated:,} of {num_positives:,} positives repeat another row, and count again")
    counted = {"num_positives": num_positives, "num_queries": num_queries}
    counted["num_labels"] = write_labels(join, folder, num_labels) if num_labels else 0
    (folder / "counts.json").write_text(json.dumps(counted))


def write_labels(join: Join, folder: Path, count: int) -> int:
    """Writes the labels of each document, the `count` most frequent queries of its positives, and returns their number.

    Label 0 is the most frequent query; of two equally frequent ones, the one with the smaller number comes first.
    """
    join.execute(f"""
        CREATE TABLE frequent AS SELECT text_group, row_number() OVER (ORDER BY frequency DESC, text_group) - 1 AS label
        FROM (
            SELECT text_group, count(*) AS frequency FROM pairs JOIN groups USING (query) WHERE NOT pseudo
            GROUP BY text_group ORDER BY frequency DESC, text_group LIMIT {count}
        )""")
    _save(join, folder, "labels", """
        SELECT DISTINCT document, label FROM pairs JOIN groups USING (query) JOIN frequent USING (text_group)
        WHERE NOT pseudo ORDER BY document, label""")  # fmt: skip
    return int(join.execute("SELECT count(*) FROM frequent").fetchall()[0][0])


def read_records(folder: Path, name: str) -> np.ndarray:
    """Maps a file of records."""
    return mapped(folder / name, np.dtype(RECORDS[name]))


def read_counts(folder: Path) -> dict[str, int]:
    """The numbers of positives, of their distinct normalised queries, and of labels."""
    return json.loads((folder / "counts.json").read_text())


_COUNTS = """
    SELECT count(*), count(*) FILTER (query IS NULL), count(*) FILTER (query IS NOT NULL AND document IS NULL),
        min(positives.document_id), (SELECT min(document_id) FROM documents)
    FROM positives LEFT JOIN documents USING (document_id) WHERE NOT pseudo"""


def _check_positives(join: Join, positives: Table, documents: Table) -> None:
    """Says how many positives cannot be used; `InputError` if none can."""
    total, blank, unlisted, example, listed = join.execute(_COUNTS).fetchall()[0]
    if total == blank + unlisted:
        raise InputError(
            f"positives {positives.path}: no row has a query and a document of {documents.path}: is it their catalogue?"
            f" The first document_id here is {example!r}, there {listed!r}"
        )
    for reason, rows in (("no query", blank), ("no such document in the catalogue", unlisted)):
        if rows:
            console.print(f"{rows:,} of {total:,} positives left out: {reason}")


def _write_countries(join: Join, folder: Path) -> None:
    """Writes `query_country` and `document_country` of `Examples`."""
    join.execute("""
        CREATE TABLE countries AS SELECT country, row_number() OVER (ORDER BY country) AS number FROM (
            SELECT lower(trim(country)) AS country FROM texts UNION SELECT lower(trim(country)) FROM documents
        ) WHERE country <> ''""")
    for row, table in (("query", "texts"), ("document", "documents")):
        numbers = f"""
            SELECT coalesce(number, {NO_COUNTRY})::INTEGER FROM {table}
            LEFT JOIN countries ON lower(trim({table}.country)) = countries.country ORDER BY {row}"""
        _save(join, folder, f"{row}_country", numbers)


def _save(join: Join, folder: Path, name: str, sql: str) -> None:
    """Streams the rows of a query to a file of records."""
    kind = np.dtype(RECORDS[name])
    with (folder / name).open("wb") as file:
        for batch in join.sql(sql).to_arrow_reader(65_536):
            rows = np.empty(len(batch), kind)
            for field, column in zip(kind.names or (), batch.columns, strict=True):
                rows[field] = column.to_numpy(zero_copy_only=False)
            file.write(rows.tobytes())
