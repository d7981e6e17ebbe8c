"""Splitting rated pairs by query into positives for training, and judgements for validation and test."""

import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.cli import console
from q2s_tf.datasets.published_files import write_tables
from q2s_tf.errors import InputError
from q2s_tf.tables import TYPES, Table

PARTS = {0: "validation", 1: "test"}
"""By a hash of its text, one query in ten is used for validation, one for test and the others for training."""


def split_judgements(judgements: Path, out: Path, relevant_at: float = 1.0) -> dict[str, int]:
    """Split judgements by query, and make positives of the relevant pairs of the training queries.

    All rows of a query are in one part, whatever its case, on every machine, also after the table grows.

    Args:
        judgements: A table with `query, document_id`, optional `country, relevance`. Without `relevance`, every pair
            counts as relevant.
        out: The folder for `positives.parquet`, `judgements_validation.parquet` and `judgements_test.parquet`. The
            timestamps of positives are missing. If pairs are not rated, the two judgement tables are positives too:
            training and evaluation then compare them with sampled documents.
        relevant_at: The lowest relevance of a positive.

    Returns:
        The number of rows of each file.

    Raises:
        InputError: A table that breaks its contract; a part without a relevant pair; or, if pairs are rated, a
            judgement part without an irrelevant pair.
    """
    table = Table(judgements, "judgements", ["query", "document_id"], ["country", "relevance"])
    rated = "relevance" in table.columns
    rows = table.read()
    complete = pc.and_(pc.is_valid(rows["query"]), pc.is_valid(rows["document_id"]))
    if rated:
        complete = pc.and_(complete, pc.fill_null(pc.is_finite(rows["relevance"]), False))
    else:
        console.print(f"{judgements} has no column relevance: every pair counts as relevant")
    if incomplete := len(rows) - pc.sum(complete).as_py():
        console.print(f"left out {incomplete:,} of {len(rows):,} judgements: a cell is empty")
    rows = rows.filter(complete)
    hashes = (zlib.crc32(query.strip().casefold().encode()) for query in rows["query"].to_pylist())
    parts = pa.array([PARTS.get(number % 10, "training") for number in hashes], pa.string())
    relevant = pc.greater_equal(rows["relevance"], relevant_at) if rated else pa.array([True] * len(rows))
    _check(judgements, parts, relevant, rated, relevant_at)
    columns = ["query", "country", "document_id"]
    training = rows.filter(pc.and_(pc.equal(parts, "training"), relevant)).select(columns)
    written = {"positives": _as_positives(training.group_by(columns, use_threads=False).aggregate([]))}
    for part in PARTS.values():
        kept = rows.filter(pc.equal(parts, part))
        written[f"judgements_{part}"] = kept if rated else _as_positives(kept.select(columns))
    return write_tables(out, written)


def _check(judgements: Path, parts: pa.Array, relevant: pa.Array, rated: bool, relevant_at: float) -> None:
    for part in ("training", *PARTS.values()):
        chosen = pc.filter(relevant, pc.equal(parts, part))
        number = pc.sum(chosen).as_py() or 0
        if not number or (rated and part != "training" and number == len(chosen)):
            rule = f"{number} of its {len(chosen)} pairs are relevant" + (f", from {relevant_at:g} on" if rated else "")
            needed = "relevant and irrelevant pairs" if rated and part != "training" else "relevant pairs"
            hint = ", choose another --relevant-at, or drop the column if every pair is relevant" if rated else ""
            raise InputError(f"judgements {judgements}: {part} needs {needed}; {rule}: add queries{hint}")


def _as_positives(rows: pa.Table) -> pa.Table:
    """Add the column that marks a table of positives; its times are unknown."""
    return rows.append_column("timestamp", pa.nulls(len(rows), TYPES["timestamp"]))
