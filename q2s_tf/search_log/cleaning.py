"""Finding the rows of a log that cannot be used: each is counted under one rule and left out of the funnel."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import ibis
import ibis.expr.types as ir
from rich.table import Table

from q2s_tf.search_log.chains import STAGES, orphans
from q2s_tf.tables import EVENT_COLUMNS

KINDS = ("search", *STAGES)
"""The kinds of event."""

ROW_RULES = {
    "unknown event": "event is none of search, click, message, reply",
    "null key": "no user, event, time, document or, in a search, no query",
    "unparsable timestamp": "neither a time in ISO 8601 nor an epoch number",
    "future timestamp": "later than now: a wrong clock or a wrong unit",
    "query too long": "pasted text or an attack, not a search",
}
"""Rules that concern one row alone, in the order in which they are tried."""

LOG_RULES = {
    "bot": "events of users with more searches in an hour than a person makes",
    "unlisted document": "the document is not in the catalogue",
    "click without a search": "its search_id is not an earlier search of the user, or no search came in time",
}
"""Rules that concern several rows, tried in this order on the rows that pass `ROW_RULES`."""


@dataclass(frozen=True)
class Report:
    """The counts of one run of the funnel.

    Attributes:
        settings: The arguments of the run.
        rows: Rows read.
        replays: Rows that break no rule by themselves and repeat another row exactly. They count once, and are no
            fault.
        faults: Rule → rows left out by it (also 0). A rule that was not applied is absent.
        events: Kind of event → rows without a fault.
        positives: Distinct (query, country, document) triples.
        weight: Sum of their weights: how often a search led to a document.
        validation: Number of the positives that were written to the validation file.
    """

    settings: dict[str, Any]
    rows: int
    replays: int
    faults: dict[str, int]
    events: dict[str, int]
    positives: int = 0
    weight: int = 0
    validation: int = 0

    def table(self) -> Table:
        """The report as a table to print: rows read, rows left out, positives."""
        view = Table("", "rows", "share", "meaning", title="Search log to positives", title_justify="left")
        view.columns[1].justify = view.columns[2].justify = "right"

        def add(name: str, rows: int, whole: int, meaning: str, style: str = "", last: bool = False) -> None:
            share = f"{rows / whole:.2%}" if rows and whole else ""
            view.add_row(name, f"{rows:,}", share, meaning, style=style, end_section=last)

        add("read", self.rows, 0, "everything in the log")
        add("replays", self.replays, self.rows, "exact repeats; each counts once", last=True)
        meanings = ROW_RULES | LOG_RULES
        for rule, rows in self.faults.items():
            add(rule, rows, self.rows, meanings[rule], "yellow" if rows else "dim", rule == list(self.faults)[-1])
        for kind, plural in zip(KINDS, ("searches", "clicks", "messages", "replies"), strict=True):
            add(plural, self.events[kind], self.rows, "used by the funnel", last=kind == KINDS[-1])
        add("positives", self.positives, 0, f"query, country, document; {self.weight:,} searches led to them", "bold")
        if self.validation:
            add("validation", self.validation, self.positives, "the last days; share of the positives")
        return view


def label(events: ir.Table, now: datetime, max_query_length: int) -> ir.Table:
    """Add to normalised events the column `fault`, the first of `ROW_RULES` that a row breaks, or null.

    The column `usable` marks the rows that the funnel reads: those without a fault, and searches whose query alone is
    at fault. A query that is too long becomes null: its search still owns its clicks, and leads to no positive.
    """
    is_search, is_known = events.event == "search", events.event.isin(KINDS)
    too_long = is_search & (events.query.length() > max_query_length)
    query = ibis.ifelse(too_long, ibis.null("string"), events.query)
    subject = ibis.ifelse(is_search, events.query, events.document_id)
    no_time = events.timestamp.isnull() & ~events.unparsable
    latest = ibis.timestamp(now.replace(tzinfo=None).isoformat(sep=" "))
    fault = ibis.cases(
        (~is_known, "unknown event"),
        (events.user_id.isnull() | events.event.isnull() | no_time | subject.isnull(), "null key"),
        (events.unparsable, "unparsable timestamp"),
        (events.timestamp > latest, "future timestamp"),
        (too_long, "query too long"),
        else_=ibis.null("string"),
    )
    in_time = is_known & (events.timestamp <= latest)
    usable = in_time & events.user_id.notnull() & (is_search | events.document_id.notnull())
    return events.mutate(query=query, fault=fault, usable=usable)


def clean(
    labelled: ir.Table,
    window: timedelta,
    max_searches_per_hour: int,
    catalogue: ir.Table | None,
    materialise: Callable[[str, ir.Table], ir.Table],
) -> tuple[ir.Table, Report]:
    """Leave out the rows that break a rule.

    Args:
        labelled: The result of `label`.
        window: The window of the funnel, for clicks without a search.
        max_searches_per_hour: Users with more searches in 60 minutes are bots.
        catalogue: The listed `document_id`s, or None to accept all.
        materialise: Computes a table, given with a name, once.

    Returns:
        The events for the funnel, and the report with the counts of rows.
    """
    counts = labelled.group_by(key=ibis.coalesce(labelled.fault, labelled.event)).agg(rows=labelled.count())
    rows_of = Counter({count["key"]: count["rows"] for count in counts.to_pyarrow().to_pylist()})
    faults = {rule: rows_of[rule] for rule in ROW_RULES}
    left = Counter({kind: rows_of[kind] for kind in KINDS})
    replays = left.total() - _count(labelled.filter(labelled.fault.isnull()).select(*EVENT_COLUMNS).distinct())
    events = labelled.filter(labelled.usable).drop("fault", "usable", "unparsable")
    bots = materialise("bots", _bots(events, max_searches_per_hour))
    removed = {"bot": _by_kind(events.semi_join(bots, "user_id"))}
    if removed["bot"]:
        events = events.anti_join(bots, "user_id")
    if catalogue is not None:
        searches, others = events.filter(events.event == "search"), events.filter(events.event != "search")
        removed["unlisted document"] = _by_kind(others.anti_join(catalogue, "document_id"))
        events = ibis.union(searches, others.semi_join(catalogue, "document_id"))
    removed["click without a search"] = Counter(click=_count(orphans(events, window)))
    for rule, rows in removed.items():
        faults[rule] = rows.total()
        left -= rows
    return events, Report({}, rows_of.total(), replays, faults, {kind: left[kind] for kind in KINDS})


def _bots(events: ir.Table, most: int) -> ir.Table:
    """The `user_id` of users with more than `most` searches within some 60 minutes; replays count once."""
    searches = events.filter(events.event == "search")
    busy = searches.group_by("user_id").agg(searches=searches.count()).filter(lambda users: users.searches > most)
    searches = searches.semi_join(busy, "user_id")
    searches = searches.select("user_id", "timestamp", "query", "country", "search_id").distinct()
    line = ibis.window(group_by="user_id", order_by="timestamp")
    searches = searches.mutate(earlier=searches.timestamp.lag(most).over(line))
    crowded = searches.filter(searches.timestamp < searches.earlier + ibis.interval(hours=1))
    return crowded.select("user_id").distinct()


def _count(table: ir.Table) -> int:
    return table.count().to_pyarrow().as_py()


def _by_kind(rows: ir.Table) -> Counter[str]:
    """The rows of each kind of event; a search without a usable query already counts under another rule."""
    rows = rows.filter((rows.event != "search") | rows.query.notnull())
    counts = rows.group_by("event").agg(rows=rows.count()).to_pyarrow().to_pylist()
    return Counter({count["event"]: count["rows"] for count in counts})
