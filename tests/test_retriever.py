"""Filters, tombstones and the delta of a retriever, compared with NumPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from q2s_tf.index import DocumentRows, IndexedDocuments, build_index
from q2s_tf.models import Towers
from q2s_tf.serving.retriever import RetrieverServable

DIMENSION, BASE, DELTA = 16, 30_000, 300
COUNT = BASE + DELTA
Answer = Callable[..., tuple[np.ndarray, np.ndarray]]


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """A catalogue in clusters; the last of it is the delta."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(100, DIMENSION))
    return unit(centres[generator.integers(100, size=COUNT)] + generator.normal(scale=0.4, size=(COUNT, DIMENSION)))


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    """`country`: more than 20,000 US, 40 JP. `language`: about half en, none in two thirds of JP."""
    generator = np.random.default_rng(1)
    country = np.array([b"us"] * COUNT, object)
    country[generator.random(COUNT) < 0.2] = b"de"
    country[generator.choice(COUNT, 40, replace=False)] = b"jp"
    language = np.where(generator.random(COUNT) < 0.5, b"en", b"fr").astype(object)
    language[np.flatnonzero(country == b"jp")[::3]] = b""
    colour = np.where(generator.random(COUNT) < 0.85, b"red", b"blue").astype(object)
    colour[country == b"us"] = b"blue"
    colour[np.flatnonzero(country == b"us")[:25]] = b"red"
    return {"country": country, "language": language, "colour": colour}


@pytest.fixture(scope="module")
def alive() -> np.ndarray:
    """Every seventh document of the index is deleted."""
    return (np.arange(COUNT) % 7 != 0) | (np.arange(COUNT) >= BASE)


@pytest.fixture(scope="module", params=["exact", "partitioned", "scann"])
def retriever(
    request: pytest.FixtureRequest,
    vectors: np.ndarray,
    columns: dict[str, np.ndarray],
    alive: np.ndarray,
    towers: Towers,
) -> RetrieverServable:
    index, order = build_index(request.param, vectors[:BASE], 1)
    rows = np.concatenate([order, np.arange(BASE, COUNT)])
    ids = pa.array([f"d{row}".encode() for row in rows], pa.large_binary())
    filters = {name: values[rows] for name, values in columns.items()}
    documents = IndexedDocuments(DocumentRows(ids, filters), alive[order], vectors[BASE:])
    return RetrieverServable(towers.query, index, documents)


def search(
    retriever: RetrieverServable,
    queries: np.ndarray,
    k: int,
    effort: int = 10**6,
    **wanted: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Document numbers (−1 where there is none) and scores; one value of a filter stands for all queries."""
    values = {name: wanted.get(name, "") for name in ("country", "language", "colour")}
    filters = {
        f"filter_{name}": tf.constant([value] * len(queries) if isinstance(value, str | bytes) else value, tf.string)
        for name, value in values.items()
    }
    function: Any = retriever.endpoints["by_embedding"]
    parameters = {"k": tf.constant(k), "effort": tf.constant(effort), "min_score": tf.constant(-1.0)}
    answer = function.get_concrete_function()(embedding=tf.constant(queries), **parameters, **filters)
    ids, scores = answer["document_id"].numpy(), answer["score"].numpy()
    assert ids.shape == scores.shape == (len(queries), min(k, COUNT))
    return np.array([[int(name[1:]) if name else -1 for name in row] for row in ids]), scores


def check(
    vectors: np.ndarray,
    query: np.ndarray,
    allowed: np.ndarray,
    documents: np.ndarray,
    scores: np.ndarray,
    recall: float,
) -> None:
    """Allowed documents only, each once, as many as there are; true scores, falling; and nearly the best ones."""
    count = min(len(documents), int(allowed.sum()))
    assert (documents[count:] == -1).all()
    assert (scores[count:] == -1).all()
    documents, scores = documents[:count], scores[:count]
    assert (documents >= 0).all(), "complete"
    assert allowed[documents].all()
    assert len(set(documents)) == count
    assert (np.diff(scores) <= 1e-6).all()
    np.testing.assert_allclose(scores, vectors[documents] @ query, atol=1e-5)
    cosines = np.where(allowed, vectors @ query, -2)
    threshold = np.sort(cosines)[::-1][:count][-1] if count else 0
    assert not count or np.mean(cosines[documents] >= threshold - 1e-5) >= recall


@pytest.fixture(scope="module")
def allowed_by(columns: dict[str, np.ndarray], alive: np.ndarray) -> Callable[..., np.ndarray]:
    """From values by column to booleans `[COUNT]`: the live documents that have them."""
    return lambda **wanted: np.all([alive, *(columns[name] == value for name, value in wanted.items())], axis=0)


@pytest.fixture(scope="module")
def queries(vectors: np.ndarray) -> np.ndarray:
    generator = np.random.default_rng(7)
    chosen = vectors[generator.integers(COUNT, size=4)]
    return unit(chosen + generator.normal(scale=0.1, size=chosen.shape))


CASES = [
    {"country": b"us"},
    {"country": b"jp"},
    {"language": b"en"},
    {"country": b"jp", "language": b"en"},
    {"country": b"us", "colour": b"red"},
    {"country": b"us", "language": b"fr", "colour": b"red"},
    {"country": b"atlantis"},
    {"country": b"us", "language": b"klingon"},
]


@pytest.mark.parametrize("wanted", CASES, ids=lambda wanted: "+".join(value.decode() for value in wanted.values()))
@pytest.mark.parametrize("effort", [1, 10**6])
def test_a_filter_returns_all_matching_documents_and_no_others(
    wanted: dict[str, bytes],
    effort: int,
    retriever: RetrieverServable,
    queries: np.ndarray,
    vectors: np.ndarray,
    allowed_by: Callable[..., np.ndarray],
) -> None:
    """With little effort the results are complete too, and exact if the filter leaves few documents."""
    allowed = allowed_by(**wanted)
    everything = effort > 1 or allowed.sum() < 100
    documents, scores = search(retriever, queries, 100, effort, **wanted)
    for query, row, row_scores in zip(queries, documents, scores, strict=True):
        check(vectors, query, allowed, row, row_scores, 0.9 if everything else 0.0)
    if allowed.sum() < 100:
        assert (np.sum(documents >= 0, axis=1) == allowed.sum()).all()


def test_each_query_of_a_batch_has_its_own_filter(
    retriever: RetrieverServable, queries: np.ndarray, vectors: np.ndarray, allowed_by: Callable[..., np.ndarray]
) -> None:
    documents, scores = search(
        retriever, queries, 10, country=["us", "", "jp", "nowhere"], language=["", "fr", "en", "en"]
    )
    rules: list[dict[str, bytes]] = [
        {"country": b"us"},
        {"language": b"fr"},
        {"country": b"jp", "language": b"en"},
        {"country": b"nowhere"},
    ]
    for query, row, row_scores, wanted in zip(queries, documents, scores, rules, strict=True):
        check(vectors, query, allowed_by(**wanted), row, row_scores, 0.8)


def test_an_empty_filter_changes_nothing(retriever: RetrieverServable, queries: np.ndarray) -> None:
    for effort in (3, 10**6):
        plain, filtered = search(retriever, queries, 20, effort), search(retriever, queries, 20, effort, country="")
        np.testing.assert_array_equal(plain[0], filtered[0])
        np.testing.assert_allclose(plain[1], filtered[1], atol=1e-6)


def test_filter_values_are_normalised(retriever: RetrieverServable, queries: np.ndarray) -> None:
    expected = search(retriever, queries, 5, country="us")[0]
    for spelling in ("US", "  us ", "ｕｓ", "Us\u200d"):
        np.testing.assert_array_equal(search(retriever, queries, 5, country=spelling)[0], expected)
    assert (search(retriever, queries, 5, country="u s")[0] == -1).all()
    np.testing.assert_array_equal(search(retriever, queries, 5, country=" \t")[0], search(retriever, queries, 5)[0])


def test_deleted_documents_are_not_returned_and_no_others_are_lost(
    retriever: RetrieverServable, queries: np.ndarray, vectors: np.ndarray, alive: np.ndarray
) -> None:
    for k, effort in ((COUNT, 1), (COUNT, 10**6), (50, 1)):
        documents, scores = search(retriever, queries[:2], k, effort)
        for query, row, row_scores in zip(queries, documents, scores, strict=False):
            check(vectors, query, alive, row, row_scores, 1.0 if k == COUNT else 0.0)


def test_the_delta_is_found_with_the_least_effort(
    retriever: RetrieverServable, vectors: np.ndarray, columns: dict[str, np.ndarray]
) -> None:
    new = np.arange(BASE, BASE + 8)
    np.testing.assert_array_equal(search(retriever, vectors[new], 1, effort=1)[0][:, 0], new)
    wanted = [value.decode() for value in columns["country"][new]]
    np.testing.assert_array_equal(search(retriever, vectors[new], 1, effort=1, country=wanted)[0][:, 0], new)


def test_inputs_of_different_lengths_are_refused(retriever: RetrieverServable, queries: np.ndarray) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="every filter must have as many values"):
        search(retriever, queries, 5, country=["us"])
    with pytest.raises(tf.errors.InvalidArgumentError, match="k must be at least 1"):
        search(retriever, queries, 0, country="us")
    retrieve: Any = retriever.endpoints["serving_default"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="query, country must have the same number of values"):
        retrieve.get_concrete_function()(query=tf.constant(["a", "b"]), country=tf.constant(["us"]))


def test_an_empty_batch_gives_empty_results(retriever: RetrieverServable) -> None:
    for wanted in ({}, {"country": "us"}):
        assert search(retriever, np.empty((0, DIMENSION), np.float32), 5, **wanted)[0].size == 0


def test_numbers_that_are_not_finite_are_refused(retriever: RetrieverServable, queries: np.ndarray) -> None:
    by_embedding: Any = retriever.endpoints["by_embedding"]
    by_embedding = by_embedding.get_concrete_function()
    filters = {f"filter_{name}": tf.constant([""] * 4) for name in ("country", "language", "colour")}
    inputs = {"k": tf.constant(3), "effort": tf.constant(0), **filters}
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(tf.errors.InvalidArgumentError, match="min_score must be a finite number"):
            by_embedding(embedding=tf.constant(queries), min_score=tf.constant(bad, tf.float32), **inputs)
        vectors = queries.copy()
        vectors[2, 3] = bad
        with pytest.raises(tf.errors.InvalidArgumentError, match="embedding must hold finite numbers"):
            by_embedding(embedding=tf.constant(vectors), min_score=tf.constant(0.0), **inputs)


def test_rows_times_k_are_bounded(retriever: RetrieverServable, queries: np.ndarray) -> None:
    """A k above the catalogue is cut to its size first, so one query may ask for everything."""
    assert (search(retriever, queries[:1], 2**31 - 1)[0] >= 0).sum() > 20_000
    many = np.repeat(queries, 20, axis=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="k times the number of queries must be at most 100000"):
        search(retriever, many, 2**31 - 1)
