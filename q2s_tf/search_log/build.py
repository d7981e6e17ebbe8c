"""From a log on disk to positives on disk: read, clean, count, run the funnel, write."""

import json
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import ibis
import ibis.expr.types as ir
import pyarrow.parquet as pq

from q2s_tf.errors import InputError
from q2s_tf.files import atomic_write, exclusive, make_folder
from q2s_tf.search_log import chains, cleaning, engines
from q2s_tf.search_log.cleaning import Report
from q2s_tf.tables import Table, open_events

Backend = Literal["duckdb", "pyspark"]

SUFFIXES = (".tsv.gz", ".tsv", ".parquet")
"""The formats of positives, by the end of the file name."""


def build_positives(
    log: str | Path,
    out: str | Path,
    *,
    backend: Backend = "duckdb",
    window: timedelta = chains.DAY,
    require: chains.Stage = "reply",
    documents: str | Path | None = None,
    strict: bool = False,
    allow_empty: bool = False,
    validation_days: int = 0,
    validation_out: str | Path | None = None,
    memory: str = "2GB",
    max_searches_per_hour: int = 120,
    max_query_length: int = 200,
    now: datetime | None = None,
    announce: Callable[[str], None] = lambda step: None,
) -> Report:
    """Write the positives of a search log, and a report of the rows that were left out.

    `chains.positives` defines a positive; `cleaning` lists the rules by which rows are left out.

    Args:
        log: A file, folder, glob or Hive-partitioned tree: Parquet, CSV, TSV or JSON lines; text may be gzipped.
        out: The file to write: Parquet, or TSV if it ends in `.tsv` or `.tsv.gz`, with the columns `query, country,
            document_id, timestamp, weight`. The report has the same name with the suffix `.report.json`.
        backend: `duckdb` or `pyspark` (which needs the extra `spark` and Java).
        window: Longest time from a search to its last step, end included.
        require: The last step that must have happened.
        documents: The catalogue; events on documents outside it are left out.
        strict: Raise an error if a row would be left out.
        allow_empty: Write empty tables if there is no positive, which is an error otherwise.
        validation_days: Write the positives of the last days to `validation_out` instead of `out`.
        validation_out: The file for the validation positives.
        memory: The memory of the engine (`2GB`); it spills the rest to disk, next to `out`.
        max_searches_per_hour: Users with more searches within 60 minutes are bots.
        max_query_length: Longest query, in characters.
        now: Later events are in the future; UTC if it has no zone. Default: the current time.
        announce: Called with the name of each step when it begins.

    Returns:
        The report that was written.

    Raises:
        InputError: An argument or the log cannot be used, a row would be left out and `strict` is true, or there is no
            positive and `allow_empty` is false. Then nothing has been written.
    """
    out, validation = Path(out), None if validation_out is None else Path(validation_out)
    now = now or datetime.now(UTC)
    now = now.astimezone(UTC) if now.tzinfo else now.replace(tzinfo=UTC)
    events = open_events(Path(log))
    catalogue = Table(Path(documents), "documents", ["document_id"]) if documents else None
    _check_outputs(out, validation, validation_days, events.paths + (catalogue.paths if catalogue else []))
    with _workspace(out) as scratch, engines.resources_checked(), ExitStack() as stack:
        duckdb = stack.enter_context(engines.duckdb(memory, scratch))
        connection = duckdb if backend == "duckdb" else stack.enter_context(engines.spark(memory, scratch))

        def materialise(name: str, table: ir.Table) -> ir.Table:
            return engines.materialise(connection, scratch, name, table)

        announce("reading and cleaning the log")
        raw = _stage(connection, events, scratch / "events.parquet")
        raw = raw.mutate(timestamp=raw.timestamp.cast("timestamp"))
        labelled = materialise("log", cleaning.label(raw, now, max_query_length))
        listed = _stage(connection, catalogue, scratch / "documents.parquet").distinct() if catalogue else None
        announce("finding replays, bots and clicks without a search")
        clean, report = cleaning.clean(labelled, window, max_searches_per_hour, listed, materialise)
        if strict and any(report.faults.values()):
            counts = ", ".join(f"{rule}: {rows}" for rule, rows in report.faults.items() if rows)
            raise InputError(f"events {log}: strict, and rows cannot be used ({counts}); fix them or drop --strict")
        announce("running the funnel")
        chains.positives(clean, window, require).to_parquet(scratch / "positives.parquet")
        announce("writing the positives")
        report.settings.update({
            "log": str(log), "backend": backend, "window_seconds": int(window.total_seconds()), "require": require,
            "documents": str(documents) if documents else None, "now": now.isoformat(),
            "max_searches_per_hour": max_searches_per_hour, "max_query_length": max_query_length,
            "validation_days": validation_days,
        })  # fmt: skip
        rows, report = _summarise(duckdb, scratch / "positives.parquet", report)
        if not report.positives and not allow_empty:
            raise InputError(_explain_empty(report, labelled, listed))
        return _write(rows, out, validation, report)


def _stage(connection: Any, table: Table, path: Path) -> ir.Table:
    """The rows of a table of files as a table of an engine: one Parquet file, which every engine reads alike."""
    with pq.ParquetWriter(path, table.schema, compression="lz4") as writer:
        for batch in table.batches(65_536):
            writer.write_batch(batch)
    return connection.read_parquet(str(path))


def _explain_empty(report: Report, labelled: ir.Table, listed: ir.Table | None) -> str:
    """Why there is no positive: what was read and left out, and an id of each side if none is in both."""
    counts = ", ".join(f"{name}: {rows}" for name, rows in (report.events | report.faults).items() if rows) or "no rows"
    message = f"events {report.settings['log']}: no positive was found ({counts})"
    if listed is not None and report.faults["unlisted document"]:
        sides = {"the log": labelled.filter(labelled.event != "search"), report.settings["documents"]: listed}
        ids = [
            f"{side} has document_id {side_rows.document_id.min().to_pyarrow().as_py()!r}"
            for side, side_rows in sides.items()
        ]
        message += f"; {' and '.join(ids)}: are they ids of one catalogue?"
    return message + " Use --allow-empty to write an empty table"


def _report_path(out: Path) -> Path:
    suffix = next(suffix for suffix in SUFFIXES if out.name.endswith(suffix))
    return out.with_name(out.name.removesuffix(suffix) + ".report.json")


def _check_outputs(out: Path, validation: Path | None, validation_days: int, inputs: Collection[Path]) -> None:
    if bool(validation_days) != (validation is not None) or validation_days < 0:
        raise InputError(
            "a time split needs --validation-days (1 or more) and --validation-out together; "
            f"got {validation_days} and {validation}"
        )
    outputs = [out] if validation is None else [out, validation]
    for path in outputs:
        if not path.name.endswith(SUFFIXES):
            raise InputError(f"{path}: the output must end in one of {', '.join(sorted(SUFFIXES))}")
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a file in it")
    if validation is not None and validation.absolute() == out.absolute():
        raise InputError(f"{out}: --out and --validation-out must be two files")
    for path in (*outputs, _report_path(out)):
        if path.resolve() in {file.resolve() for file in inputs}:
            raise InputError(f"{path}: is an input and would be overwritten; choose another name for the output")


@contextmanager
def _workspace(out: Path) -> Iterator[Path]:
    """A folder next to `out` for temporary files, which is removed at the end.

    A new run deletes what a killed run left there. A lock keeps two runs from writing the same output.
    """
    scratch = make_folder(out.parent / f".{out.name}.partial")
    message = f"{out}: another process is writing it; wait for it or choose another name"
    with exclusive(scratch / "lock", message):
        for stale in scratch.iterdir():
            if stale.name != "lock":
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _summarise(duckdb: Any, positives: Path, report: Report) -> tuple[ir.Table, Report]:
    """The positives in their final form, and the report with their number and weight."""
    rows = duckdb.read_parquet(str(positives / "*.parquet" if positives.is_dir() else positives))
    rows = rows.mutate(timestamp=rows.timestamp.cast("timestamp('UTC')"))
    rows = rows.select("query", "country", "document_id", "timestamp", "weight")
    totals = rows.agg(positives=rows.count(), weight=rows.weight.sum().coalesce(0)).to_pyarrow().to_pylist()[0]
    return rows, replace(report, **totals)


def _write(rows: ir.Table, out: Path, validation: Path | None, report: Report) -> Report:
    """Sort, split and write the positives, and complete and write the report.

    The validation days are the last `settings["validation_days"]` UTC days up to the latest positive. A positive
    belongs to the day of its first search, so that no pair is in both files.
    """
    parts = {out: rows}
    if validation is not None:
        latest = rows.timestamp.max().to_pyarrow().as_py() or datetime.now(UTC)
        last_day = latest.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        late = rows.timestamp >= ibis.literal(last_day - timedelta(days=report.settings["validation_days"] - 1))
        parts = {out: rows.filter(~late), validation: rows.filter(late)}
        report = replace(report, validation=parts[validation].count().to_pyarrow().as_py())
    with ExitStack() as stack:  # it puts the files in place in reverse order: `out` is last and so implies the others
        for path, part in parts.items():
            make_folder(path.parent)
            part = part.order_by("timestamp", "query", "country", "document_id")
            _write_table(part, stack.enter_context(atomic_write(path)))
        stack.enter_context(atomic_write(_report_path(out))).write_text(json.dumps(asdict(report), indent=2) + "\n")
    return report


def _write_table(rows: ir.Table, path: Path) -> None:
    if path.suffix == ".parquet":
        rows.to_parquet(path, compression="zstd")
        return
    # TSV is not quoted here: white space that would break a line becomes a space.
    texts = {name: rows[name].re_replace(r"[\t\r\n]", " ") for name in ("query", "country", "document_id")}
    rows = rows.mutate(**texts, timestamp=rows.timestamp.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    rows.to_csv(path, delim="\t", quote="", escape="", compression="gzip" if path.suffix == ".gz" else "none")
