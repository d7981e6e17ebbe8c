"""The search log as a table, with the flaws of a real one."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from q2s_tf.simulation.catalogue import COUNTRIES, document_ids
from q2s_tf.simulation.searches import DAY, SECOND, Searches
from q2s_tf.simulation.shoppers import Visits

REPLAYED, DISORDERED, BROKEN, UNLINKED = 0.015, 0.05, 0.001, 0.10
"""Shares of rows written twice, of rows written up to an hour late, of rows of each broken kind (a null user, a null
subject, an unknown event, a time in the far future), and of clicks whose chain carries no ``search_id``."""

_FUTURE = 30 * 365 * DAY


def make_events(searches: Searches, visits: Visits, end: int, rng: np.random.Generator) -> pa.Table:
    """Builds the events table of the data contract, in the order in which a log would have been written.

    ``user_id`` is always the shopper's, of replies too. Whatever happens from ``end`` on
    (microseconds since 1970 UTC) is not in the log.
    """
    unlinked = rng.random(len(visits.search)) < UNLINKED
    parts = [_search_rows(searches)]
    for kind, times in (("click", visits.click), ("message", visits.message), ("reply", visits.reply)):
        parts.append(_visit_rows(kind, times, searches, visits, unlinked))
    table = pa.concat_tables(parts)
    time = table["timestamp"].to_numpy().astype("datetime64[us]").astype(np.int64)
    table, time = table.filter(pa.array(time < end)), time[time < end]

    rows = np.concatenate([np.arange(len(time)), np.flatnonzero(rng.random(len(time)) < REPLAYED)])
    arrival = time[rows] + np.where(rng.random(len(rows)) < DISORDERED, rng.integers(3600 * SECOND, size=len(rows)), 0)
    arrival[len(time) :] += rng.integers(60 * SECOND, size=len(rows) - len(time))
    return _break(table.take(rows[np.argsort(arrival, kind="stable")]), rng)


def _search_rows(searches: Searches) -> pa.Table:
    number = len(searches)
    return _rows(
        user_id=_ids("u", searches.user),
        event=["search"] * number,
        timestamp=searches.time,
        query=searches.text,
        country=np.array(list(COUNTRIES))[searches.country],
        document_id=pa.nulls(number, pa.string()),
        search_id=_ids("s", np.arange(number)),
    )


def _visit_rows(
    kind: str, times: NDArray[np.int64], searches: Searches, visits: Visits, unlinked: NDArray[np.bool_]
) -> pa.Table:
    rows = np.flatnonzero(times >= 0)
    search = visits.search[rows]
    return _rows(
        user_id=_ids("u", searches.user[search]),
        event=[kind] * len(rows),
        timestamp=times[rows],
        query=pa.nulls(len(rows), pa.string()),
        country=pa.nulls(len(rows), pa.string()),
        document_id=document_ids(visits.document[rows]),
        search_id=pa.array(_ids("s", search), pa.string(), mask=unlinked[rows]),
    )


def _rows(**columns: object) -> pa.Table:
    types = {name: pa.timestamp("us", tz="UTC") if name == "timestamp" else pa.string() for name in columns}
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, types[name]) for name, column in columns.items()
    ]
    return pa.table(arrays, schema=pa.schema(types))


def _ids(letter: str, numbers: NDArray[np.int64]) -> NDArray[np.object_]:
    return np.array([f"{letter}{number:07d}" for number in numbers.tolist()], dtype=object)


def _break(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Spoils a few rows, `BROKEN` of each kind."""

    def some() -> pa.Array:
        return pa.array(rng.random(len(table)) < BROKEN)

    def spoil(name: str, rows: pa.Array, value: object) -> None:
        nonlocal table
        kind = table.schema.field(name).type
        spoiled = pc.if_else(rows, pa.scalar(value, kind), table[name])
        table = table.set_column(table.schema.get_field_index(name), name, spoiled)

    spoil("user_id", some(), None)
    without_subject = some()
    spoil("query", without_subject, None)
    spoil("document_id", without_subject, None)
    spoil("event", some(), "impression")
    future = pc.if_else(some(), _FUTURE, 0).cast(pa.duration("us"))
    later = pc.add(table["timestamp"], future)
    return table.set_column(table.schema.get_field_index("timestamp"), "timestamp", later)
