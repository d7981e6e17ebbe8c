"""The funnel: which searches led to an answered message, as one Ibis expression for every engine."""

import re
from datetime import timedelta
from typing import Literal

import ibis
import ibis.expr.types as ir

from q2s_tf.errors import InputError

Stage = Literal["click", "message", "reply"]

STAGES: tuple[Stage, ...] = ("click", "message", "reply")
"""The steps after a search in the order of the funnel, which also decides between equal timestamps."""

DAY, LONGEST = timedelta(hours=24), timedelta(days=3650)


def positives(events: ir.Table, window: timedelta = DAY, require: Stage = "reply") -> ir.Table:
    """The (query, country, document) triples that users confirmed, one row each.

    A search of a user leads to a document if the user then clicks the document, then messages its seller, then gets a
    reply, each at or after the step before it, and the reply comes at most `window` after the search (both ends
    included). A click belongs to the searches of its user that have its `search_id`. A click without a `search_id`
    belongs to the user's latest search at or before it, or to each of them if several have the same timestamp. A click
    with a `search_id` that the user did not make before the click belongs to no search.

    Repeated rows change nothing: each step below is a minimum, a maximum or a set.

    Args:
        events: Columns `user_id, event, timestamp, query, country, document_id` and optional `search_id`. A reply has
            the user who searched and the document that the message was about. A search without a query still owns its
            clicks (they do not go to the search before it) and leads to no positive.
        window: Longest time from the search to the last required step, a whole number of seconds.
        require: The last step that must have happened: `reply` (the paper's definition), `message` or `click`.

    Returns:
        `query, country, document_id`, distinct; `timestamp`, the first search that led to the document; `weight`, the
        number of distinct searches (user, time, query, country, search_id) that did.

    Raises:
        InputError: `require` or `window` is invalid.

    Source: Que2Search (KDD 2021), section on training data; the window counts from the search.
    """
    if require not in STAGES:
        raise InputError(f"require must be one of {', '.join(STAGES)}; got {require!r}")
    span = _interval(window)
    events = events if "search_id" in events.columns else events.mutate(search_id=ibis.null("string"))
    searches = _searches(events)
    clicks = _completed_clicks(events, require)
    clicks = clicks.filter(clicks.completed <= clicks.clicked + span)
    named = clicks.filter(clicks.search_id.notnull()).join(searches, ["user_id", "search_id"])
    named = named.filter(named.searched <= named.clicked)
    unnamed = _latest_searches(clicks.filter(clicks.search_id.isnull()).drop("search_id"), searches)
    columns = ("user_id", "document_id", "completed", "searched", "search_id", "query", "country")
    owned = ibis.union(named.select(*columns), unnamed.select(*columns))
    led = owned.filter(owned.completed <= owned.searched + span, owned.query.notnull())
    led = led.select("user_id", "searched", "search_id", "query", "country", "document_id").distinct()
    return led.group_by("query", "country", "document_id").agg(timestamp=led.searched.min(), weight=led.count())


def orphans(events: ir.Table, window: timedelta = DAY) -> ir.Table:
    """The clicks that belong to no search within `window`, one row for each row of `events`.

    Columns: `user_id, document_id, search_id, clicked`. Clicks belong to searches as in `positives`; timestamps have
    no zone.
    """
    span = _interval(window)
    width = int(window.total_seconds())
    clicks = events.filter(events.event == "click")
    clicks = clicks.select("user_id", "document_id", "search_id", clicked=clicks.timestamp)
    clicks = clicks.mutate(slot=clicks.clicked.epoch_seconds() // width)
    # A search reaches into its own slot of time and the next: this keeps the join small.
    searches = _searches(events)
    searches = searches.mutate(slot=searches.searched.epoch_seconds() // width)
    reached = ibis.union(searches, searches.mutate(slot=searches.slot + 1))
    lost = clicks.anti_join(
        reached,
        [
            clicks.user_id == reached.user_id,
            clicks.slot == reached.slot,
            clicks.search_id.isnull() | (clicks.search_id == reached.search_id),
            reached.searched <= clicks.clicked,
            clicks.clicked <= reached.searched + span,
        ],
    )
    return lost.drop("slot")


def _searches(events: ir.Table) -> ir.Table:
    searches = events.filter(events.event == "search")
    return searches.select("user_id", "search_id", "query", "country", searched=searches.timestamp)


def _completed_clicks(events: ir.Table, require: Stage) -> ir.Table:
    """Clicks, and the time `completed` of the last step of the earliest chain of required steps that follows them."""
    stages = STAGES[: STAGES.index(require) + 1]
    steps = events.filter(events.event.isin(stages))
    stage = steps.event.cases(*((stage, order) for order, stage in enumerate(stages)), else_=-1)
    steps = steps.select("user_id", "document_id", "search_id", clicked=steps.timestamp, stage=stage)
    last = len(stages) - 1
    if last:  # most clicks lead to nothing: leave them out before sorting
        done = steps.filter(steps.stage == last).select("user_id", "document_id")
        steps = steps.semi_join(done, ["user_id", "document_id"])
    # From the last step back: a step is complete when the earliest next step at or after it is.
    steps = steps.mutate(completed=ibis.ifelse(steps.stage == last, steps.clicked, None))
    key, order = ["user_id", "document_id"], ["clicked", "stage"]
    following = ibis.window(group_by=key, order_by=order, preceding=0, following=None)
    for number in reversed(range(last)):
        next_step = ibis.ifelse(steps.stage == number + 1, steps.completed, None)
        completed = ibis.ifelse(steps.stage == number, next_step.min().over(following), steps.completed)
        steps = steps.mutate(completed=completed)
    clicks = steps.filter(steps.stage == 0, steps.completed.notnull())
    return clicks.select("user_id", "document_id", "search_id", "clicked", "completed")


def _latest_searches(clicks: ir.Table, searches: ir.Table) -> ir.Table:
    """Clicks joined with their user's latest search at or before them.

    It sorts the time line of each user once, so that the cost does not grow with the square of a user's searches.
    """
    relevant = searches.semi_join(clicks, "user_id")
    time = relevant.searched.type()
    marks = relevant.select(
        "user_id",
        document_id=ibis.null(clicks.document_id.type()),
        clicked=relevant.searched,
        completed=ibis.null(time),
        latest=relevant.searched,
        is_click=0,
    )
    line = ibis.union(clicks.mutate(latest=ibis.null(time), is_click=1), marks)
    so_far = ibis.window(group_by="user_id", order_by=["clicked", "is_click"], preceding=None, following=0)
    line = line.mutate(latest=line.latest.max().over(so_far))
    clicks = line.filter(line.is_click == 1)
    return clicks.join(searches, [clicks.user_id == searches.user_id, clicks.latest == searches.searched])


def duration(text: str) -> timedelta:
    """The time span that `text` names: `30s`, `90m`, `24h`, `7d`.

    Raises:
        InputError: `text` is not a whole number followed by one of these units.
    """
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not re.fullmatch("[0-9]{1,9}", number):
        raise InputError(
            f"--window: a time span is a whole number and one of s, m, h, d, such as 24h; got {text[:40]!r}"
        )
    return timedelta(**{units[unit]: int(number)})


def _interval(window: timedelta) -> ir.IntervalScalar:
    seconds = window.total_seconds()
    if not timedelta(0) < window <= LONGEST or seconds != int(seconds):
        raise InputError(
            f"window must be a whole number of seconds, at least 1 and at most {LONGEST.days} days; got {window}"
        )
    return ibis.interval(seconds=int(seconds))  # in seconds: 24 hours do not depend on the session's time zone
