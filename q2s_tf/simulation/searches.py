"""Searches: who the shoppers are, when they come, what they want and what they type."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import repeat
from random import Random
from typing import Any

import numpy as np

from q2s_tf.simulation.lexicon import COLOUR, UNSTATED, Ints, load_lexicon, read_behaviour
from q2s_tf.simulation.listings import COUNTRIES, Listings, draw_people, type_shares
from q2s_tf.simulation.wording import write_query

SECOND = 1_000_000
"""One second in the unit of all times here, microseconds since 1970 UTC."""
DAY = 86_400 * SECOND

_SHARES = read_behaviour("searches")


@dataclass(frozen=True)
class Searches:
    """`S` searches, in order of time within each session."""

    user: Ints  # [S]
    country: Ints  # [S] index in COUNTRIES
    language: Ints  # [S] index of the language of the query
    time: Ints  # [S] microseconds since 1970 UTC
    target: Ints  # [S] the listing behind the wish
    thing: Ints  # [S]
    modifier: Ints  # [S] the modifier that the query states, or UNSTATED
    stated: Ints  # [S, 5] the attributes that the query states, or UNSTATED
    thing_form: Ints  # [S] the synonym of the thing in the query
    text: list[str]  # the queries

    def __len__(self) -> int:
        """The number of searches."""
        return len(self.user)


def make_searches(listings: Listings, users: int, days: int, start: datetime, rng: np.random.Generator) -> Searches:
    """Draw the searches of `users` shoppers over `days` days from `start`."""
    lexicon = load_lexicon()
    text_rng = Random(int(rng.integers(2**63)))
    user_country, user_language = draw_people(users, rng)
    sessions = users * _SHARES.sessions_per_user
    # The square of a uniform number makes some shoppers come often and most seldom.
    session_user = (rng.random(sessions) ** 2 * users).astype(np.int64)
    hour = rng.choice(24, size=sessions, p=_SHARES.hours / sum(_SHARES.hours))
    session_time = int(start.timestamp()) * SECOND + rng.integers(days, size=sessions) * DAY
    session_time += hour * (DAY // 24) + rng.integers(DAY // 24, size=sessions)

    length = rng.choice(3, size=sessions, p=_SHARES.per_session) + 1
    session = np.repeat(np.arange(sessions), length)
    number = len(session)
    step = np.arange(number) - np.repeat(np.cumsum(length) - length, length)
    user = session_user[session]
    country, language = user_country[user], user_language[user]
    language[rng.random(number) < _SHARES.english_abroad] = lexicon.languages.index("en")

    target = _choose_targets(listings, country, language, rng)
    # In a session many shoppers search again for the same thing, in more words.
    is_new = (step == 0) | (rng.random(number) >= _SHARES.same_wish)
    origin = np.maximum.accumulate(np.where(is_new, np.arange(number), 0))
    target, language = target[origin], language[origin]
    depth = rng.choice(len(_SHARES.depth), size=number, p=_SHARES.depth)
    depth = np.minimum(depth + (np.arange(number) - origin), len(_SHARES.depth) - 1)

    thing = listings.thing[target]
    modifier = np.where(depth >= 1, listings.modifier[target], UNSTATED)
    stated = _choose_attributes(listings.attributes[target], depth - 1, rng)
    other = (rng.random(number) < _SHARES.other_colour) & (stated[:, COLOUR] != UNSTATED)
    stated[other, COLOUR] = rng.integers(len(lexicon.values[COLOUR]), size=other.sum())
    thing_form = lexicon.choose_forms(thing, language, rng)
    prefix = (depth == 0) & (rng.random(number) < _SHARES.prefix)
    columns = (language, thing, modifier, thing_form, stated, prefix)
    rows: Iterator[Any] = zip(*(column.tolist() for column in columns), repeat(text_rng))
    pause = _SHARES.pause * SECOND
    time = session_time[session] + step * pause + rng.integers(pause, size=number)
    return Searches(
        user=user, country=country, language=language, time=time, target=target, thing=thing, modifier=modifier,
        stated=stated, thing_form=thing_form, text=[write_query(*row) for row in rows],
    )  # fmt: skip


def _choose_targets(listings: Listings, country: Ints, language: Ints, rng: np.random.Generator) -> Ints:
    """Draw a listing of the shopper's country for each search, `[S]`.

    The Zipf curve of demand over product types is steeper than that of supply; within a type, popular listings and
    those in the shopper's language are preferred.
    """
    demand = type_shares(exponent=0.8)
    target = np.empty(len(country), dtype=np.int64)
    for number in range(len(COUNTRIES)):
        local = np.flatnonzero(listings.country == number)
        types = listings.product_type[local]
        weight = demand[types] / np.bincount(types, minlength=len(demand))[types]
        weight = weight * listings.popularity[local] ** 0.5
        for tongue in range(len(load_lexicon().languages)):
            rows = np.flatnonzero((country == number) & (language == tongue))
            reach = np.cumsum(weight * np.where(listings.language[local] == tongue, 1.0, _SHARES.foreign_listing))
            target[rows] = local[np.searchsorted(reach / reach[-1], rng.random(len(rows)), side="right")]
    return target


def _choose_attributes(known: Ints, number: Ints, rng: np.random.Generator) -> Ints:
    """Keep up to `number` of each row's known attributes, `[S, 5]`, and set the rest to `UNSTATED`."""
    wish = rng.random(known.shape) ** (1 / _SHARES.stated) * (known != UNSTATED)
    rank = np.argsort(np.argsort(-wish, axis=1), axis=1)
    return np.where(rank < number[:, None], known, UNSTATED)
