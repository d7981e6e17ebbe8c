"""Files that are there whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from q2s_tf.errors import InputError
from q2s_tf.search_log.report import Report

SUFFIXES = (".parquet", ".tsv", ".tsv.gz")


def check_split(out: Path, validation_days: int, validation_out: str | Path | None) -> Path | None:
    """The path of the validation positives, or None when everything goes to ``out``.

    Raises:
        InputError: An output is of no known format, only one half of the split is given, or the paths clash.
    """
    if bool(validation_days) != (validation_out is not None) or validation_days < 0:
        raise InputError(
            "a time split needs --validation-days (1 or more) and --validation-out together; "
            f"got {validation_days} and {validation_out}"
        )
    validation = None if validation_out is None else Path(validation_out)
    for path in (out, validation):
        if path is not None and not path.name.endswith(SUFFIXES):
            raise InputError(f"{path}: the output must end in one of {', '.join(SUFFIXES)}")
        if path is not None and path.is_dir():
            raise InputError(f"{path}: is a folder; name a file in it")
    if validation is not None and validation.absolute() == out.absolute():
        raise InputError(f"{out}: --out and --validation-out must be two files")
    return validation


def report_path(out: Path) -> Path:
    """Where the report on ``out`` goes: ``positives.parquet`` -> ``positives.report.json``."""
    suffix = next(suffix for suffix in SUFFIXES if out.name.endswith(suffix))
    return out.with_name(out.name.removesuffix(suffix) + ".report.json")


def write(duckdb: Any, scratch: Path, out: Path, validation: Path | None, report: Report) -> Report:
    """Sorts, splits and writes the positives settled in ``scratch``, and the completed report.

    With a split, the validation days are the last ``settings["validation_days"]`` UTC days up to the latest positive,
    and a positive belongs to the day of its first search: no pair is on both sides.
    """
    settled = scratch / "positives.parquet"
    found = duckdb.read_parquet(str(settled / "*.parquet" if settled.is_dir() else settled))
    found = found.mutate(timestamp=found.timestamp.cast("timestamp('UTC')"))
    found = found.select("query", "country", "document_id", "timestamp", "weight")
    totals = found.agg(rows=found.count(), weight=found.weight.sum(), latest=found.timestamp.max())
    total = totals.to_pyarrow().to_pylist()[0]
    parts = {out: found}
    held_out = 0
    if validation is not None:
        latest = total["latest"] or datetime.now(UTC)
        last_day = datetime(latest.year, latest.month, latest.day, tzinfo=UTC)
        late = found.timestamp >= ibis.literal(last_day - timedelta(days=report.settings["validation_days"] - 1))
        parts = {validation: found.filter(late), out: found.filter(~late)}
        held_out = parts[validation].count().to_pyarrow().as_py()
    report = replace(report, positives=total["rows"], weight=total["weight"] or 0, validation=held_out)
    with ExitStack() as stack:
        finished = {path: stack.enter_context(_partial(path)) for path in (report_path(out), *parts)}
        finished[report_path(out)].write_text(json.dumps(report.as_json(), indent=2) + "\n")
        for path, rows in parts.items():
            _write_table(rows.order_by("timestamp", "query", "country", "document_id"), finished[path], path.suffixes)
        for path, partial in finished.items():  # the output itself is last: once it is there, all of it is
            os.replace(partial, path)
    return report


def _write_table(rows: ir.Table, path: Path, suffixes: list[str]) -> None:
    if suffixes[-1] == ".parquet":
        rows.to_parquet(path, compression="zstd")
        return
    # TSV here is never quoted, so white space that would break a line becomes a plain space.
    texts = {name: rows[name].re_replace(r"[\t\r\n]", " ") for name in ("query", "country", "document_id")}
    rows = rows.mutate(**texts, timestamp=rows.timestamp.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    compression = "gzip" if suffixes[-1] == ".gz" else "none"
    rows.to_csv(path, delim="\t", quote="", escape="", compression=compression)


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; what is still there at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)
