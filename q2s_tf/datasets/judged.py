"""Rated pairs of one's own, without a log: which of them train, which choose the epoch, which only measure."""

import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.cli import console
from q2s_tf.datasets import tables
from q2s_tf.errors import InputError
from q2s_tf.tables import Table

PARTS = {0: "validation", 1: "test"}
"""Of ten queries, by a hash of the text, one validates, one tests, and the others train."""


def split_judgements(judgements: Path, out: Path, relevant_at: float = 1.0) -> dict[str, int]:
    """Splits judgements by query, and makes positives of the relevant pairs of the queries that train.

    A query is wholly in one part, whatever its case, on every machine, and stays there when the table grows.

    Args:
        judgements: `query, document_id, relevance`, optional `country`; Parquet or TSV. Without `relevance` every
            pair counts as right.
        out: folder for `positives.parquet`, `judgements_validation.parquet` and `judgements_test.parquet`. Positives
            have no time. Where pairs are not rated, neither are those of the two other parts: training and evaluation
            then set sampled documents against them.
        relevant_at: the least relevance of a positive.

    Returns:
        The rows of each file.

    Raises:
        InputError: A table that breaks its contract; a part without a relevant pair, or, where pairs are rated, one of
            the two others without an irrelevant one.
    """
    table = Table(judgements, "judgements", ["query", "document_id"], ["country", "relevance"])
    rated = "relevance" in table.columns
    if not rated:
        console.print(f"{judgements} has no column relevance: every pair counts as right")
    rows = _whole(table, rated)
    parts = pa.array([_part(query) for query in rows["query"].to_pylist()], pa.string())
    relevant = pc.greater_equal(rows["relevance"], relevant_at) if rated else pa.array([True] * len(rows))
    _check(judgements, parts, relevant, rated, relevant_at)
    columns = ["query", "country", "document_id"]
    training = rows.filter(pc.and_(pc.equal(parts, "training"), relevant)).select(columns)
    written = {"positives": _timed(training.group_by(columns, use_threads=False).aggregate([]))}
    for part in PARTS.values():
        kept = rows.filter(pc.equal(parts, part))
        written[f"judgements_{part}"] = kept if rated else _timed(kept.select(columns))
    return tables.write(out, written)


def _part(query: str) -> str:
    return PARTS.get(zlib.crc32(query.strip().casefold().encode()) % 10, "training")


def _whole(table: Table, rated: bool) -> pa.Table:
    """The rows that have what they need; how many have not is said on the console."""
    rows = table.read()
    whole = pc.and_(pc.is_valid(rows["query"]), pc.is_valid(rows["document_id"]))
    if rated:
        whole = pc.and_(whole, pc.fill_null(pc.is_finite(rows["relevance"]), False))
    kept = rows.filter(whole)
    if left_out := len(rows) - len(kept):
        console.print(f"left out {left_out:,} of {len(rows):,} judgements: an empty cell")
    return kept


def _check(judgements: Path, parts: pa.Array, relevant: pa.Array, rated: bool, relevant_at: float) -> None:
    for part in ("training", *PARTS.values()):
        chosen = pc.filter(relevant, pc.equal(parts, part))
        number = pc.sum(chosen).as_py() or 0
        if not number or (rated and part != "training" and number == len(chosen)):
            rule = f"{number} of its {len(chosen)} pairs are relevant" + (f", from {relevant_at:g} on" if rated else "")
            needed = "relevant and irrelevant pairs" if rated and part != "training" else "relevant pairs"
            hint = ", choose another --relevant-at, or leave relevance out if every pair is right" if rated else ""
            raise InputError(f"judgements {judgements}: {part} needs {needed}; {rule}: bring more queries{hint}")


def _timed(rows: pa.Table) -> pa.Table:
    """Rows as the positives table wants them, with a time that nobody knows."""
    return rows.append_column("timestamp", pa.nulls(len(rows), pa.timestamp("us", "UTC")))
