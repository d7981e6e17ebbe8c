"""Home Depot Product Search Relevance: titles and human grades from 1 to 3, in English."""

import zlib
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.datasets import tables

COUNTRY, LANGUAGE = "US", "en"

RELEVANT = 2.33
"""Grades from here on make a training positive (the grades are thirds: 2.33, 2.67 and 3)."""

TIME = datetime(2016, 1, 1, tzinfo=UTC)
"""The timestamp of every positive. The set has no clicks and no times; this is about when it was published."""


VALIDATION_EVERY = 20
"""One training query in so many only validates."""


def convert(path: Path, out: Path, validation_every: int = VALIDATION_EVERY) -> dict[str, int]:
    """Reads ``products.tsv`` and every ``judgements_PART.tsv`` (plain or ``.gz``) of the folder ``path``.

    Writes ``documents``, ``judgements_PART`` and, from the part ``train``, ``judgements_validation``, all rows of one
    query in ``validation_every`` (by a hash of it), and ``positives``: the other queries' pairs graded 2.33 or more,
    of weight 1, in the country US, all at the time `TIME`.

    Raises:
        InputError: See `q2s_tf.datasets.import_dataset`.
    """
    products = tables.read_tsv(tables.locate(path, "products.tsv"), ["product_id", "title"])
    products = tables.unique(products, "product_id").rename_columns(["document_id", "title"])
    documents = products.append_column("language", _constant(LANGUAGE, products))
    written = {"documents": documents.append_column("country", _constant(COUNTRY, products))}
    for part, file in tables.locate_all(path, "judgements").items():
        judgements = judgements_of(file)
        written[f"judgements_{part}"] = judgements
        if part == "train":
            held_out = pa.array([is_validation(query, validation_every) for query in judgements["query"].to_pylist()])
            written["judgements_validation"] = judgements.filter(held_out)
            written["positives"] = positives_of(judgements.filter(pc.invert(held_out)))
    return tables.write(out, written)


def is_validation(query: str, every: int = VALIDATION_EVERY) -> bool:
    """Whether a training query is the one in ``every`` that only validates: the same on every machine."""
    return zlib.crc32(query.encode()) % every == 0


def judgements_of(file: Path) -> pa.Table:
    """``query, country, document_id, relevance`` of one file ``query, product_id, relevance``."""
    rows = tables.read_tsv(file, ["query", "product_id", "relevance"])
    return pa.table({
        "query": rows["query"], "country": _constant(COUNTRY, rows), "document_id": rows["product_id"],
        "relevance": tables.numbers(rows["relevance"], file),
    })  # fmt: skip


def positives_of(judgements: pa.Table) -> pa.Table:
    """``query, country, document_id, timestamp, weight`` of the judgements of 2.33 or more."""
    # Grades are two decimals in float32: compare half a step below, not at the limit.
    rows = judgements.filter(pc.greater(judgements["relevance"], RELEVANT - 0.005)).drop_columns("relevance")
    rows = rows.group_by(rows.column_names, use_threads=False).aggregate([])
    times = pa.array([TIME] * len(rows), pa.timestamp("us", "UTC"))
    return rows.append_column("timestamp", times).append_column("weight", pa.array([1] * len(rows), pa.int64()))


def _constant(value: str, like: pa.Table) -> pa.Array:
    return pa.array([value] * len(like), pa.string())
