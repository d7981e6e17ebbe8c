"""Makes the whole marketplace and writes its four tables."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table

from q2s_tf.cli import track
from q2s_tf.errors import InputError
from q2s_tf.simulation.catalogue import Catalogue, make_catalogue
from q2s_tf.simulation.events import make_events
from q2s_tf.simulation.lexicon import Lexicon, load_lexicon
from q2s_tf.simulation.relevance import EXACT, judge
from q2s_tf.simulation.searches import DAY, SECOND, Searches, make_searches
from q2s_tf.simulation.shoppers import Visits, visit

MIN_LISTINGS = 200
"""With fewer, a country may have nothing to show."""

START = datetime(2025, 1, 6, tzinfo=UTC)
"""The first day of the log unless told otherwise: a fixed one, so that the same command makes the same tables."""

_FIRST_YEAR, _LAST_YEAR = 1970, 2200


@dataclass(frozen=True)
class Summary:
    """What was made."""

    listings_per_language: dict[str, int]
    rows_per_event: dict[str, int]
    relevant_share: dict[str, float]
    """Stage of the funnel → share of its (query, listing) pairs that are exact matches."""
    cross_lingual_share: float
    """Share of the pairs answered within 24 hours whose query is in another language than the listing."""
    positives: int
    """Distinct (query, country, listing) with a reply within 24 hours of the search."""
    judged_queries: int

    def table(self) -> Table:
        """The summary as a table for people."""
        table = Table("what", "of", "amount", title="The marketplace")
        table.columns[2].justify = "right"
        for language, number in self.listings_per_language.items():
            table.add_row("listings", language, f"{number:,}")
        for event, number in self.rows_per_event.items():
            table.add_row("events", event, f"{number:,}")
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
    start: datetime = START,
    image_dimension: int = 64,
    judged_queries: int | None = None,
    show_progress: bool = False,
) -> Summary:
    """Writes documents, events and the two judgement tables of a simulated marketplace as Parquet into ``out``.

    The same arguments give the same files, byte for byte, in any process with the same NumPy and PyArrow.

    Args:
        out: the folder, made if it is not there. Each file is written whole or not at all.
        listings: number of listings, at least `MIN_LISTINGS`.
        seed: any non-negative number.
        users: number of shoppers, at least 50; by default 8 for every 5 listings, about 11 searches a listing.
        days: length of the log, at least 3.
        start: its first day; a time without a zone is taken as UTC.
        image_dimension: width of the image vectors.
        judged_queries: queries judged for validation and test together, fewer if the log has not so many; by default
            one for every 10 listings.
        show_progress: show a progress bar on standard error.

    Raises:
        InputError: if a number is out of its range or ``out`` cannot be written.
    """
    users = listings * 8 // 5 if users is None else users
    judged_queries = listings // 10 if judged_queries is None else judged_queries
    _check_least(listings=(listings, MIN_LISTINGS), seed=(seed, 0), users=(users, 50), days=(days, 3))
    _check_least(image_dimension=(image_dimension, 1), judged_queries=(judged_queries, 2))
    if not _FIRST_YEAR < start.year <= _LAST_YEAR:
        raise InputError(f"start must lie in a year from {_FIRST_YEAR + 1} to {_LAST_YEAR}, got {start.year}")
    start = start if start.tzinfo else start.replace(tzinfo=UTC)
    _make_folder(out)

    end = int(start.timestamp()) * SECOND + days * DAY
    # One step, one stream of chance: a change to one step leaves the others' draws alone.
    streams = np.random.default_rng(seed).spawn(5)
    steps = iter(track(streams, "making the marketplace") if show_progress else streams)
    lexicon = load_lexicon()
    catalogue = make_catalogue(lexicon, listings, image_dimension, next(steps))
    searches = make_searches(lexicon, catalogue, users, days, start, next(steps))
    visits = visit(lexicon, catalogue, searches, next(steps))
    events = make_events(searches, visits, end, next(steps))
    judgements = judge(lexicon, catalogue, searches, judged_queries, next(steps))
    _write(catalogue.table, out / "documents.parquet")
    _write(events, out / "events.parquet")
    for part, table in judgements.items():
        _write(table, out / f"judgements_{part}.parquet")
    next(steps, None)  # the progress bar ends
    judged = sum(len(table["query"].unique()) for table in judgements.values())
    return _summarise(lexicon, catalogue, searches, visits, end, events, judged)


def _check_least(**numbers: tuple[int, int]) -> None:
    for name, (number, least) in numbers.items():
        if number < least:
            raise InputError(f"{name} must be at least {least}, got {number}")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {out}: {error.strerror}; give another folder") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"cannot write into {out}: permission denied; give another folder")


def _write(table: pa.Table, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary, compression="zstd")
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free some space or give another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _summarise(
    lexicon: Lexicon, catalogue: Catalogue, searches: Searches, visits: Visits, end: int, events: pa.Table, judged: int
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
    return Summary(
        listings_per_language={
            name: int((catalogue.language == number).sum()) for number, name in enumerate(lexicon.languages)
        },
        rows_per_event={entry["values"]: entry["counts"] for entry in pc.value_counts(events["event"]).to_pylist()},
        relevant_share={"shown": visits.shown_relevant} | relevant,
        cross_lingual_share=float((searches.language[search] != catalogue.language[document]).mean()),
        positives=len(positives),
        judged_queries=judged,
    )
