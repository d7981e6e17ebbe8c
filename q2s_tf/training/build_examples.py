"""Prepares training examples: joins positives with their documents, and stores what training reads.

Queries and documents are each stored once, as prepared ids on disk (`store`); a positive is a pair of row numbers. The
preparation runs the towers' own preprocessing graph in `tf.data`, the join runs in DuckDB.
"""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import tensorflow as tf

from q2s_tf.cli import console, track
from q2s_tf.errors import InputError
from q2s_tf.models import Tower, Towers
from q2s_tf.tables import Table
from q2s_tf.text import normalise
from q2s_tf.training.examples import NO_COUNTRY, Examples, TowerStore
from q2s_tf.training.frozen import frozen_encoders, store_encoded
from q2s_tf.training.labels import frequent_labels
from q2s_tf.training.pseudo_queries import common_words, pseudo_query
from q2s_tf.training.store import ChannelReader, ChannelWriter
from q2s_tf.training.teacher import Teacher


def build_examples(
    folder: Path, towers: Towers, documents: Table, positives: Table, teacher: Teacher | None = None
) -> Examples:
    """Prepares everything that training reads.

    Args:
        folder: where the stores go; made anew.
        towers: for their preprocessing.
        documents: the catalogue.
        positives: the pairs; those whose document is not in the catalogue are left out, and counted on the console.
        teacher: is asked for every distinct query.

    Raises:
        InputError: an empty catalogue, a document twice, no positive with a document of the catalogue.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with duckdb.connect(folder / "join.duckdb") as join:
        num_documents = _store_documents(folder / "documents", towers, documents, join)
        total = _store_queries(folder / "queries", towers.query, positives, join)
        if teacher:
            _store_lessons(folder / "teacher", teacher, join)
        pairs = _save(
            folder / "pairs",
            join,
            f"{_PAIRS} ORDER BY pseudo, place",
            [("query", "i4"), ("document", "i4"), ("weight", "f4")],
        )
        group = _save(folder / "groups", join, _GROUPS, [("group", "i8")])
        known = _save(folder / "known", join, _KNOWN.format(num_documents=num_documents), [("known", "i8")])
        countries = _countries(join) if towers.config.stage2.negatives == "same_country" else {}
        num_positives = join.execute(f"SELECT count(*) FROM ({_PAIRS} WHERE NOT pseudo)").fetchall()[0][0]
    (folder / "join.duckdb").unlink()
    if not num_positives:
        raise InputError(
            f"positives {positives.path}: no row has a query and a document of {documents.path}: is it their catalogue?"
        )
    if left_out := total - num_positives:
        console.print(f"left out {left_out:,} of {total:,} positives: no such document in the catalogue, or no query")
    share = towers.config.pseudo_queries.batch_share if len(pairs) > num_positives else 0.0
    head = towers.config.head.queries if towers.config.head else 0
    real = pairs[:num_positives]
    labels = frequent_labels(group["group"][real["query"]], real["document"], head, num_documents) if head else None
    drawn = np.bincount(pairs["document"][:num_positives], minlength=num_documents) / num_positives
    return Examples(
        pairs=pairs,
        num_positives=num_positives,
        group=group,
        known=known,
        queries=TowerStore(folder / "queries", towers.config, "query"),
        documents=TowerStore(folder / "documents", towers.config, "document"),
        num_documents=num_documents,
        pseudo_share=share,
        document_probability=((1 - share) * drawn + share / num_documents).astype(np.float32),
        labels=labels,
        teacher=ChannelReader(folder / "teacher", np.float32, towers.config.dimension) if teacher else None,
        **countries,
    )


def _countries(join: duckdb.DuckDBPyConnection) -> dict[str, np.ndarray]:
    """`query_country` and `document_country`, see `Examples`."""
    join.execute("""
        CREATE TABLE countries AS SELECT country, row_number() OVER (ORDER BY country) AS number FROM (
            SELECT lower(trim(country)) AS country FROM texts UNION SELECT lower(trim(country)) FROM documents
        ) WHERE country <> ''""")
    numbers = f"""
        SELECT coalesce(number, {NO_COUNTRY})::INTEGER AS number FROM {{table}}
        LEFT JOIN countries ON lower(trim({{table}}.country)) = countries.country ORDER BY {{row}}"""
    return {
        f"{row}_country": join.execute(numbers.format(table=table, row=row)).fetchnumpy()["number"]
        for row, table in (("query", "texts"), ("document", "documents"))
    }


_PAIRS = """
    SELECT texts.query, documents.document,
        (1 + ln(CASE WHEN isfinite(weight) THEN greatest(1, weight) ELSE 1 END))::FLOAT AS weight
    FROM positives
    JOIN texts ON positives.query = texts.text AND positives.country IS NOT DISTINCT FROM texts.country
    JOIN documents USING (document_id)"""
_GROUPS = "SELECT dense_rank() OVER (ORDER BY text) - 1 AS text_group FROM normal ORDER BY query"
_KNOWN = f"""
    SELECT DISTINCT text_group * {{num_documents}} + document AS known
    FROM ({_PAIRS}) JOIN (SELECT query, dense_rank() OVER (ORDER BY text) - 1 AS text_group FROM normal) USING (query)
    ORDER BY known"""


def _store_documents(folder: Path, towers: Towers, documents: Table, join: duckdb.DuckDBPyConnection) -> int:
    """Stores the catalogue and makes the tables `documents` (row numbers, ids) and `pseudo`; returns the row count."""
    tower, settings = towers.document, towers.config.pseudo_queries
    generator = random.Random(towers.config.seed)
    common = common_words(_titles(documents)) if settings.per_document else frozenset()
    join.execute("CREATE TABLE documents (document INTEGER, document_id VARCHAR, country VARCHAR)")
    join.execute("CREATE TABLE pseudo (query VARCHAR, country VARCHAR, document_id VARCHAR)")
    rows = 0

    def prepared() -> Iterator[dict[str, list]]:
        nonlocal rows
        for batch in track(documents.batches(1_024), "preparing documents", -(-documents.num_rows() // 1_024)):
            keys = (batch.column("document_id"), batch.column("country"))
            _insert(join, "documents", np.arange(rows, rows + len(batch)), *keys)
            rows += len(batch)
            columns = {name: batch.column(name).to_pylist() for name in tower.preprocessor.inputs}
            typed = [
                pseudo_query(title or "", generator, common, settings.variants)
                for title in columns["title"]
                for _ in range(settings.per_document)
            ]
            places = np.repeat(np.arange(len(batch)), settings.per_document)
            _insert(
                join,
                "pseudo",
                pa.array(typed, pa.string()),
                *(batch.column(name).take(places) for name in _PSEUDO_KEYS),
            )
            yield columns

    _store(folder, tower, prepared())
    return rows


def _titles(documents: Table) -> Iterator[str]:
    for batch in documents.batches():
        yield from (title for title in batch.column("title").to_pylist() if title)


_PSEUDO_KEYS = ("country", "document_id")


def _store_queries(folder: Path, tower: Tower, positives: Table, join: duckdb.DuckDBPyConnection) -> int:
    """Stores the distinct queries, and makes the tables `positives`, `texts` (as typed) and `normal` (normalised).

    Returns:
        The number of positives.
    """
    columns = {"query": pa.string(), "country": pa.string(), "document_id": pa.string(), "weight": pa.float64()}
    batches = (batch.select(list(columns)) for batch in positives.batches())
    join.register("read", pa.RecordBatchReader.from_batches(pa.schema(columns), batches))
    join.execute("""
        CREATE TABLE positives AS SELECT row_number() OVER () AS place, * FROM (
            SELECT *, false AS pseudo FROM read
            UNION ALL SELECT query, country, document_id, 1, true FROM pseudo WHERE query <> '')""")
    join.execute("""
        CREATE TABLE texts AS
        SELECT (row_number() OVER (ORDER BY query, country) - 1)::INTEGER AS query, query AS text, country
        FROM (SELECT DISTINCT query, country FROM positives WHERE query IS NOT NULL)""")
    join.execute("CREATE TABLE normal (query INTEGER, text BLOB)")

    def prepared() -> Iterator[dict[str, list]]:
        for batch in join.cursor().sql("SELECT * FROM texts ORDER BY query").to_arrow_reader(4_096):
            text = batch.column("text").to_pylist()
            _insert(join, "normal", batch.column("query"), normalise(tf.constant(text)).numpy())
            yield {"query": text, "country": batch.column("country").to_pylist()}

    _store(folder, tower, prepared())
    return join.execute("SELECT count(*) FROM positives WHERE NOT pseudo").fetchall()[0][0]


def _store_lessons(path: Path, teacher: Teacher, join: duckdb.DuckDBPyConnection) -> None:
    """Stores what a teacher says of the rows of `texts`."""
    total = join.execute("SELECT count(*) FROM texts").fetchall()[0][0]
    batches = join.sql("SELECT text, country FROM texts ORDER BY query").to_arrow_reader(_ASKED)
    writer = ChannelWriter(path)
    for batch in track(batches, "asking the teacher", -(-total // _ASKED)):
        vectors = teacher({"query": batch.column("text").to_pylist(), "country": batch.column("country").to_pylist()})
        writer.append(vectors.astype(np.float32)[:, np.newaxis])
    writer.close()


_ASKED = 4_096
"""Queries of which a teacher is asked at a time."""


def _insert(join: duckdb.DuckDBPyConnection, table: str, *columns: Any) -> None:
    join.register("inserted", pa.table(list(columns), [f"column{place}" for place in range(len(columns))]))
    join.execute(f"INSERT INTO {table} FROM inserted")


def _store(folder: Path, tower: Tower, columns: Iterator[dict[str, list]]) -> None:
    """Prepares batches of raw columns through the tower's preprocessing, in `tf.data`, and stores them by channel."""
    folder.mkdir(parents=True)
    refused: list[InputError] = []

    def tensors() -> Iterator[dict[str, tf.Tensor]]:
        try:
            yield from map(tower.tensors, columns)
        except InputError as error:  # tf.data would make an error of its own of it
            refused.append(error)

    raw = tf.data.Dataset.from_generator(tensors, output_signature=tower.preprocessor.signature())
    writers = {name: ChannelWriter(folder / name) for name in tower.channels}
    for prepared in raw.map(tower.preprocessor).prefetch(2).as_numpy_iterator():
        for name, writer in writers.items():
            writer.append(prepared[name])
    for writer in writers.values():
        writer.close()
    if refused:
        raise refused[0]
    for name, encode in frozen_encoders(tower).items():
        store_encoded(folder, name, encode)


def _save(path: Path, join: duckdb.DuckDBPyConnection, sql: str, fields: list[tuple[str, str]]) -> np.ndarray:
    """Streams a query's rows to a file and maps it: a record array that is paged in as it is read."""
    kind = np.dtype(fields)
    with path.open("wb") as file:
        for batch in join.sql(sql).to_arrow_reader(65_536):
            rows = np.empty(len(batch), kind)
            for name, column in zip(kind.names or (), batch.columns, strict=True):
                rows[name] = column.to_numpy(zero_copy_only=False)
            file.write(rows.tobytes())
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.empty(0, kind)
