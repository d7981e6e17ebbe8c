"""The funnel in pandas, in two variants: with merges only, and with an as-of merge."""

import json
from pathlib import Path

import pandas as pd

WINDOW = pd.Timedelta(hours=24)


def run(folder: Path, out: Path, as_of: bool) -> int:
    """Clean and count the log, find the positives and write them; returns their number.

    Args:
        folder: The log.
        out: The Parquet file to write; the counts are written to the same name with the suffix `.json`.
        as_of: Whether to find the search of a click without search_id by `merge_asof`, or by joining all searches of
            the user.
    """
    events = pd.read_parquet(folder)
    texts = [name for name in events.columns if name != "timestamp"]
    events[texts] = events[texts].replace("", None)
    events["query"] = events["query"].str.strip().replace("", None)
    search, known = events.event == "search", events.event.isin(["search", "click", "message", "reply"])
    key = events["query"].where(search, events.document_id)
    rules = {
        "unknown event": events.event.notna() & ~known,
        "null key": events.user_id.isna() | events.event.isna() | key.isna(),
        "unparsable timestamp": events.timestamp.isna(),
        "future timestamp": events.timestamp > pd.Timestamp.now("UTC"),
        "query too long": search & (events["query"].str.len() > 200),
    }
    report = {"rows": len(events)}
    sound = pd.Series(True, index=events.index)
    for rule, broken in rules.items():
        report[rule] = int((sound & broken).sum())
        sound &= ~broken
    events = events[sound]
    events = events[~events.duplicated()]
    report["replays"] = int(sound.sum()) - len(events)
    searches = events[events.event == "search"][["user_id", "search_id", "timestamp", "query", "country"]]
    searches = searches.rename(columns={"timestamp": "searched"}).sort_values("searched")
    crowded = searches.searched < searches.groupby("user_id").searched.shift(120) + pd.Timedelta(hours=1)
    bots = searches.user_id[crowded].unique()
    report["bot"] = int(events.user_id.isin(bots).sum())
    events, searches = events[~events.user_id.isin(bots)], searches[~searches.user_id.isin(bots)]
    step = {kind: rows[["user_id", "document_id", "search_id", "timestamp"]] for kind, rows in events.groupby("event")}
    clicks = step["click"].rename(columns={"timestamp": "clicked"})
    named = clicks[clicks.search_id.notna()].merge(searches, on=["user_id", "search_id"])
    named = named[(named.searched <= named.clicked) & (named.clicked <= named.searched + WINDOW)]
    timed = _latest(clicks[clicks.search_id.isna()].drop(columns="search_id"), searches, as_of)
    report["click without a search"] = len(clicks) - len(named) - len(timed)
    owned = pd.concat([named, timed.merge(searches, on=["user_id", "searched"])[named.columns]])
    for before, kind, after in (("clicked", "message", "messaged"), ("messaged", "reply", "replied")):
        rows = step[kind][["user_id", "document_id", "timestamp"]].rename(columns={"timestamp": after})
        owned = owned.merge(rows, on=["user_id", "document_id"])
        owned = owned[owned[after] >= owned[before]]
    owned = owned[owned.replied <= owned.searched + WINDOW]
    led = owned[["user_id", "searched", "search_id", "query", "country", "document_id"]].drop_duplicates()
    found = led.groupby(["query", "country", "document_id"], dropna=False).agg(
        timestamp=("searched", "min"), weight=("searched", "size")
    )
    found.sort_values("timestamp").reset_index().to_parquet(out)
    out.with_suffix(".json").write_text(json.dumps(report))
    return len(found)


def _latest(clicks: pd.DataFrame, searches: pd.DataFrame, as_of: bool) -> pd.DataFrame:
    if as_of:
        return pd.merge_asof(
            clicks.sort_values("clicked"), searches[["user_id", "searched"]],
            left_on="clicked", right_on="searched", by="user_id", tolerance=WINDOW,
        ).dropna(subset="searched")  # fmt: skip
    pairs = clicks.reset_index().merge(searches[["user_id", "searched"]], on="user_id")
    pairs = pairs[(pairs.searched <= pairs.clicked) & (pairs.clicked <= pairs.searched + WINDOW)]
    return pairs.sort_values("searched").drop_duplicates("index", keep="last").drop(columns="index")
