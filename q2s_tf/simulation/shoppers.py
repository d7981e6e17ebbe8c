"""What shoppers and sellers do with a page of results: clicks, messages, replies."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from q2s_tf.simulation.catalogue import Catalogue
from q2s_tf.simulation.engine import PAGE, Engine
from q2s_tf.simulation.lexicon import Lexicon
from q2s_tf.simulation.relevance import EXACT, grade
from q2s_tf.simulation.searches import DAY, SECOND, Searches

CHUNK = 20_000
"""Searches simulated at a time: bounds the memory."""

# By grade: irrelevant, complement, substitute, exact.
_ATTRACTION = np.array([0.05, 0.09, 0.24, 0.42])
_ASKS = np.array([0.05, 0.10, 0.24, 0.52])
_ANSWERED = np.array([0.30, 0.40, 0.55, 0.82])
_HOURS_TO_REPLY = np.array([8.0, 7.0, 5.0, 3.0])  # median
_REPLY_SPREAD = 1.6  # sigma of the logarithm: with a median of 3 hours one reply in ten takes over 24
_ATTENTION = 1.0 / np.arange(1, PAGE + 1) ** 0.6


@dataclass(frozen=True)
class Visits:
    """``C`` clicks and what came of them."""

    search: NDArray[np.int64]
    document: NDArray[np.int64]
    grade: NDArray[np.int64]
    click: NDArray[np.int64]
    """`[C]` time of the click, microseconds since 1970 UTC."""
    message: NDArray[np.int64]
    """`[C]` time of the message to the seller, or −1."""
    reply: NDArray[np.int64]
    """`[C]` time of the seller's reply, or −1."""
    shown_relevant: float
    """The share of exact matches among the listings shown, clicked or not."""


def choose_clicks(grades: NDArray[np.int64], taken: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """Which listings of pages, `[R, PAGE]`, are clicked, of the places taken: rows and places, `[C, 2]`.

    P(click) = r^−0.6 · attraction(grade), for rank r = 1, 2, ...
    """
    return np.argwhere(taken & (rng.random(grades.shape) < _ATTENTION * _ATTRACTION[grades])).astype(np.int64)


def visit(
    lexicon: Lexicon,
    catalogue: Catalogue,
    searches: Searches,
    rng: np.random.Generator,
) -> Visits:
    """Shows every search its results and lets shoppers click, write and be answered.

    The chances that a listing is clicked, asked about, and answered all rise with its grade: a seller who has not got
    what is asked for answers less often, and later.
    """
    engine = Engine(lexicon, catalogue)
    chunks: list[tuple[NDArray[np.int64], ...]] = []
    relevant = shown = 0
    for start in range(0, len(searches), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(searches)))
        documents, taken = engine.show(searches, rows, rng)
        grades = grade(lexicon, catalogue, searches, rows, documents)
        relevant += int((taken & (grades == EXACT)).sum())
        shown += int(taken.sum())
        row, place = choose_clicks(grades, taken, rng).T
        chunks.append((rows[row], documents[row, place], grades[row, place], place))
    search, document, level, place = (np.concatenate(column) for column in zip(*chunks, strict=True))

    number = len(search)
    click = searches.time[search] + (4 + 6 * place) * SECOND + rng.integers(4 * SECOND, size=number)
    asks = rng.random(number) < _ASKS[level]
    message = click + ((20 + rng.exponential(240, size=number)) * SECOND).astype(np.int64)
    answered = asks & (rng.random(number) < _ANSWERED[level])
    delay = rng.lognormal(np.log(_HOURS_TO_REPLY[level]), _REPLY_SPREAD) * (DAY / 24)
    reply = message + np.minimum(delay, 30 * DAY).astype(np.int64)
    return Visits(
        search=search,
        document=document,
        grade=level,
        click=click,
        message=np.where(asks, message, -1),
        reply=np.where(answered, reply, -1),
        shown_relevant=relevant / shown,
    )
