"""Shoppers: who they are, when they come, what they want and what they type."""

from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from q2s_tf.simulation.catalogue import COUNTRIES, Catalogue, draw_people, type_shares
from q2s_tf.simulation.lexicon import COLOUR, UNSTATED, Lexicon, choose_forms
from q2s_tf.simulation.wording import write_query

SECOND = 1_000_000
"""One second in the unit of all times here, microseconds since 1970 UTC."""
DAY = 86_400 * SECOND

_SESSIONS_PER_USER = 4
_SEARCHES_PER_SESSION = (0.5, 0.3, 0.2)  # 1, 2, 3
_SAME_WISH = 0.6
_FOREIGN_LISTING = 0.6  # weight of a listing in another language than the shopper's query
_ENGLISH_ABROAD = 0.10
_DEPTH = (0.30, 0.25, 0.25, 0.13, 0.07)  # thing only, full type, type and 1, 2, 3 attributes
_PREFIX = 0.15  # of the queries that name the thing only
_OTHER_COLOUR = 0.05
_ASKED = (1.0, 0.7, 0.8, 0.3, 0.6)  # how readily each attribute is asked for, in the order of ATTRIBUTES
_PAUSE = 240 * SECOND  # between the searches of a session, on average
_HOURS = (2, 1, 1, 1, 1, 1, 2, 3, 4, 4, 4, 5, 6, 5, 5, 5, 6, 7, 9, 10, 10, 9, 6, 3)  # visits by hour of the day


@dataclass(frozen=True)
class Searches:
    """``S`` searches in order of time within each session."""

    user: NDArray[np.int64]
    country: NDArray[np.int64]
    language: NDArray[np.int64]
    time: NDArray[np.int64]
    """`[S]` microseconds since 1970 UTC."""
    target: NDArray[np.int64]
    """`[S]` the listing that gave rise to the wish."""
    thing: NDArray[np.int64]
    modifier: NDArray[np.int64]
    """`[S]` the modifier the query states, or `UNSTATED`."""
    stated: NDArray[np.int64]
    """`[S, 5]` the attributes the query states, or `UNSTATED`."""
    thing_form: NDArray[np.int64]
    prefix: NDArray[np.bool_]
    text: list[str]

    def __len__(self) -> int:
        """The number of searches."""
        return len(self.user)


def make_searches(
    lexicon: Lexicon, catalogue: Catalogue, users: int, days: int, start: datetime, rng: np.random.Generator
) -> Searches:
    """Draws the searches of ``users`` shoppers over ``days`` days from ``start``."""
    text_rng = Random(int(rng.integers(2**63)))
    user_country, user_language = draw_people(lexicon, users, rng)
    sessions = users * _SESSIONS_PER_USER
    # Squaring a uniform number makes some shoppers come often and most seldom.
    session_user = (rng.random(sessions) ** 2 * users).astype(np.int64)
    hour = rng.choice(24, size=sessions, p=np.array(_HOURS) / sum(_HOURS))
    session_time = int(start.timestamp()) * SECOND + rng.integers(days, size=sessions) * DAY
    session_time += hour * (DAY // 24) + rng.integers(DAY // 24, size=sessions)

    length = rng.choice(3, size=sessions, p=_SEARCHES_PER_SESSION) + 1
    session = np.repeat(np.arange(sessions), length)
    step = np.arange(len(session)) - np.repeat(np.cumsum(length) - length, length)
    user = session_user[session]
    country = user_country[user]
    language = user_language[user].copy()
    language[rng.random(len(user)) < _ENGLISH_ABROAD] = lexicon.languages.index("en")

    target = _choose_targets(lexicon, catalogue, country, language, rng)
    # In a session many shoppers search again for the same thing, in more words.
    fresh = (step == 0) | (rng.random(len(user)) >= _SAME_WISH)
    origin = np.maximum.accumulate(np.where(fresh, np.arange(len(user)), 0))
    target, language = target[origin], language[origin]
    depth = rng.choice(len(_DEPTH), size=len(user), p=_DEPTH)
    depth = np.minimum(depth + (np.arange(len(user)) - origin), len(_DEPTH) - 1)

    thing = catalogue.thing[target]
    modifier = np.where(depth >= 1, catalogue.modifier[target], UNSTATED)
    stated = _choose_attributes(catalogue.attributes[target], depth - 1, rng)
    other = (rng.random(len(user)) < _OTHER_COLOUR) & (stated[:, COLOUR] != UNSTATED)
    stated[other, COLOUR] = rng.integers(len(lexicon.values[COLOUR]), size=other.sum())
    thing_form = choose_forms(lexicon, thing, language, rng)
    prefix = (depth == 0) & (rng.random(len(user)) < _PREFIX)
    columns: tuple[NDArray[Any], ...] = (language, thing, modifier, thing_form, stated, prefix)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return Searches(
        user=user,
        country=country,
        language=language,
        time=session_time[session] + step * _PAUSE + rng.integers(_PAUSE, size=len(user)),
        target=target,
        thing=thing,
        modifier=modifier,
        stated=stated,
        thing_form=thing_form,
        prefix=prefix,
        text=[
            write_query(lexicon, tongue, noun, kind, form, wishes, cut, text_rng)
            for tongue, noun, kind, form, wishes, cut in rows
        ],
    )


def _choose_targets(
    lexicon: Lexicon,
    catalogue: Catalogue,
    country: NDArray[np.int64],
    language: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Draws a listing of the shopper's country for each search, `[S]`.

    Demand over product types is a steeper Zipf curve than supply; within a type the popular and those in the
    shopper's language are preferred.
    """
    types = len(lexicon.type_thing)
    target = np.empty(len(country), dtype=np.int64)
    for place in range(len(COUNTRIES)):
        there = np.flatnonzero(catalogue.country == place)
        supply = np.bincount(catalogue.product_type[there], minlength=types)[catalogue.product_type[there]]
        weight = type_shares(lexicon, exponent=0.8)[catalogue.product_type[there]] / supply
        weight = weight * catalogue.popularity[there] ** 0.5
        for tongue in range(len(lexicon.languages)):
            rows = np.flatnonzero((country == place) & (language == tongue))
            reach = np.cumsum(weight * np.where(catalogue.language[there] == tongue, 1.0, _FOREIGN_LISTING))
            target[rows] = there[np.searchsorted(reach / reach[-1], rng.random(len(rows)), side="right")]
    return target


def _choose_attributes(
    known: NDArray[np.int64], number: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Keeps up to ``number`` of each row's known attributes, `[S, 5]`, and sets the rest to `UNSTATED`."""
    wish = rng.random(known.shape) ** (1 / np.array(_ASKED)) * (known != UNSTATED)
    place = np.argsort(np.argsort(-wish, axis=1), axis=1)
    return np.where(place < number[:, None], known, UNSTATED)
