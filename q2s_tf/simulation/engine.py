"""The search engine that produced the log: concept-level lexical matching, popularity and noise. It errs a lot."""

import numpy as np
from numpy.typing import NDArray

from q2s_tf.simulation.catalogue import COUNTRIES, Catalogue
from q2s_tf.simulation.lexicon import UNSTATED, Lexicon
from q2s_tf.simulation.searches import Searches

PAGE = 10
"""How many listings one page of results shows."""

_FOUND = 0.9  # how often the listing behind the wish is a candidate at all
_SAME_TYPE, _SAME_THING, _SAME_DEPARTMENT, _ANY = 9, 6, 5, 3
_NAMED, _NAMED_OTHERWISE, _MODIFIER, _ATTRIBUTE, _POPULAR, _NOISE = 1.0, 0.6, 0.4, 0.3, 0.2, 0.45

Groups = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


class Engine:
    """Ranks listings of the shopper's country for a search.

    Candidates are the wanted listing (mostly), others of its type, its thing and its department, and any. Their score
    adds up: the query's word for the thing is in the title (1; a synonym or another language: 0.6), the modifier
    (0.4), each stated attribute that is written somewhere (0.3), popularity (0.2 · its logarithm) and noise (0.45).
    """

    def __init__(self, lexicon: Lexicon, catalogue: Catalogue) -> None:
        """Indexes the catalogue."""
        self._catalogue = catalogue
        self._sizes = (1, len(lexicon.departments), len(lexicon.things), len(lexicon.type_thing))
        keys = (np.zeros_like(catalogue.thing), catalogue.department, catalogue.thing, catalogue.product_type)
        self._groups = [
            _group(catalogue.country * size + key, len(COUNTRIES) * size)
            for size, key in zip(self._sizes, keys, strict=True)
        ]

    def show(
        self, searches: Searches, rows: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The listings shown for each of the searches ``rows``, best first.

        Returns:
            The listings, `[R, PAGE]`, and which places of the page are taken: one with fewer candidates than places
            ends early, and whatever stands in its last places is not shown.
        """
        documents = self._candidates(searches, rows, rng)
        score = self._score(searches, rows, documents) + rng.normal(scale=_NOISE, size=documents.shape)
        # A listing found in two ways is shown once.
        order = np.argsort(documents, axis=1, kind="stable")
        in_order = np.take_along_axis(documents, order, axis=1)
        again = np.zeros(documents.shape, dtype=bool)
        np.put_along_axis(again, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
        best = np.argsort(np.where(again, np.inf, -score), axis=1, kind="stable")[:, :PAGE]
        return np.take_along_axis(documents, best, axis=1), ~np.take_along_axis(again, best, axis=1)

    def _candidates(self, searches: Searches, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        catalogue, target, country = self._catalogue, searches.target[rows], searches.country[rows]
        wanted = (
            np.zeros_like(target),
            catalogue.department[target],
            catalogue.thing[target],
            catalogue.product_type[target],
        )
        numbers = (_ANY, _SAME_DEPARTMENT, _SAME_THING, _SAME_TYPE)
        drawn = [
            _draw(groups, country * size + key, number, rng)
            for groups, size, key, number in zip(self._groups, self._sizes, wanted, numbers, strict=True)
        ]
        anything = drawn[0][:, :1]
        found = rng.random((len(rows), 1)) < _FOUND
        return np.concatenate([np.where(found, target[:, None], anything), *drawn], axis=1)

    def _score(self, searches: Searches, rows: NDArray[np.int64], documents: NDArray[np.int64]) -> NDArray[np.float64]:
        catalogue = self._catalogue
        named = catalogue.thing_form[documents] != UNSTATED
        same_thing = (catalogue.thing[documents] == searches.thing[rows, None]) & named
        same_word = (
            same_thing
            & (catalogue.language[documents] == searches.language[rows, None])
            & (catalogue.thing_form[documents] == searches.thing_form[rows, None])
        )
        modifier, stated = searches.modifier[rows, None], searches.stated[rows, None, :]
        same_modifier = (modifier != UNSTATED) & (catalogue.modifier[documents] == modifier) & named
        same_values = (stated != UNSTATED) & (stated == catalogue.attributes[documents]) & catalogue.written[documents]
        return (
            np.where(same_word, _NAMED, np.where(same_thing, _NAMED_OTHERWISE, 0.0))
            + _MODIFIER * same_modifier
            + _ATTRIBUTE * same_values.sum(axis=-1)
            + _POPULAR * np.log(catalogue.popularity[documents])
        )


def _group(keys: NDArray[np.int64], size: int) -> Groups:
    """Listings ordered by key, where each key starts, and how many it has."""
    count = np.bincount(keys, minlength=size)
    return np.argsort(keys, kind="stable"), np.cumsum(count) - count, count


def _draw(groups: Groups, keys: NDArray[np.int64], number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``number`` listings of each key's group with replacement, `[R, number]`; no group asked for may be empty."""
    order, start, count = groups
    return order[start[keys][:, None] + (rng.random((len(keys), number)) * count[keys][:, None]).astype(np.int64)]
