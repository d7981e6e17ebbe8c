"""From a log on disk to positives on disk: read, clean, count, run the funnel, write."""

import fcntl
import json
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ibis
import ibis.expr.types as ir

from q2s_tf.errors import InputError
from q2s_tf.files import atomic_write, find_files
from q2s_tf.search_log import chains, cleaning, engines, event_columns
from q2s_tf.search_log.cleaning import Report

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
        InputError: An argument or the log cannot be used, or `strict` is true and a row would be left out. Then
            nothing has been written.
    """
    out, validation = Path(out), None if validation_out is None else Path(validation_out)
    now = now or datetime.now(UTC)
    now = now.astimezone(UTC) if now.tzinfo else now.replace(tzinfo=UTC)
    log_files = find_files(log, "events")
    document_files = find_files(documents, "documents") if documents else None
    inputs = log_files.paths + (document_files.paths if document_files else ())
    _check_outputs(out, validation, validation_days, inputs)
    with _workspace(out) as scratch, ExitStack() as stack:
        duckdb = stack.enter_context(engines.duckdb(memory, scratch))
        connection = duckdb if backend == "duckdb" else stack.enter_context(engines.spark(memory, scratch))
        materialise = partial(engines.materialise, connection, scratch)
        with engines.readable(f"events {log}"):
            announce("reading and cleaning the log")
            raw = engines.read(connection, log_files, "events", (*event_columns.COLUMNS, "product_id"))
            events = event_columns.normalise(raw, f"events {log}")
            labelled = materialise("log", cleaning.label(events, now, max_query_length))
            catalogue = None
            if document_files:
                table = engines.read(connection, document_files, "documents", ("document_id", "product_id"))
                catalogue = materialise("catalogue", event_columns.document_ids(table, f"documents {documents}"))
            announce("finding replays, bots and clicks without a search")
            clean, report = cleaning.clean(labelled, window, max_searches_per_hour, catalogue, materialise)
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
        return _write(duckdb, scratch / "positives.parquet", out, validation, report)


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
    scratch = out.parent / f".{out.name}.partial"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        lock = (scratch / "lock").open("w")
    except (NotADirectoryError, FileExistsError, PermissionError) as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out}: another process is writing it; wait for it or choose another name") from None
        for stale in scratch.iterdir():
            if stale.name != "lock":
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _write(duckdb: Any, positives: Path, out: Path, validation: Path | None, report: Report) -> Report:
    """Sort, split and write the computed positives, and complete and write the report.

    The validation days are the last `settings["validation_days"]` UTC days up to the latest positive. A positive
    belongs to the day of its first search, so that no pair is in both files.
    """
    rows = duckdb.read_parquet(str(positives / "*.parquet" if positives.is_dir() else positives))
    rows = rows.mutate(timestamp=rows.timestamp.cast("timestamp('UTC')"))
    rows = rows.select("query", "country", "document_id", "timestamp", "weight")
    totals = rows.agg(rows=rows.count(), weight=rows.weight.sum(), latest=rows.timestamp.max())
    total = totals.to_pyarrow().to_pylist()[0]
    report = replace(report, positives=total["rows"], weight=total["weight"] or 0)
    parts = {out: rows}
    if validation is not None:
        latest = total["latest"] or datetime.now(UTC)
        last_day = datetime(latest.year, latest.month, latest.day, tzinfo=UTC)
        late = rows.timestamp >= ibis.literal(last_day - timedelta(days=report.settings["validation_days"] - 1))
        parts = {out: rows.filter(~late), validation: rows.filter(late)}
        report = replace(report, validation=parts[validation].count().to_pyarrow().as_py())
    with ExitStack() as stack:  # it puts the files in place in reverse order: `out` is last and so implies the others
        for path, part in parts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
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
