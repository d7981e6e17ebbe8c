"""Generating the whole marketplace and writing its four tables."""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table

from q2s_tf.cli import track
from q2s_tf.errors import InputError
from q2s_tf.files import atomic_write
from q2s_tf.simulation.event_log import make_events
from q2s_tf.simulation.lexicon import load_lexicon
from q2s_tf.simulation.listings import Listings, make_listings
from q2s_tf.simulation.relevance import EXACT, judge
from q2s_tf.simulation.searches import DAY, SECOND, Searches, make_searches
from q2s_tf.simulation.visits import Visits, make_visits

MIN_LISTINGS = 200
"""With fewer, a country may have no listing to show."""

START = datetime(2025, 1, 6, tzinfo=UTC)
"""The first day of the log: a constant, so that the same command makes the same tables."""

JUDGED = 10
"""Listings for each query that is judged, for validation or test."""


class Summary(NamedTuple):
    """The size and the quality of a generated marketplace.

    `relevant_share` is by stage of the funnel the share of its (query, listing) pairs that are exact matches;
    `cross_lingual_share` is that of the pairs answered within 24 hours whose query and listing differ in language.
    `positives` counts distinct (query, country, listing) with a reply within 24 hours of the search.
    """

    listings_per_language: dict[str, int]
    rows_per_event: dict[str, int]
    relevant_share: dict[str, float]
    cross_lingual_share: float
    positives: int
    judged_queries: int

    def table(self) -> Table:
        """The summary as a table to print."""
        table = Table("what", "of", "amount", title="The marketplace")
        table.columns[2].justify = "right"
        for what, counts in (("listings", self.listings_per_language), ("events", self.rows_per_event)):
            for name, number in counts.items():
                table.add_row(what, name, f"{number:,}")
        for stage, share in self.relevant_share.items():
            table.add_row("exact matches among the pairs", stage, f"{share:.1%}")
        table.add_row("cross-lingual pairs", "answered within 24 h", f"{self.cross_lingual_share:.1%}")
        table.add_row("distinct positives", "answered within 24 h", f"{self.positives:,}")
        table.add_row("judged queries", "validation and test", f"{self.judged_queries:,}")
        return table


def make_marketplace(
    out: Path,
    listings: int,
    seed: int,
    users: int | None = None,
    days: int = 28,
    image_dimension: int = 64,
    show_progress: bool = False,
) -> Summary:
    """Write the documents, events and two judgement tables of a simulated marketplace as Parquet files.

    The same arguments give the same files, byte for byte, in any process with the same NumPy and PyArrow.

    Args:
        out: The folder, created if necessary. Each file is written as a whole or not at all.
        listings: Number of listings, at least `MIN_LISTINGS`.
        seed: Any non-negative number.
        users: Number of shoppers, at least 50. Default: 8 for every 5 listings, about 11 searches per listing.
        days: Length of the log, at least 3.
        image_dimension: Width of the image vectors.
        show_progress: Show a progress bar on standard error.

    Raises:
        InputError: A number is out of its range, or `out` cannot be written.
    """
    users = listings * 8 // 5 if users is None else users
    for name, number, least in (
        ("listings", listings, MIN_LISTINGS), ("seed", seed, 0), ("users", users, 50), ("days", days, 3),
        ("image_dimension", image_dimension, 1),
    ):  # fmt: skip
        if number < least:
            raise InputError(f"{name} must be at least {least}, got {number}")
    end = int(START.timestamp()) * SECOND + days * DAY
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Each step has its own random stream: a change to one step does not change the others.
        streams = np.random.default_rng(seed).spawn(5)
        steps = iter(track(streams, "making the marketplace") if show_progress else streams)
        catalogue = make_listings(listings, image_dimension, next(steps))
        searches = make_searches(catalogue, users, days, START, next(steps))
        visits = make_visits(catalogue, searches, next(steps))
        events = make_events(searches, visits, end, next(steps))
        judgements = judge(catalogue, searches, listings // JUDGED, next(steps))
        tables = {f"judgements_{part}": table for part, table in judgements.items()}
        for name, table in {"documents": catalogue.table, "events": events, **tables}.items():
            with atomic_write(out / f"{name}.parquet") as partial:
                pq.write_table(table, partial, compression="zstd")
        next(steps, None)  # the progress bar ends
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write into {out}: {reason}; free some space or give another folder") from error
    judged = sum(len(table["query"].unique()) for table in judgements.values())
    return _summarise(catalogue, searches, visits, end, events, judged)


def _summarise(
    listings: Listings, searches: Searches, visits: Visits, end: int, events: pa.Table, judged_queries: int
) -> Summary:
    answered = (visits.reply >= 0) & (visits.reply < end)
    in_time = answered & (visits.reply - searches.time[visits.search] <= DAY)
    stages = {
        "clicked": np.ones_like(answered),
        "messaged": visits.message >= 0,
        "answered": answered,
        "answered within 24 h": in_time,
    }
    relevant = {name: float((visits.grade[rows] == EXACT).mean()) for name, rows in stages.items()}
    search, document = visits.search[in_time], visits.document[in_time]
    texts = (searches.text[row] for row in search.tolist())
    positives = set(zip(texts, searches.country[search].tolist(), document.tolist(), strict=True))
    languages = enumerate(load_lexicon().languages)
    return Summary(
        listings_per_language={name: int((listings.language == number).sum()) for number, name in languages},
        rows_per_event={entry["values"]: entry["counts"] for entry in pc.value_counts(events["event"]).to_pylist()},
        relevant_share={"shown": visits.shown_relevant} | relevant,
        cross_lingual_share=float((searches.language[search] != listings.language[document]).mean()),
        positives=len(positives),
        judged_queries=judged_queries,
    )
