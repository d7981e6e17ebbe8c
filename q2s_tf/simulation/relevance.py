"""How well listings match searches, which the generator knows, and the judgements of simulated raters."""

import numpy as np
import pyarrow as pa

from q2s_tf.simulation.lexicon import UNSTATED, Ints, load_lexicon, read_behaviour
from q2s_tf.simulation.listings import COUNTRIES, Listings, ids
from q2s_tf.simulation.searches import Searches

EXACT, SUBSTITUTE, COMPLEMENT, IRRELEVANT = 3, 2, 1, 0

_RATERS = read_behaviour("raters")


def grade(listings: Listings, searches: Searches, rows: Ints, documents: Ints) -> Ints:
    """Grade listings for searches: 3 exact, 2 substitute, 1 complement, 0 irrelevant.

    A listing of the right thing gets 3 − min(2, number of stated properties that it contradicts or does not show),
    where the properties are the type's modifier and the five attributes. Another thing of the department gets 1, any
    other listing 0.

    Args:
        listings: All listings.
        searches: All searches.
        rows: `[R]` the searches to grade for.
        documents: `[R, K]` the listings to grade for each of them.

    Returns:
        The grades, `[R, K]`.
    """
    stated, modifier, thing = searches.stated[rows, None, :], searches.modifier[rows, None], searches.thing[rows, None]
    wrong = ((stated != UNSTATED) & (stated != listings.attributes[documents])).sum(axis=-1)
    wrong += (modifier != UNSTATED) & (modifier != listings.modifier[documents])
    same_department = listings.department[documents] == load_lexicon().thing_department[thing]
    other = np.where(same_department, COMPLEMENT, IRRELEVANT)
    return np.where(listings.thing[documents] == thing, EXACT - np.minimum(wrong, 2), other)


def judge(listings: Listings, searches: Searches, queries: int, rng: np.random.Generator) -> dict[str, pa.Table]:
    """Let simulated raters judge pools of listings for queries of the last quarter of the log.

    Queries are drawn by frequency, without replacement, and only if their words have one meaning. A pool holds what a
    search system would show a shopper of that country: exact matches, the right thing with a wrong property, other
    things of the department, other listings. The grade is the median of three raters, each of whom is one
    grade off one time in ten.

    Returns:
        The judgements for `validation` and for `test`; no query text is in both.
    """
    rows = _choose_queries(searches, queries, rng)
    tables = {}
    for name, part in (("validation", rows[::2]), ("test", rows[1::2])):
        pools = [_pool(listings, searches, row, rng) for row in part]
        row = np.repeat(part, [len(documents) for documents, _ in pools])
        documents, truth = (np.concatenate(column) for column in zip(*pools, strict=True))
        error = (_RATERS.error / 2, 1 - _RATERS.error, _RATERS.error / 2)
        slip = rng.choice([-1, 0, 1], size=(_RATERS.number, len(truth)), p=error)
        rating = np.median(np.clip(truth + slip, IRRELEVANT, EXACT), axis=0)
        tables[name] = pa.table({
            "query": [searches.text[i] for i in row.tolist()],
            "country": np.array(list(COUNTRIES))[searches.country[row]],
            "document_id": ids("d", documents),
            "relevance": pa.array(rating.astype(np.float32)),
        })  # fmt: skip
    return tables


def _choose_queries(searches: Searches, queries: int, rng: np.random.Generator) -> Ints:
    """One search (its row) for each of `queries` distinct query texts with one meaning."""
    _, number = np.unique(np.array(searches.text), return_inverse=True)
    meaning = np.column_stack([number, searches.thing, searches.modifier, searches.stated])
    meanings = np.bincount(np.unique(meaning, axis=0)[:, 0])
    late = np.flatnonzero(searches.time >= np.quantile(searches.time, 0.75))
    late = rng.permutation(late[(meanings == 1)[number[late]]])
    _, first = np.unique(number[late], return_index=True)
    return late[np.sort(first)][:queries]


def _pool(listings: Listings, searches: Searches, row: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """The listings to judge for the search `row`, and their grades."""
    local = rng.permutation(np.flatnonzero(listings.country == searches.country[row]))
    grades = grade(listings, searches, np.array([row]), local[None])[0]
    chosen = np.concatenate([np.flatnonzero(grades == level)[: _RATERS.pool[level]] for level in range(EXACT, -1, -1)])
    return local[chosen], grades[chosen]
