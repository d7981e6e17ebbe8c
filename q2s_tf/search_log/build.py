"""The whole way from a log on disk to positives on disk: read, clean, count, run the funnel, write."""

import fcntl
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ibis
import ibis.expr.types as ir

from q2s_tf.errors import InputError
from q2s_tf.search_log import backends, chains, cleaning, events, outputs, sources
from q2s_tf.search_log.report import Report

Backend = Literal["duckdb", "pyspark"]


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
    """Writes the positives of a search log, and beside them a report of what was left out.

    See `chains.positives` for what a positive is, `cleaning` for what is left out.

    Args:
        log: A file, folder, glob or Hive-partitioned tree: Parquet, CSV, TSV or JSON lines, gzipped or not.
        out: The file to write: Parquet, or TSV when it ends in ``.tsv`` or ``.tsv.gz``. Columns ``query, country,
            document_id, timestamp, weight``. The report goes to the same name with the suffix ``.report.json``.
        backend: ``duckdb`` or ``pyspark`` (which needs the extra ``spark`` and Java).
        window: Longest time from a search to its last step, end included.
        require: The last step that must have happened.
        documents: The catalogue; events on documents outside it are left out.
        strict: Whether anything that would be left out is an error instead.
        validation_days: How many of the last days of the positives go to ``validation_out`` instead of ``out``.
        validation_out: See ``validation_days``.
        memory: What the backend may hold in memory (``2GB``); the rest is spilled to disk, beside ``out``.
        max_searches_per_hour: Users who search more often within 60 minutes are bots.
        max_query_length: Longest query, in characters.
        now: Events after it lie in the future; UTC if it has no zone. Default: the current time.
        announce: Called with the name of each step as it begins.

    Returns:
        The report that was written.

    Raises:
        InputError: An argument or the log cannot be used, or ``strict`` and something would be left out. Nothing
            has been written then.
    """
    out = Path(out)
    validation = outputs.check_split(out, validation_days, validation_out)
    now = now or datetime.now(UTC)
    now = now.astimezone(UTC) if now.tzinfo else now.replace(tzinfo=UTC)
    limits = cleaning.Limits(now, max_searches_per_hour, max_query_length)
    source = sources.find(log)
    read = {Path(file).resolve() for file in [*source.files, *(sources.find(documents).files if documents else [])]}
    for path in (out, outputs.report_path(out), *([validation] if validation else [])):
        if path.resolve() in read:
            raise InputError(f"{path}: is read as input, and would be overwritten; choose another name for the output")
    with workspace(out) as scratch, ExitStack() as stack:
        duckdb = stack.enter_context(backends.duckdb(memory, scratch))
        connection = duckdb if backend == "duckdb" else stack.enter_context(backends.spark(memory, scratch))
        keep = partial(backends.keep, connection, scratch)
        with backends.readable(str(log)):
            announce("reading and cleaning the log")
            raw = sources.read(connection, source, (*events.COLUMNS, "product_id"))
            labelled = keep("log", cleaning.label(events.normalise(raw, str(log)), limits))
            catalogue = keep("catalogue", read_catalogue(connection, documents)) if documents else None
            clean, report = clean_log(labelled, limits, window, catalogue, keep, announce)
            if strict and report.broken():
                counts = ", ".join(f"{rule}: {rows}" for rule, rows in report.broken().items())
                raise InputError(f"{log}: strict, and some rows cannot be used ({counts}); mend them or drop --strict")
            announce("running the funnel")
            chains.positives(clean, window, require).to_parquet(scratch / "positives.parquet")
        announce("writing the positives")
        asked = {
            "log": str(log), "backend": backend, "window_seconds": int(window.total_seconds()), "require": require,
            "documents": str(documents) if documents else None, "now": now.isoformat(),
            "max_searches_per_hour": max_searches_per_hour, "max_query_length": max_query_length,
            "validation_days": validation_days,
        }  # fmt: skip
        return outputs.write(duckdb, scratch, out, validation, replace(report, settings=asked))


def clean_log(
    labelled: ir.Table,
    limits: cleaning.Limits,
    window: timedelta,
    catalogue: ir.Table | None,
    keep: Callable[[str, ir.Table], ir.Table],
    announce: Callable[[str], None],
) -> tuple[ir.Table, Report]:
    """The events that the funnel reads, and the report of those that it does not (without the positives)."""
    kinds = labelled.select("fault", event=ibis.ifelse(labelled.fault.isnull(), labelled.event, None))
    tally = kinds.group_by("event", "fault").agg(rows=kinds.count()).to_pyarrow().to_pylist()
    rows = sum(count["rows"] for count in tally)
    faults = {rule: sum(count["rows"] for count in tally if count["fault"] == rule) for rule in cleaning.ROW_RULES}
    left = Counter({count["event"]: count["rows"] for count in tally if count["fault"] is None})
    announce("looking for replays, bots and strays")
    sound = labelled.filter(labelled.fault.isnull())
    replays = left.total() - _count(sound.select(*events.COLUMNS).distinct())
    clean = cleaning.usable(labelled)
    bots = keep("bots", cleaning.bots(clean, limits))
    faulty = _by_event(clean.semi_join(bots, "user_id"))
    left -= faulty
    faults["bot"] = faulty.total()
    if faulty:
        clean = clean.anti_join(bots, "user_id")
    if catalogue is not None:
        searches, others = clean.filter(clean.event == "search"), clean.filter(clean.event != "search")
        faulty = _by_event(others.anti_join(catalogue, "document_id"))
        left -= faulty
        faults["unlisted document"] = faulty.total()
        clean = ibis.union(searches, others.semi_join(catalogue, "document_id"))
    lost = _count(chains.orphans(clean, window))
    faults["click without a search"] = lost
    left -= Counter(click=lost)
    return clean, Report({}, rows, replays, faults, {kind: left[kind] for kind in cleaning.KINDS})


def _count(table: ir.Table) -> int:
    return table.count().to_pyarrow().as_py()


def _by_event(rows: ir.Table) -> Counter[str]:
    """How many rows of each kind; searches whose query alone is at fault were counted before."""
    rows = rows.filter((rows.event != "search") | rows.query.notnull())
    return Counter({count["event"]: count["rows"] for count in rows.group_by("event").agg(rows=rows.count())
                    .to_pyarrow().to_pylist()})  # fmt: skip


def read_catalogue(connection: Any, documents: str | Path) -> ir.Table:
    """The distinct ``document_id`` of a catalogue, as text.

    Raises:
        InputError: There is no such catalogue, or it has no ``document_id``.
    """
    source = sources.find(documents)
    table = events.with_document_id(sources.read(connection, source, ("document_id", "product_id")))
    if "document_id" not in table.columns:
        raise InputError(f"{documents}: a catalogue needs the column document_id; found {', '.join(table.columns)}")
    ids = table.select(document_id=events.text(table.document_id))
    return ids.filter(ids.document_id.notnull()).distinct()


@contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """A folder of its own beside ``out`` for whatever is not finished yet; removed afterwards.

    What a killed run left in it goes when the next run begins. A lock in it keeps two runs off the same output.

    Raises:
        InputError: Another process is writing ``out``, or its folder cannot be written.
    """
    scratch = out.parent / f".{out.name}.partial"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        lock = (scratch / "lock").open("w")
    except (NotADirectoryError, FileExistsError, PermissionError) as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another place") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise InputError(f"{out}: another process is writing it; wait for it or choose another name") from None
    for stale in scratch.iterdir():
        if stale.name != "lock":
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        lock.close()
