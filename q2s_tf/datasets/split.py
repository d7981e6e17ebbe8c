"""Splitting rated pairs by query into positives for training, and judgements for validation and test."""

import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.cli import console
from q2s_tf.datasets.published import write_tables
from q2s_tf.errors import InputError
from q2s_tf.files import make_folder
from q2s_tf.tables import TYPES, check_judgements, open_judgements

SHARES = {"validation": 0.1, "test": 0.1}
"""Shares of the queries; the others are for training."""
FEW_QUERIES = 50
"""With fewer queries, a part cannot show differences of the usual size."""
COLUMNS = ["query", "country", "document_id"]


def split_judgements(
    judgements: Path, out: Path, relevant_at: float | None = None, overwrite: bool = False
) -> dict[str, int]:
    """Split judgements by query, and make positives of the relevant pairs of the training queries.

    All rows of a query are in one part, whatever its case. The order of the queries is that of a hash, so that the same
    table is split in the same way on every machine; a part has its share of them exactly. Rows without a query or a
    document are left out, and so are repeated rows; both are counted on the console.

    Args:
        judgements: A table with `query, document_id`, optional `country, relevance`. Without `relevance`, every pair
            counts as relevant.
        out: The folder for `positives.parquet`, `judgements_validation.parquet` and `judgements_test.parquet`. The
            timestamps of positives are missing. If pairs are not rated, the two judgement tables are positives too:
            training and evaluation then compare them with sampled documents.
        relevant_at: The lowest relevance of a positive; 1 by default. If it is given, pairs must be rated.
        overwrite: Replace an earlier split in `out`.

    Returns:
        The number of rows of each file.

    Raises:
        InputError: A table that breaks its contract; a part without a relevant pair; if pairs are rated, a judgement
            part without an irrelevant pair; an earlier split in `out`.
    """
    earlier = [name for name in ("positives", *(f"judgements_{part}" for part in SHARES))]
    if not overwrite and (found := [name for name in earlier if (out / f"{name}.parquet").exists()]):
        raise InputError(f"{out}: has an earlier {found[0]}.parquet: give another --out, or --overwrite")
    table = open_judgements(judgements)
    rated = "relevance" in table.columns or (relevant_at is not None and check_judgements(table, relevant_at))
    relevant_at = 1.0 if relevant_at is None else relevant_at
    if not rated:
        console.print(f"{judgements} has no column relevance: every pair counts as relevant")
    rows = _usable(table.read().select(COLUMNS + ["relevance"] * rated))
    keys = [query.strip().casefold() for query in rows["query"].to_pylist()]
    queries = sorted(set(keys), key=lambda query: (zlib.crc32(query.encode()), query))
    part_of, start = dict.fromkeys(queries, "training"), 0
    for part, share in SHARES.items():
        end = start + max(1, round(share * len(queries)))
        part_of |= dict.fromkeys(queries[start:end], part)
        start = end
    parts = pa.array([part_of[key] for key in keys], pa.string())
    relevant = pc.greater_equal(rows["relevance"], relevant_at) if rated else pa.array([True] * len(rows))
    for part in ("training", *SHARES):
        _check_part(judgements, part, pc.filter(relevant, pc.equal(parts, part)), rated, relevant_at)
    counts = {part: list(part_of.values()).count(part) for part in ("training", *SHARES)}
    console.print(f"{len(queries):,} queries: " + ", ".join(f"{count:,} for {part}" for part, count in counts.items()))
    for part in SHARES:
        if counts[part] < FEW_QUERIES:
            console.print(f"warning: {part} has {counts[part]} queries, too few to decide between two models")
    training = rows.filter(pc.and_(pc.equal(parts, "training"), relevant)).select(COLUMNS)
    written = {"positives": _as_positives(training)}
    for part in SHARES:
        kept = rows.filter(pc.equal(parts, part))
        written[f"judgements_{part}"] = kept if rated else _as_positives(kept)
    make_folder(out)
    return write_tables(out, written)


def _usable(rows: pa.Table) -> pa.Table:
    """The complete rows, each once; says how many are left out."""
    complete = pc.is_valid(rows["query"])
    for column in set(rows.column_names) - {"query", "country"}:
        complete = pc.and_(complete, pc.is_valid(rows[column]))
    kept = rows.filter(complete)
    distinct = kept.group_by(rows.column_names, use_threads=False).aggregate([])
    for number, reason in ((len(rows) - len(kept), "a cell is empty"), (len(kept) - len(distinct), "repeated")):
        if number:
            console.print(f"left out {number:,} of {len(rows):,} judgements: {reason}")
    return distinct


def _check_part(judgements: Path, part: str, relevant: pa.Array, rated: bool, relevant_at: float) -> None:
    number, both = pc.sum(relevant).as_py() or 0, rated and part != "training"
    if not number or (both and number == len(relevant)):
        needed = "relevant and irrelevant pairs" if both else "relevant pairs"
        rule = f"{number} of its {len(relevant)} pairs are relevant" + (f", from {relevant_at:g} on" if rated else "")
        hint = ", choose another --relevant-at, or drop the column if every pair is relevant" if rated else ""
        raise InputError(f"judgements {judgements}: {part} needs {needed}; {rule}: add queries{hint}")


def _as_positives(rows: pa.Table) -> pa.Table:
    """Add the column that marks a table of positives; its times are unknown."""
    return rows.append_column("timestamp", pa.nulls(len(rows), TYPES["timestamp"]))
