"""The funnel's definition against an oracle that tries every search, click, message and reply of a small log."""

import random
import shutil
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q2s_tf.errors import InputError
from q2s_tf.search_log import duration, positives
from q2s_tf.search_log.chains import orphans

DAY = timedelta(hours=24)
STAGES = ("click", "message", "reply")
START = datetime(2026, 3, 28, 20)  # the clocks of Europe change within the next hours


class Event(NamedTuple):
    """One row of a log."""

    user_id: str
    event: str
    timestamp: datetime
    query: str | None = None
    country: str | None = None
    document_id: str | None = None
    search_id: str | None = None


Positives = dict[tuple[str, str | None, str], tuple[datetime, int]]


def owns(search: Event, click: Event, searches: list[Event]) -> bool:
    """Whether ``search`` is one that ``click`` belongs to."""
    if search.user_id != click.user_id or search.timestamp > click.timestamp:
        return False
    if click.search_id is not None:
        return search.search_id == click.search_id
    mine = [other.timestamp for other in searches if other.user_id == click.user_id]
    return search.timestamp == max(time for time in mine if time <= click.timestamp)


def oracle(log: list[Event], window: timedelta = DAY, require: str = "reply") -> Positives:
    """The definition of a positive, by trying all combinations of events."""
    events = set(log)
    kinds: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        kinds[event.event].append(event)
    led = defaultdict(set)

    def follow(search: Event, last: Event, rest: tuple[str, ...]) -> bool:
        if not rest:
            return last.timestamp - search.timestamp <= window
        return any(
            follow(search, step, rest[1:])
            for step in kinds[rest[0]]
            if (step.user_id, step.document_id) == (last.user_id, last.document_id) and step.timestamp >= last.timestamp
        )

    for search in kinds["search"]:
        for click in kinds["click"]:
            rest = STAGES[1 : STAGES.index(require) + 1]
            if owns(search, click, kinds["search"]) and follow(search, click, rest) and search.query is not None:
                assert click.document_id is not None
                led[search.query, search.country, click.document_id].add(search)
    return {key: (min(search.timestamp for search in found), len(found)) for key, found in led.items()}


def as_arrow(log: list[Event], zone: str | None = None) -> pa.Table:
    columns = {name: [getattr(event, name) for event in log] for name in Event._fields}
    kinds = {name: pa.timestamp("us", zone) if name == "timestamp" else pa.string() for name in Event._fields}
    return pa.table({name: pa.array(values, kinds[name]) for name, values in columns.items()})


def as_positives(table: ibis.Table) -> Positives:
    columns = table.columns
    assert columns == ("query", "country", "document_id", "timestamp", "weight")
    rows = table.to_pyarrow()
    instants = rows["timestamp"].cast(pa.int64())  # microseconds since 1970, whatever the zone of the column
    rows = rows.set_column(3, "timestamp", instants.cast(pa.timestamp("us"))).to_pylist()
    found = {
        (row["query"], row["country"], row["document_id"]): (row["timestamp"], row["weight"])
        for row in rows
    }  # fmt: skip
    assert len(found) == len(rows), "a positive came twice"
    return found


def on_duckdb(tmp_path: Path, table: pa.Table, time_zone: str = "UTC") -> ibis.Table:
    pq.write_table(table, tmp_path / "log.parquet")
    connection = ibis.duckdb.connect()
    connection.raw_sql(f"SET TimeZone = '{time_zone}'")
    return connection.read_parquet(str(tmp_path / "log.parquet"))


def at(hours: float, seconds: int = 0) -> datetime:
    return START + timedelta(hours=hours, seconds=seconds)


def chain(user: str = "u", document: str = "d", hours: tuple[float, ...] = (0, 1, 2, 3), **search: Any) -> list[Event]:
    """A search, click, message and reply at the given hours."""
    first = Event(user, "search", at(hours[0]), **{"query": "q", "country": "US", **search})
    later = zip(STAGES, hours[1:], strict=False)
    return [first, *(Event(user, kind, at(hour), document_id=document) for kind, hour in later)]


def random_log(rng: random.Random, name: str) -> list[Event]:
    """Up to 20 events of two users on two documents, at few instants: ties, replays and overlaps are common."""
    log: list[Event] = []
    instants = [at(6 * step, second) for step in range(rng.choice([2, 7])) for second in (0, 1)]
    share_named = rng.choice([0, 0.3, 1])
    for _ in range(rng.randint(0, 20)):
        kind = rng.choice(["search", "click", "click", "message", "reply"])
        named = rng.random() < share_named
        search_id = rng.choice(["1", "2", "3"]) if named and kind in ("search", "click") else None
        event = Event(f"{name}u{rng.choice([0, 0, 0, 1])}", kind, rng.choice(instants), search_id=search_id)
        if kind == "search":
            query = rng.choice([f"{name}q", f"{name}q", f"{name}p", None])
            log.append(event._replace(query=query, country=rng.choice(["US", "ES", None])))
        else:
            log.append(event._replace(document_id=f"{name}d{rng.choice([0, 0, 1])}"))
        if rng.random() < 0.1:
            log.append(rng.choice(log))
    return log


def many_logs(seed: int, number: int) -> list[list[Event]]:
    """Logs whose users, documents and queries differ, so that one evaluation covers all of them."""
    rng = random.Random(seed)
    return [random_log(rng, f"{index}:") for index in range(number)]


def expected(logs: list[list[Event]], window: timedelta = DAY, require: str = "reply") -> Positives:
    return {key: value for log in logs for key, value in oracle(log, window, require).items()}


def shuffled(logs: list[list[Event]], seed: int) -> list[Event]:
    rows = [event for log in logs for event in log]
    random.Random(seed).shuffle(rows)
    return rows


@pytest.mark.parametrize("require", STAGES)
@pytest.mark.parametrize("window", [DAY, timedelta(hours=6), timedelta(seconds=1)])
def test_thousands_of_random_logs_agree_with_the_oracle(tmp_path: Path, require: Any, window: timedelta) -> None:
    logs = many_logs(seed=int(window.total_seconds()), number=1500)
    wanted = expected(logs, window, require)
    assert len(wanted) > 40, "the logs should lead somewhere"
    assert as_positives(positives(on_duckdb(tmp_path, as_arrow(shuffled(logs, 1))), window, require)) == wanted


EVENTS = st.builds(
    Event,
    user_id=st.sampled_from("uv"),
    event=st.sampled_from(["search", *STAGES]),
    timestamp=st.sampled_from([at(0), at(0, 1), at(12), at(24), at(24, 1), at(30)]),
    query=st.sampled_from(["q", "p", None]),
    country=st.sampled_from(["US", None]),
    document_id=st.sampled_from("de"),
    search_id=st.sampled_from(["1", "2", None]),
)


@settings(max_examples=40, deadline=None)
@given(log=st.lists(EVENTS, max_size=10), data=st.data())
def test_any_small_log_agrees_with_the_oracle(tmp_path_factory: Any, log: list[Event], data: st.DataObject) -> None:
    """Fewer and smaller logs than above; hypothesis shrinks those that fail."""
    require = data.draw(st.sampled_from(STAGES))
    table = on_duckdb(tmp_path_factory.mktemp("log"), as_arrow(log))
    assert as_positives(positives(table, require=require)) == oracle(log, require=require)


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
@pytest.mark.parametrize("session", ["Europe/Berlin", "America/New_York", "Asia/Kathmandu"])
def test_clocks_that_change_do_not(tmp_path: Path, session: str, zone: str | None) -> None:
    """A window is 24 hours long across a change of clocks, in any zone of the session and of the column."""
    logs = many_logs(seed=3, number=300)
    autumn = [[event._replace(timestamp=event.timestamp + timedelta(days=217)) for event in log] for log in logs]
    for season in (logs, autumn):
        table = on_duckdb(tmp_path, as_arrow(shuffled(season, 1), zone), session)
        assert as_positives(positives(table)) == expected(season)


def test_window_ends_with_its_last_second(tmp_path: Path) -> None:
    inside = chain("in", hours=(0, 1, 2, 24))
    outside = [*chain("out", query="late", hours=(0, 1, 2)), Event("out", "reply", at(24, 1), document_id="d")]
    found = as_positives(positives(on_duckdb(tmp_path, as_arrow(inside + outside))))
    assert found == {("q", "US", "d"): (at(0), 1)}


def test_steps_out_of_order_are_no_positive(tmp_path: Path) -> None:
    for number, hours in enumerate([(1, 0, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2)]):
        table = on_duckdb(tmp_path, as_arrow(chain(f"u{number}", hours=hours)))
        assert as_positives(positives(table)) == {}


def test_all_at_one_instant_is_a_positive(tmp_path: Path) -> None:
    log = chain(hours=(0, 0, 0, 0))
    assert as_positives(positives(on_duckdb(tmp_path, as_arrow(log[::-1])))) == {("q", "US", "d"): (at(0), 1)}


def test_two_searches_at_one_instant_both_own_the_click(tmp_path: Path) -> None:
    log = [*chain(), Event("u", "search", at(0), "other", "US")]
    found = as_positives(positives(on_duckdb(tmp_path, as_arrow(log))))
    assert found == {("q", "US", "d"): (at(0), 1), ("other", "US", "d"): (at(0), 1)}


@pytest.mark.parametrize(
    ("search", "why"),
    [
        (Event("u", "search", at(0), "named", "US", search_id="x"), "an earlier search than the latest"),
        (Event("u", "search", at(2), "named", "US", search_id="x"), "a search after the click"),
        (Event("v", "search", at(0), "named", "US", search_id="x"), "another user's search"),
        (Event("u", "search", at(-30), "named", "US", search_id="x"), "a search too long ago"),
        (Event("u", "search", at(0), "named", "US", search_id="y"), "no search at all"),
    ],
)
def test_click_belongs_to_the_search_it_names_or_to_none(tmp_path: Path, search: Event, why: str) -> None:
    """It never belongs to the latest search instead: according to the log it came from another one."""
    log = [search, *chain(hours=(0.5, 1, 2, 3), query="latest")]
    log = [event._replace(search_id="x") if event.event == "click" else event for event in log]
    found = as_positives(positives(on_duckdb(tmp_path, as_arrow(log))))
    assert found == ({("named", "US", "d"): (at(0), 1)} if why.startswith("an earlier") else {}), why


def test_search_without_a_query_keeps_its_clicks(tmp_path: Path) -> None:
    log = [Event("u", "search", at(-1), "before", "US"), *chain(query=None)]
    assert as_positives(positives(on_duckdb(tmp_path, as_arrow(log)))) == {}


def test_weight_counts_searches_not_rows(tmp_path: Path) -> None:
    log = [*chain(), *chain(), *chain("v"), *chain(hours=(5, 6, 7, 8)), Event("u", "click", at(1.5), document_id="d")]
    assert as_positives(positives(on_duckdb(tmp_path, as_arrow(log)))) == {("q", "US", "d"): (at(0), 3)}


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_replays_and_order_change_nothing(tmp_path_factory: Any, seed: int) -> None:
    rows = shuffled(many_logs(seed, 60), seed)
    again = random.Random(seed).choices(rows, k=100) if rows else []
    folder = tmp_path_factory.mktemp("log")
    once = as_positives(positives(on_duckdb(folder, as_arrow(rows))))
    assert as_positives(positives(on_duckdb(folder, as_arrow(again + rows)))) == once


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_looser_rules_and_longer_windows_only_add(tmp_path_factory: Any, seed: int) -> None:
    table = on_duckdb(tmp_path_factory.mktemp("log"), as_arrow(shuffled(many_logs(seed, 100), seed)))
    found = [
        set(as_positives(positives(table, window, require)))
        for window, require in [(DAY / 2, "reply"), (DAY, "reply"), (DAY, "message"), (DAY, "click")]  # type: ignore[arg-type]
    ]
    assert found[0] <= found[1] <= found[2] <= found[3]


def test_log_without_search_ids(tmp_path: Path) -> None:
    table = on_duckdb(tmp_path, as_arrow(chain()).drop_columns("search_id"))
    assert as_positives(positives(table)) == {("q", "US", "d"): (at(0), 1)}


@pytest.mark.parametrize("text", ["", "24", "h", "-3h", "1.5h", "3w", "²h"])
def test_time_span_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match="a time span is a whole number and one of s, m, h, d"):
        duration(text)


def test_time_spans() -> None:
    assert [duration(text) for text in ("24h", "1440m", "86400s", "1d")] == [DAY] * 4


def test_arguments_outside_their_rules(tmp_path: Path) -> None:
    table = on_duckdb(tmp_path, as_arrow(chain()))
    with pytest.raises(InputError, match="require must be one of click, message, reply; got 'purchase'"):
        positives(table, require="purchase")  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match="window must be a whole number of seconds, at least 1 and at most 3650 days; got 0:00:00"
    ):
        positives(table, window=timedelta(0))


@pytest.fixture(scope="module")
def spark(tmp_path_factory: Any) -> Iterator[Any]:
    from q2s_tf.search_log import engines

    with engines.spark("1GB", tmp_path_factory.mktemp("spark")) as connection:
        yield connection


@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java, and there is no java on the PATH")
def test_spark_gives_the_rows_of_duckdb(tmp_path: Path, spark: Any) -> None:
    logs = many_logs(seed=9, number=600)
    table = on_duckdb(tmp_path, as_arrow(shuffled(logs, 1), "UTC"))
    found = as_positives(positives(spark.read_parquet(str(tmp_path / "log.parquet"))))
    assert len(found) > 40
    assert found == as_positives(positives(table)) == expected(logs)


@pytest.mark.parametrize("window", [DAY, timedelta(hours=6), timedelta(seconds=1)])
def test_clicks_without_a_search_agree_with_the_oracle(tmp_path: Path, window: timedelta) -> None:
    logs = many_logs(seed=4, number=800)
    wanted = sorted(
        (click.user_id, click.document_id or "", click.search_id or "", click.timestamp)
        for log in logs
        for click in log
        if click.event == "click"
        and not any(
            owns(search, click, searches) and click.timestamp - search.timestamp <= window
            for searches in [[event for event in log if event.event == "search"]]
            for search in searches
        )
    )
    found = orphans(on_duckdb(tmp_path, as_arrow(shuffled(logs, 1))), window).to_pyarrow().to_pylist()
    assert sorted(tuple(value or "" for value in row.values()) for row in found) == wanted
    assert len(wanted) > 100
