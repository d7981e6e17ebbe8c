"""What training needs to know about a set of positives: how often, how long, how popular, what else is right."""

from collections.abc import Sequence
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from q2s_tf.errors import InputError
from q2s_tf.search_log import sources
from q2s_tf.search_log.backends import hide_progress
from q2s_tf.search_log.events import text, with_document_id

KEYS = ("query", "country", "document_id")


def read_positives(path: str | Path) -> ir.Table:
    """The positives in a file, folder or glob (Parquet, CSV, TSV, JSON lines), lazily, on a DuckDB of its own.

    Columns ``query, country, document_id`` (text) and ``weight`` (whole number; 1 where the file has none).

    Raises:
        InputError: Nothing can be read there, or a column is missing.
    """
    connection = ibis.duckdb.connect()
    hide_progress(connection)
    table = with_document_id(sources.read(connection, sources.find(path), (*KEYS, "product_id", "weight")))
    missing = [name for name in KEYS if name not in table.columns]
    if missing:
        raise InputError(
            f"{path}: positives need the columns {', '.join(KEYS)}; {', '.join(missing)} missing, "
            f"found {', '.join(table.columns)}"
        )
    weight = table.weight.cast("int64").fill_null(1) if "weight" in table.columns else ibis.literal(1, "int64")
    return table.select(**{name: text(table[name]) for name in KEYS}, weight=weight)


def query_vocabulary(positives: ir.Table, size: int = 45_000) -> pa.Table:
    """The most frequent queries, whatever their country: the classes of a classification head.

    Returns:
        ``query``, ``count`` (sum of the weights), the most frequent first, equal counts in the order of the alphabet;
        at most ``size`` rows. The paper takes 45,000.
    """
    counts = positives.group_by("query").agg(count=positives.weight.sum())
    return counts.order_by(ibis.desc("count"), "query").limit(size).to_pyarrow()


def query_length(positives: ir.Table, share: float = 0.99) -> int:
    """The length in characters that at least ``share`` of the queries do not exceed; each counts by its weight.

    The smallest such length (the nearest-rank percentile), 0 when there are no positives. The paper cuts queries at
    the 99th percentile.

    Raises:
        InputError: ``share`` is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise InputError(f"share must be above 0 and at most 1; got {share}")
    lengths = positives.group_by(length=positives.query.length()).agg(weight=positives.weight.sum())
    rows = lengths.order_by("length").to_pyarrow().to_pylist()
    total, seen = sum(row["weight"] for row in rows), 0
    for row in rows:
        seen += row["weight"]
        if seen >= share * total:
            return row["length"]
    return 0


def document_popularity(positives: ir.Table) -> pa.Table:
    """How often each document is a positive: p(d) for the logQ correction of in-batch negatives.

    Returns:
        ``document_id``, ``count`` (sum of the weights) and ``probability`` = count / sum of all counts, the chance
        that a training example drawn by weight holds the document; the most popular first.
    """
    counts = positives.group_by("document_id").agg(count=positives.weight.sum())
    shares = counts.mutate(probability=counts["count"] / counts["count"].sum().over(ibis.window()))
    return shares.order_by(ibis.desc("count"), "document_id").to_pyarrow()


def known_positives(positives: ir.Table, by: Sequence[str] = ("query", "country")) -> pa.Table:
    """Everything that is right for a query, so that none of it is taken for a negative.

    Returns:
        The columns ``by`` and ``document_ids``, a sorted list without repeats; one row for each value of ``by``.
    """
    pairs = positives.select(*by, "document_id").distinct()
    lists = pairs.group_by(*by).agg(document_ids=pairs.document_id.collect(order_by="document_id"))
    return lists.order_by(*by).to_pyarrow()
