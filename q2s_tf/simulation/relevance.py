"""What a shopper's words ask for and how well a listing serves them: the generator's ground truth."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from q2s_tf.simulation.catalogue import COUNTRIES, Catalogue, document_ids
from q2s_tf.simulation.lexicon import UNSTATED, Lexicon
from q2s_tf.simulation.searches import Searches

EXACT, SUBSTITUTE, COMPLEMENT, IRRELEVANT = 3, 2, 1, 0

POOL = {EXACT: 8, SUBSTITUTE: 7, COMPLEMENT: 7, IRRELEVANT: 6}
"""How many listings of each grade are judged for one query, where the country has so many."""

_RATERS, _RATER_ERROR = 3, 0.1


def grade(
    lexicon: Lexicon, catalogue: Catalogue, searches: Searches, rows: NDArray[np.int64], documents: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Grades listings for searches, `[R, K]`: 3 exact, 2 substitute, 1 complement, 0 irrelevant.

    The right thing: 3 − min(2, number of stated properties that the listing contradicts or does not show), where
    the properties are the type's modifier and the five attributes. Another thing of the department: 1. Else 0.

    Args:
        lexicon: the words.
        catalogue: the listings.
        searches: the searches.
        rows: `[R]` which searches.
        documents: `[R, K]` the listings to grade for each of them.
    """
    stated, modifier = searches.stated[rows, None, :], searches.modifier[rows, None]
    wrong = ((stated != UNSTATED) & (stated != catalogue.attributes[documents])).sum(axis=-1)
    wrong += (modifier != UNSTATED) & (modifier != catalogue.modifier[documents])
    thing = searches.thing[rows]
    same_thing = catalogue.thing[documents] == thing[:, None]
    same_department = catalogue.department[documents] == lexicon.thing_department[thing][:, None]
    return np.where(same_thing, EXACT - np.minimum(wrong, 2), np.where(same_department, COMPLEMENT, IRRELEVANT))


def judge(
    lexicon: Lexicon, catalogue: Catalogue, searches: Searches, queries: int, rng: np.random.Generator
) -> dict[str, pa.Table]:
    """Has simulated raters judge pools of listings for queries of the last quarter of the log.

    Queries are drawn by frequency, without replacement, and only where their words have one meaning. A pool holds
    what a search system would show a shopper of that country: exact matches, the right thing with a wrong property,
    other things of the department, others altogether (`POOL`). The grade is the median of three raters, each of whom
    is one grade off one time in ten.

    Returns:
        The judgements for ``validation`` and for ``test``; no query text is in both.
    """
    rows = _choose_queries(searches, queries, rng)
    tables = {}
    for name, part in (("validation", rows[::2]), ("test", rows[1::2])):
        pools = [_pool(lexicon, catalogue, searches, int(row), rng) for row in part]
        row = np.repeat(part, [len(documents) for documents, _ in pools])
        documents = np.concatenate([documents for documents, _ in pools])
        truth = np.concatenate([grades for _, grades in pools])
        columns: dict[str, Any] = {
            "query": [searches.text[i] for i in row.tolist()],
            "country": np.array(list(COUNTRIES))[searches.country[row]],
            "document_id": document_ids(documents),
            "relevance": pa.array(_rate(truth, rng), pa.float32()),
        }
        tables[name] = pa.table(columns)
    return tables


def _choose_queries(searches: Searches, queries: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """One search (its row) for each of ``queries`` distinct query texts with one meaning."""
    text = np.array(searches.text)
    _, number = np.unique(text, return_inverse=True)
    meaning = np.column_stack([number, searches.thing, searches.modifier, searches.stated])
    meanings = np.bincount(np.unique(meaning, axis=0)[:, 0])
    late = np.flatnonzero(searches.time >= np.quantile(searches.time, 0.75))
    late = rng.permutation(late[(meanings == 1)[number[late]]])
    _, first = np.unique(number[late], return_index=True)
    return late[np.sort(first)][:queries]


def _pool(
    lexicon: Lexicon, catalogue: Catalogue, searches: Searches, row: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    there = rng.permutation(np.flatnonzero(catalogue.country == searches.country[row]))
    grades = grade(lexicon, catalogue, searches, np.array([row]), there[None])[0]
    chosen = np.concatenate([np.flatnonzero(grades == level)[:size] for level, size in POOL.items()])
    return there[chosen], grades[chosen]


def _rate(truth: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
    slip = rng.choice([-1, 0, 1], size=(_RATERS, len(truth)), p=[_RATER_ERROR / 2, 1 - _RATER_ERROR, _RATER_ERROR / 2])
    return np.median(np.clip(truth + slip, IRRELEVANT, EXACT), axis=0).astype(np.float32)
