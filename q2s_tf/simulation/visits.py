"""What follows a search: the engine's results, clicks, messages to sellers, replies."""

from dataclasses import dataclass

import numpy as np

from q2s_tf.simulation.lexicon import UNSTATED, Bools, Floats, Ints, load_lexicon, read_behaviour
from q2s_tf.simulation.listings import COUNTRIES, Listings
from q2s_tf.simulation.relevance import EXACT, grade
from q2s_tf.simulation.searches import DAY, SECOND, Searches

PAGE = 10
"""The number of listings on one page of results."""

CHUNK = 20_000
"""The number of searches simulated at a time, which bounds the memory."""

_ENGINE, _VISITS = read_behaviour("engine"), read_behaviour("visits")
_ATTENTION = 1.0 / np.arange(1, PAGE + 1) ** _VISITS.attention


@dataclass(frozen=True)
class Visits:
    """`C` clicks and what followed them. Times are microseconds since 1970 UTC, or −1."""

    search: Ints  # [C]
    document: Ints  # [C] the listing clicked
    grade: Ints  # [C] its grade for the search
    click: Ints  # [C] time of the click
    message: Ints  # [C] time of the message to the seller
    reply: Ints  # [C] time of the seller's reply
    shown_relevant: float  # the share of exact matches among the listings shown, clicked or not


class SearchEngine:
    """The engine behind the log: lexical matching of words, popularity and noise. It makes many errors.

    It ranks listings of the shopper's country. Candidates are the wanted listing (mostly), others of its type, its
    thing and its department, and any. Their score is a sum: the query's word for the thing is in the title (1; a
    synonym or another language: 0.6), the modifier (0.4), each stated attribute that is written somewhere (0.3),
    popularity (0.2 · its logarithm) and noise (0.45).
    """

    def __init__(self, listings: Listings) -> None:
        """Group the listings by country and each level of likeness."""
        lexicon = load_lexicon()
        self._listings = listings
        self._levels = []
        for key, size, name in (
            (np.zeros_like(listings.thing), 1, "any"),
            (listings.department, len(lexicon.departments), "department"),
            (listings.thing, len(lexicon.things), "thing"),
            (listings.product_type, len(lexicon.type_thing), "type"),
        ):
            group = listings.country * size + key
            count = np.bincount(group, minlength=len(COUNTRIES) * size)
            self._levels.append(
                (key, size, _ENGINE.drawn[name], np.argsort(group, kind="stable"), np.cumsum(count) - count, count)
            )

    def search(self, searches: Searches, rows: Ints, rng: np.random.Generator) -> tuple[Ints, Bools]:
        """The listings shown for each of the searches `rows`, best first.

        Returns:
            The listings, `[R, PAGE]`, and which of them are shown: a page with fewer candidates ends early.
        """
        documents = self._candidates(searches, rows, rng)
        score = self._score(searches, rows, documents) + rng.normal(scale=_ENGINE.noise, size=documents.shape)
        # A listing that was retrieved twice is shown once.
        order = np.argsort(documents, axis=1, kind="stable")
        in_order = np.take_along_axis(documents, order, axis=1)
        repeated = np.zeros(documents.shape, dtype=bool)
        np.put_along_axis(repeated, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
        best = np.argsort(np.where(repeated, np.inf, -score), axis=1, kind="stable")[:, :PAGE]
        return np.take_along_axis(documents, best, axis=1), ~np.take_along_axis(repeated, best, axis=1)

    def _candidates(self, searches: Searches, rows: Ints, rng: np.random.Generator) -> Ints:
        target, drawn = searches.target[rows], []
        for key, size, number, order, start, count in self._levels:
            group = searches.country[rows] * size + key[target]
            position = (rng.random((len(rows), number)) * count[group][:, None]).astype(np.int64)
            drawn.append(order[start[group][:, None] + position])
        retrieved = rng.random((len(rows), 1)) < _ENGINE.target_retrieved
        return np.concatenate([np.where(retrieved, target[:, None], drawn[0][:, :1]), *drawn], axis=1)

    def _score(self, searches: Searches, rows: Ints, documents: Ints) -> Floats:
        listings = self._listings
        named = listings.thing_form[documents] != UNSTATED
        same_thing = (listings.thing[documents] == searches.thing[rows, None]) & named
        same_language = listings.language[documents] == searches.language[rows, None]
        same_word = same_thing & same_language & (listings.thing_form[documents] == searches.thing_form[rows, None])
        modifier, stated = searches.modifier[rows, None], searches.stated[rows, None, :]
        same_modifier = (modifier != UNSTATED) & (listings.modifier[documents] == modifier) & named
        same_values = (stated != UNSTATED) & (stated == listings.attributes[documents]) & listings.written[documents]
        return (
            np.where(same_word, _ENGINE.named, np.where(same_thing, _ENGINE.named_otherwise, 0.0))
            + _ENGINE.modifier * same_modifier
            + _ENGINE.attribute * same_values.sum(axis=-1)
            + _ENGINE.popular * np.log(listings.popularity[documents])
        )


def choose_clicks(grades: Ints, shown: Bools, rng: np.random.Generator) -> Ints:
    """Draw the clicks on pages of results, given as grades `[R, PAGE]`: row and position on the page, `[C, 2]`.

    P(click) = r^−0.6 · attraction(grade), for rank r = 1, 2, ...
    """
    return np.argwhere(shown & (rng.random(grades.shape) < _ATTENTION * _VISITS.attraction[grades])).astype(np.int64)


def make_visits(listings: Listings, searches: Searches, rng: np.random.Generator) -> Visits:
    """Show every search its results, and draw clicks, messages and replies.

    The chances that a listing is clicked, asked about and answered rise with its grade: a seller who does not have
    what the shopper wants answers less often, and later.
    """
    engine = SearchEngine(listings)
    chunks: list[tuple[Ints, ...]] = []
    num_relevant = num_shown = 0
    for start in range(0, len(searches), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(searches)))
        documents, shown = engine.search(searches, rows, rng)
        grades = grade(listings, searches, rows, documents)
        num_relevant += int((shown & (grades == EXACT)).sum())
        num_shown += int(shown.sum())
        row, position = choose_clicks(grades, shown, rng).T
        chunks.append((rows[row], documents[row, position], grades[row, position], position))
    search, document, level, position = (np.concatenate(column) for column in zip(*chunks, strict=True))

    number = len(search)
    click = searches.time[search] + (4 + 6 * position) * SECOND + rng.integers(4 * SECOND, size=number)
    messaged = rng.random(number) < _VISITS.messaged[level]
    message = click + ((20 + rng.exponential(240, size=number)) * SECOND).astype(np.int64)
    answered = messaged & (rng.random(number) < _VISITS.answered[level])
    delay = rng.lognormal(np.log(_VISITS.hours_to_reply[level]), _VISITS.reply_spread) * (DAY / 24)
    reply = message + np.minimum(delay, 30 * DAY).astype(np.int64)
    message, reply = np.where(messaged, message, -1), np.where(answered, reply, -1)
    return Visits(search, document, level, click, message, reply, shown_relevant=num_relevant / num_shown)
