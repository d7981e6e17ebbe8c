"""What is wrong with a log: every rule is one label, counted, and left out of the funnel."""

from dataclasses import dataclass
from datetime import datetime

import ibis
import ibis.expr.types as ir

from q2s_tf.search_log.chains import STAGES

KINDS = ("search", *STAGES)

ROW_RULES = {
    "unknown event": "event is none of search, click, message, reply",
    "null key": "no user, event, time, document or, in a search, no query",
    "unparsable timestamp": "neither a time in ISO 8601 nor an epoch number",
    "future timestamp": "later than now: a clock that runs ahead, or the wrong unit",
    "query too long": "pasted text or an attack, not a search",
}
"""Rules that one row breaks by itself, in the order in which they are tried."""

LOG_RULES = {
    "bot": "events of users with more searches in an hour than a person makes",
    "unlisted document": "the document is not in the catalogue",
    "click without a search": "its search_id is not a search of this user before it, or no search came in time",
}
"""Rules that need more than the row: tried, in this order, on what `ROW_RULES` leave."""


@dataclass(frozen=True)
class Limits:
    """The numbers that the rules compare with."""

    now: datetime
    max_searches_per_hour: int = 120
    max_query_length: int = 200


def label(events: ir.Table, limits: Limits) -> ir.Table:
    """Normalised ``events`` with ``fault``, the first of `ROW_RULES` that a row breaks, or null.

    A query that is too long is nulled: its search stays in the log as the owner of its clicks, and leads nowhere.
    """
    is_search = events.event == "search"
    too_long = is_search & (events.query.length() > limits.max_query_length)
    keyless = (
        events.user_id.isnull()
        | events.event.isnull()
        | (events.timestamp.isnull() & ~events.unparsable)
        | ibis.ifelse(is_search, events.query.isnull(), events.document_id.isnull())
    )
    now = ibis.timestamp(limits.now.replace(tzinfo=None).isoformat(sep=" "))
    usable = (
        events.user_id.notnull()
        & events.event.isin(KINDS)
        & (events.timestamp <= now)
        & (is_search | events.document_id.notnull())
    )
    query = ibis.ifelse(too_long, ibis.null("string"), events.query)
    fault = ibis.cases(
        (usable & (~is_search | query.notnull()), ibis.null("string")),  # nearly every row: try nothing else on it
        (events.event.notnull() & ~events.event.isin(KINDS), "unknown event"),
        (keyless, "null key"),
        (events.unparsable, "unparsable timestamp"),
        (events.timestamp > now, "future timestamp"),
        else_="query too long",
    )
    return events.mutate(query=query, fault=fault, usable=usable)


def usable(labelled: ir.Table) -> ir.Table:
    """The rows that the funnel reads: those without a fault, and searches whose query alone is at fault."""
    return labelled.filter(labelled.usable).drop("fault", "usable", "unparsable")


def bots(events: ir.Table, limits: Limits) -> ir.Table:
    """The users with more than ``limits.max_searches_per_hour`` searches within some 60 minutes: ``user_id``.

    Replays of a search are one search.
    """
    most = limits.max_searches_per_hour
    searches = events.filter(events.event == "search")
    busy = searches.group_by("user_id").agg(searches=searches.count()).filter(lambda users: users.searches > most)
    searches = searches.semi_join(busy, "user_id")
    searches = searches.select("user_id", "timestamp", "query", "country", "search_id").distinct()
    line = ibis.window(group_by="user_id", order_by="timestamp")
    searches = searches.mutate(earlier=searches.timestamp.lag(most).over(line))
    crowded = searches.filter(searches.timestamp < searches.earlier + ibis.interval(hours=1))
    return crowded.select("user_id").distinct()
