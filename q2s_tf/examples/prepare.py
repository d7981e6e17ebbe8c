"""Preparation of training examples: two passes over the catalogue and two over the positives.

The first pass collects ids, categories and the texts of the tokenizer. The second one stores preprocessed rows: each
document and each distinct query once; a positive is a pair of row numbers. The towers' own preprocessing runs in
`tf.data`, the join runs in DuckDB.
"""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from q2s_tf.cli import console, track
from q2s_tf.config import Config
from q2s_tf.errors import InputError
from q2s_tf.examples.batches import NO_COUNTRY, Examples, frequent_queries
from q2s_tf.examples.stored_rows import RowReader, RowWriter, TowerRows, store_rows
from q2s_tf.models import Tower, Towers, unique_ids
from q2s_tf.models.encoding import documents_named
from q2s_tf.tables import Table
from q2s_tf.text import normalise

Teacher = Callable[[Mapping[str, list[Any]]], np.ndarray]
"""From columns `query` and `country` to vectors `[B, D]` in the space of the channel vectors; zeros without text."""


class TableScan:
    """The first pass over the catalogue or the positives.

    Args:
        config: declares the channels.
        side: "document" for the catalogue, "query" for the positives.
        table: the table.

    Attributes:
        document_ids: ids of a catalogue, checked.

    Raises:
        InputError: a channel of the document tower reads a column that the catalogue does not have.
    """

    def __init__(self, config: Config, side: str, table: Table):
        self.config, self.side, self.table = config, side, table
        for name, channel in config.tower_channels(side).items():
            if side == "document" and channel.input in table.missing:
                raise InputError(
                    f"{table.kind} {table.path}: channel {name} reads the column {channel.input}, which is not there "
                    f"(columns: {', '.join(table.available)}): add it, or remove the channel from the config"
                )
        self.document_ids: pa.Array = pa.array([], pa.string())
        self._values: dict[str, Counter[str]] = {
            name: Counter() for name, channel in config.tower_channels(side).items() if channel.kind == "categorical"
        }

    def texts(self) -> Iterator[str]:
        """Reads the table once: yields every text of a channel, normalised, and sets the attributes at the end.

        Titles are among the texts if pseudo-queries are made from them.
        """
        channels = self.config.tower_channels(self.side)
        inputs = {channel.input for channel in channels.values() if channel.kind in ("text", "trigrams")}
        if self.side == "document" and self.config.pseudo_queries.per_document:
            inputs.add("title")
        ids = []
        batches = self.table.num_batches(8_192)
        for batch in track(self.table.batches(), f"reading {self.table.kind}", batches):
            if self.side == "document":
                ids.append(batch.column("document_id"))
            for name, counter in self._values.items():
                counter.update(filter(None, _normalised(batch.column(channels[name].input))))
            for name in sorted(inputs):
                yield from filter(None, _normalised(batch.column(name)))
        if self.side == "document":
            self.document_ids = unique_ids(ids, self.table)

    def read(self) -> "TableScan":
        """Reads the table without using its texts."""
        for _ in self.texts():
            pass
        return self

    def fill_categories(self, config: Config) -> Config:
        """A config with the most frequent values of each categorical channel of this table, normalised."""
        channels = dict(config.channels)
        for name, counter in self._values.items():
            channel = channels[name]
            if channel.kind == "categorical" and not channel.values:
                ranked = sorted(((count, value) for value, count in counter.items()), reverse=True)
                values = tuple(sorted(value for _, value in ranked[: channel.max_values]))
                channels[name] = channel.model_copy(update={"values": values})
        return config.model_copy(update={"channels": channels})


def build_examples(
    folder: Path,
    towers: Towers,
    documents: Table,
    positives: Table | None,
    teacher: Teacher | None = None,
) -> Examples:
    """Stores everything that training reads: the second pass.

    Args:
        folder: folder of the stores, which is emptied first.
        towers: their preprocessors are applied.
        documents: the catalogue.
        positives: the pairs; those whose document is not in the catalogue are left out and counted on the console. None
            for pseudo-queries alone.
        teacher: embeds every distinct query.

    Raises:
        InputError: no positive with a document of the catalogue, image vectors of another width, or a teacher without
            an embedding for any query.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = towers.config
    with duckdb.connect(folder / "join.duckdb") as join:
        document_rows = _store_documents(folder / "documents", towers.document, documents, join)
        num_documents = len(document_rows)
        query_rows = _store_queries(folder / "queries", towers.query, positives, join)
        teacher_rows = _store_teacher(folder / "teacher", teacher, config, join) if teacher else None
        fields = [("query", "i4"), ("document", "i4"), ("weight", "f4")]
        pairs = _save(folder / "pairs", join, f"{_PAIRS} ORDER BY pseudo, position", fields)
        group = _save(folder / "groups", join, _GROUPS, [("group", "i8")])
        known = _save(folder / "known", join, _KNOWN.format(num_documents=num_documents), [("known", "i8")])
        countries = _countries(join) if config.stage2.negatives == "same_country" else {}
        num_positives = _count_positives(join, positives, documents) if positives else 0
    (folder / "join.duckdb").unlink()
    share = config.pseudo_queries.batch_share if len(pairs) > num_positives else 0.0
    real = pairs[:num_positives]
    return Examples(
        pairs=pairs,
        num_positives=num_positives,
        group=group,
        known=known,
        queries=query_rows,
        documents=document_rows,
        num_documents=num_documents,
        pseudo_share=share,
        labels=frequent_queries(group["group"][real["query"]], real["document"], config.head.queries, num_documents)
        if config.head
        else None,
        teacher=teacher_rows,
        **countries,
    )


_PAIRS = """
    SELECT texts.query, documents.document,
        (1 + ln(greatest(1, coalesce(weight, 1))))::FLOAT AS weight
    FROM positives
    JOIN texts ON positives.query = texts.text AND positives.country IS NOT DISTINCT FROM texts.country
    JOIN documents USING (document_id)"""
_GROUPS = "SELECT dense_rank() OVER (ORDER BY text) - 1 AS text_group FROM normal ORDER BY query"
_KNOWN = f"""
    SELECT DISTINCT text_group * {{num_documents}} + document AS known
    FROM ({_PAIRS}) JOIN (SELECT query, dense_rank() OVER (ORDER BY text) - 1 AS text_group FROM normal) USING (query)
    ORDER BY known"""


_COUNTS = """
    SELECT count(*), count(*) FILTER (query IS NULL), count(*) FILTER (query IS NOT NULL AND document IS NULL),
        count(*) - count(DISTINCT (query, positives.country, positives.document_id)),
        min(positives.document_id), (SELECT min(document_id) FROM documents)
    FROM positives LEFT JOIN documents USING (document_id) WHERE NOT pseudo"""


def _count_positives(join: duckdb.DuckDBPyConnection, positives: Table, documents: Table) -> int:
    """The number of positives that can be used; says how many cannot, and how many repeat another one."""
    total, blank, unlisted, repeated, example, listed = join.execute(_COUNTS).fetchall()[0]
    if not (usable := total - blank - unlisted):
        raise InputError(
            f"positives {positives.path}: no row has a query and a document of {documents.path}: is it their catalogue?"
            f" The first document_id here is {example!r}, there {listed!r}"
        )
    reasons = {"left out: no query": blank, "left out: no such document in the catalogue": unlisted}
    for reason, rows in (reasons | {"repeat another row, and count again": repeated}).items():
        if rows:
            console.print(f"{rows:,} of {total:,} positives {reason}")
    return usable


def _countries(join: duckdb.DuckDBPyConnection) -> dict[str, np.ndarray]:
    """`query_country` and `document_country` of `Examples`."""
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


def _store_documents(folder: Path, tower: Tower, documents: Table, join: duckdb.DuckDBPyConnection) -> TowerRows:
    """Stores the catalogue and creates the tables `documents` (row, id, country) and `pseudo` (pseudo-queries)."""
    settings, generator = tower.config.pseudo_queries, random.Random(tower.config.seed)
    join.execute("CREATE TABLE documents (document INTEGER, document_id VARCHAR, country VARCHAR)")
    join.execute("CREATE TABLE pseudo (query VARCHAR, country VARCHAR, document_id VARCHAR)")

    def inputs() -> Iterator[dict[str, tf.Tensor]]:
        rows = 0
        for batch in track(documents.batches(1_024), "preparing documents", documents.num_batches(1_024)):
            ids, country = batch.column("document_id"), batch.column("country")
            _insert(join, "documents", np.arange(rows, rows + len(batch)), ids, country)
            rows += len(batch)
            if settings.per_document:
                queries = [
                    pseudo_query(title or "", generator)
                    for title in batch.column("title").to_pylist()
                    for _ in range(settings.per_document)
                ]
                repeated = np.repeat(np.arange(len(batch)), settings.per_document)
                _insert(join, "pseudo", pa.array(queries, pa.string()), country.take(repeated), ids.take(repeated))
            with documents_named(documents, batch):
                yield tower.as_inputs(batch)

    return _store(folder, tower, inputs())


def pseudo_query(title: str, generator: random.Random) -> str:
    """One to five words of a title in their order; of a title without spaces, two to six neighbouring characters."""
    words = title.split()
    if len(words) == 1:
        length = min(len(words[0]), generator.randint(2, 6))
        start = generator.randint(0, len(words[0]) - length)
        return words[0][start : start + length]
    positions = generator.sample(range(len(words)), min(len(words), generator.randint(1, 5)))
    return " ".join(words[position] for position in sorted(positions))


def _store_queries(folder: Path, tower: Tower, positives: Table | None, join: duckdb.DuckDBPyConnection) -> TowerRows:
    """Stores the distinct queries; creates the tables `positives`, `texts` (as typed) and `normal` (normalised)."""
    join.execute("""
        CREATE SEQUENCE positions;
        CREATE TABLE positives (
            query VARCHAR, country VARCHAR, document_id VARCHAR, weight DOUBLE, pseudo BOOLEAN DEFAULT false,
            position BIGINT DEFAULT nextval('positions'))""")
    columns = ("query", "country", "document_id", "weight")
    for batch in positives.batches() if positives else ():
        _insert(join, f"positives ({', '.join(columns)})", *(batch.column(name) for name in columns))
    join.execute(
        "INSERT INTO positives (query, country, document_id, pseudo) SELECT *, true FROM pseudo WHERE query <> ''"
    )
    join.execute("""
        CREATE TABLE texts AS
        SELECT (row_number() OVER (ORDER BY query, country) - 1)::INTEGER AS query, query AS text, country
        FROM (SELECT DISTINCT query, country FROM positives WHERE query IS NOT NULL)""")
    join.execute("CREATE TABLE normal (query INTEGER, text BLOB)")

    def inputs() -> Iterator[dict[str, tf.Tensor]]:
        for batch in join.cursor().sql("SELECT * FROM texts ORDER BY query").to_arrow_reader(4_096):
            text = batch.column("text").to_pylist()
            _insert(join, "normal", batch.column("query"), normalise(tf.constant(text)).numpy())
            yield tower.as_inputs({"query": text, "country": batch.column("country")})

    return _store(folder, tower, inputs())


def _store_teacher(path: Path, teacher: Teacher, config: Config, join: duckdb.DuckDBPyConnection) -> RowReader:
    """Stores the teacher embeddings of the rows of `texts`."""
    total = join.execute("SELECT count(*) FROM texts").fetchall()[0][0]
    batches = join.sql("SELECT text AS query, country FROM texts ORDER BY query").to_arrow_reader(4_096)
    writer = RowWriter(path)
    for batch in track(batches, "computing teacher embeddings", -(-total // 4_096)):
        vectors = teacher({name: batch.column(name).to_pylist() for name in ("query", "country")})
        writer.append(vectors.astype(np.float32)[:, np.newaxis])
    writer.close()
    rows = RowReader(path, np.float32, config.dimension)
    taught = int(np.count_nonzero(rows.lengths(np.arange(total))))
    if not taught:
        raise InputError(
            f"distillation.teacher: {config.distillation.teacher} has an embedding for none of the {total:,} queries: "
            "give a table with the queries of the positives"
        )
    if taught < total:
        console.print(f"{total - taught:,} of {total:,} queries have no teacher embedding")
    return rows


def _store(folder: Path, tower: Tower, inputs: Iterator[dict[str, tf.Tensor]]) -> TowerRows:
    """`store_rows` of generated inputs; an `InputError` of the generator is raised as it is."""
    refused: list[InputError] = []

    def generate() -> Iterator[dict[str, tf.Tensor]]:
        try:
            yield from inputs
        except InputError as error:  # tf.data would turn it into an error of its own
            refused.append(error)

    dataset = tf.data.Dataset.from_generator(generate, output_signature=tower.signature())
    rows = store_rows(folder, tower, dataset)
    if refused:
        raise refused[0]
    return rows


def _insert(join: duckdb.DuckDBPyConnection, table: str, *columns: Any) -> None:
    join.register("inserted", pa.table(list(columns), [f"column{number}" for number in range(len(columns))]))
    join.execute(f"INSERT INTO {table} SELECT * FROM inserted")


def _normalised(column: pa.Array) -> list[str]:
    texts = normalise(tf.constant(pc.fill_null(column, "").to_pylist())).numpy()
    return [text.decode() for text in texts]


def _save(path: Path, join: duckdb.DuckDBPyConnection, sql: str, fields: list[tuple[str, str]]) -> np.ndarray:
    """Streams the rows of a query to a file and maps it as a record array."""
    kind = np.dtype(fields)
    with path.open("wb") as file:
        for batch in join.sql(sql).to_arrow_reader(65_536):
            rows = np.empty(len(batch), kind)
            for name, column in zip(kind.names or (), batch.columns, strict=True):
                rows[name] = column.to_numpy(zero_copy_only=False)
            file.write(rows.tobytes())
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.empty(0, kind)
