"""The search log as a table, with the flaws of a real one."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.simulation.lexicon import read_behaviour
from q2s_tf.simulation.listings import COUNTRIES, ids
from q2s_tf.simulation.searches import DAY, SECOND, Searches
from q2s_tf.simulation.visits import Visits

_SHARES = read_behaviour("log")
_FUTURE = 30 * 365 * DAY


def make_events(searches: Searches, visits: Visits, end: int, rng: np.random.Generator) -> pa.Table:
    """Build the events table of the data contract, in the order in which a log would be written.

    `user_id` is always the shopper's, also in replies. Events from `end` on (microseconds since 1970 UTC) are left
    out.
    """
    unlinked = rng.random(len(visits.search)) < _SHARES.unlinked
    times_of = {"click": visits.click, "message": visits.message, "reply": visits.reply}
    rows_of = {kind: np.flatnonzero(times >= 0) for kind, times in times_of.items()}
    visit, number = np.concatenate(list(rows_of.values())), len(searches)
    search = np.concatenate([np.arange(number), visits.search[visit]])
    time = np.concatenate([searches.time, *(times_of[kind][rows] for kind, rows in rows_of.items())])
    is_search = np.arange(len(search)) < number
    without_id = np.concatenate([np.zeros(number, dtype=bool), unlinked[visit]])
    countries = np.array(list(COUNTRIES))[searches.country[search]]
    kinds = np.repeat(["search", *rows_of], [number, *map(len, rows_of.values())])
    table = pa.table(
        {
            "user_id": ids("u", searches.user[search]),
            "event": pa.array(kinds, pa.string()),
            "timestamp": pa.array(time, pa.timestamp("us", tz="UTC")),
            "query": [*searches.text, *[None] * len(visit)],
            "country": pa.array(countries, pa.string(), mask=~is_search),
            "document_id": [*[None] * number, *ids("d", visits.document[visit])],
            "search_id": pa.array(np.array(ids("s", search)), pa.string(), mask=without_id),
        }
    )
    table, time = table.filter(pa.array(time < end)), time[time < end]

    rows = np.concatenate([np.arange(len(time)), np.flatnonzero(rng.random(len(time)) < _SHARES.replayed)])
    arrival = time[rows] + np.where(
        rng.random(len(rows)) < _SHARES.disordered, rng.integers(3600 * SECOND, size=len(rows)), 0
    )
    arrival[len(time) :] += rng.integers(60 * SECOND, size=len(rows) - len(time))
    return _break(table.take(rows[np.argsort(arrival, kind="stable")]), rng)


def _break(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Make a few rows unusable, a share `broken` of each kind."""
    columns = {name: table[name] for name in table.column_names}
    for names, value in ((["user_id"], None), (["query", "document_id"], None), (["event"], "impression")):
        chosen = pa.array(rng.random(len(table)) < _SHARES.broken)
        for name in names:
            columns[name] = pc.if_else(chosen, pa.scalar(value, pa.string()), columns[name])
    future = pc.if_else(pa.array(rng.random(len(table)) < _SHARES.broken), _FUTURE, 0).cast(pa.duration("us"))
    columns["timestamp"] = pc.add(columns["timestamp"], future)
    return pa.table(columns)
