"""Hybrid scores of a retriever, for every kind of index, compared with NumPy over all documents."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from q2s_tf.index import DocumentRows, IndexedDocuments, build_index
from q2s_tf.index.postings import K1, B, build_postings
from q2s_tf.index.word_counts import count_words
from q2s_tf.models import Towers
from q2s_tf.serving.retriever import RetrieverServable

DIMENSION, BASE, DELTA = 16, 22_000, 200
COUNT = BASE + DELTA
WORDS = [f"w{number}x" for number in range(60)]
TEXTS = ["w3x w10x", "w59x w1x w1x", "w37x unknown", "unknown"]


class Catalogue(NamedTuple):
    """Unit vectors `[COUNT, D]`, occurrences of each word `[COUNT, W]`, and which documents are not deleted."""

    vectors: np.ndarray
    occurrences: np.ndarray
    alive: np.ndarray
    country: np.ndarray
    groups: np.ndarray

    def bm25(self, text: str) -> np.ndarray:
        """By the formula; the average length is that of the first build, over its deleted documents too."""
        lengths = self.occurrences.sum(axis=1)
        documents = self.occurrences[self.alive]
        scores = np.zeros(COUNT)
        for word in text.split():
            if word in WORDS:
                times = self.occurrences[:, WORDS.index(word)]
                having = (documents[:, WORDS.index(word)] > 0).sum()
                idf = np.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
                scores += idf * times / (times + K1 * (1 - B + B * lengths / lengths[:BASE].mean()))
        return np.where(self.alive, scores, 0)


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    random = np.random.default_rng(3)
    centres = random.normal(size=(80, DIMENSION))
    vectors = centres[random.integers(80, size=COUNT)] + random.normal(scale=0.4, size=(COUNT, DIMENSION))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    frequency = 0.12 / (1 + np.arange(len(WORDS)))  # a few words are in many documents, most in few
    return Catalogue(
        vectors.astype(np.float32),
        random.poisson(frequency + 0.002, (COUNT, len(WORDS))),
        (np.arange(COUNT) % 9 != 0) | (np.arange(COUNT) >= BASE),
        np.where(random.random(COUNT) < 0.9, b"us", b"jp").astype(object),
        random.integers(COUNT // 2, size=COUNT),
    )


@pytest.fixture(scope="module", params=["exact", "partitioned", "scann"])
def documents(request: pytest.FixtureRequest, catalogue: Catalogue) -> tuple[str, Any, IndexedDocuments]:
    """The kind, the index, and documents of which some were added and some deleted after the build."""
    index, order = build_index(request.param, catalogue.vectors[:BASE], 1)
    texts = [" ".join(np.repeat(WORDS, row)) for row in catalogue.occurrences]
    ids = pa.array([f"d{row}".encode() for row in range(COUNT)], pa.large_binary())

    def count(part: slice) -> Any:
        return count_words([pa.record_batch({"title": texts[part]})], {"title": 1.0})

    rows = DocumentRows(ids, {"country": catalogue.country}, catalogue.groups)
    postings = build_postings(count(slice(0, BASE)), {"title": 1.0})
    built = IndexedDocuments.in_order(rows.take(np.arange(BASE)), order, DIMENSION, postings)
    added = built.add(rows.take(np.arange(BASE, COUNT)), catalogue.vectors[BASE:], count(slice(BASE, COUNT)))
    return request.param, index, added.remove(ids.filter(pa.array(~catalogue.alive)))[0]


Request = dict[str, Any]
"""k, effort, weight (λ), min_score and country of a search; those that are not given have their defaults."""
ALL_PARTITIONS = 10**6
DEFAULTS: Request = {"k": 10, "effort": ALL_PARTITIONS, "weight": -1.0, "min_score": -1.0, "country": ""}
REQUESTS: list[Request] = [
    {},
    {"k": 150},
    {"weight": 0.0},
    {"weight": 2.0, "k": 3},
    {"country": "jp", "k": 30},
    {"country": "us"},
    {"country": "fr"},
    {"min_score": 0.9},
]


class Searcher:
    """A retriever over the documents, with chosen query vectors in place of those of the texts."""

    def __init__(self, towers: Towers, documents: tuple[str, Any, IndexedDocuments], collapse: bool):
        self.kind, index, indexed = documents
        self.collapse = collapse
        if not collapse:
            indexed = replace(indexed, rows=indexed.rows._replace(groups=None))
        retriever = RetrieverServable(towers.query, index, indexed, lexical_weight=0.3)

        @tf.function
        def search(queries: Any, texts: Any, k: Any, effort: Any, weight: Any, min_score: Any, country: Any) -> Any:
            return retriever._search(queries, k, effort, min_score, country, words=(texts, weight))

        self._search = search

    def __call__(self, queries: np.ndarray, texts: list[str], request: Request) -> dict[str, np.ndarray]:
        values = DEFAULTS | request
        values["country"] = [values["country"]] * len(queries)
        answer = self._search(
            tf.constant(queries), tf.constant(texts), **{n: tf.constant(v) for n, v in values.items()}
        )
        return {name: value.numpy() for name, value in answer.items()}


def check(searcher: Searcher, catalogue: Catalogue, texts: list[str], request: Request, seed: int) -> list[float]:
    """Compares an answer with all documents; returns the share of the best documents that each query has.

    Only a search of all partitions, without quantisation, must find every document that a minimal score admits.
    """
    queries = catalogue.vectors[np.random.default_rng(seed).integers(COUNT, size=len(texts))]
    answer, values, shares = searcher(queries, texts, request), DEFAULTS | request, []
    weight = 0.3 if values["weight"] < 0 else values["weight"]
    for number, text in enumerate(texts):
        lexical = catalogue.bm25(text)
        lexical = lexical / (lexical.max() or 1.0) if weight else np.zeros(COUNT)
        cosines = catalogue.vectors @ queries[number]
        scores = cosines + weight * lexical
        allowed = catalogue.alive & (scores >= values["min_score"])
        if values["country"]:
            allowed &= catalogue.country == values["country"].encode()
        ids = [int(name[1:]) for name in answer["document_id"][number] if name]
        near = np.abs(scores - values["min_score"]) < 2e-6
        assert (allowed | near)[ids].all()
        np.testing.assert_allclose(answer["score"][number][: len(ids)], scores[ids], atol=2e-6)
        np.testing.assert_allclose(answer["embedding_score"][number][: len(ids)], cosines[ids], atol=2e-6)
        np.testing.assert_allclose(answer["lexical_score"][number][: len(ids)], lexical[ids], atol=2e-6)
        assert (np.diff(answer["score"][number][: len(ids)]) <= 0).all()
        order = np.flatnonzero(allowed)[np.argsort(-scores[allowed], kind="stable")]
        if searcher.collapse:
            assert len(set(catalogue.groups[ids])) == len(ids)
            order = order[np.sort(np.unique(catalogue.groups[order], return_index=True)[1])]
        expected = order[: values["k"]]
        complete = searcher.kind == "exact" or (searcher.kind == "partitioned" and values["effort"] == ALL_PARTITIONS)
        assert len(ids) == len(expected) or near.any() or (len(ids) < len(expected) and not complete)
        if len(expected):
            found = np.sum(scores[ids] >= scores[expected[-1]] - 2e-6)
            shares.append(min(1.0, float(found) / len(expected)))
    return shares


@pytest.mark.parametrize("collapse", [False, True])
def test_results_are_the_best_of_all_documents(
    documents: tuple[str, Any, IndexedDocuments], catalogue: Catalogue, towers: Towers, collapse: bool
) -> None:
    searcher = Searcher(towers, documents, collapse)
    shares = [share for request in REQUESTS for share in check(searcher, catalogue, TEXTS, request, seed=8)]
    assert np.min(shares) == 1 if searcher.kind != "scann" else np.mean(shares) > 0.9


def test_no_op_makes_other_reads_of_a_variable_copy_it(
    documents: tuple[str, Any, IndexedDocuments], towers: Towers
) -> None:
    """`ResourceGather` does so; a search that reads all embeddings then takes tens of times as long."""
    retriever = RetrieverServable(towers.query, *documents[1:], lexical_weight=0.3)
    for name in ("retrieve", "by_embedding"):
        endpoint: Any = retriever.endpoints[name]
        graph = endpoint.get_concrete_function().graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        reads, gathers = (
            {tf.dtypes.as_dtype(node.attr["dtype"].type) for node in nodes if node.op == op}
            for op in ("ReadVariableOp", "ResourceGather")
        )
        assert tf.float32 in reads
        assert gathers == {tf.string}, "the ids alone"
        assert tf.string not in reads or documents[0] == "scann", "ScaNN reads its small config"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("collapse", [False, True])
def test_30_000_random_searches(
    documents: tuple[str, Any, IndexedDocuments], catalogue: Catalogue, towers: Towers, collapse: bool
) -> None:
    """5,000 of each kind of index and of each way to return groups."""
    searcher, random = Searcher(towers, documents, collapse), np.random.default_rng(9)
    exact, partial = [], []
    for number in range(1_250):
        request = {
            "k": int(random.choice([1, 2, 10, 100, 500])),
            "weight": float(random.choice([-1.0, 0.0, 0.05, 0.5, 3.0])),
            "min_score": float(random.choice([-1.0, -1.0, 0.2, 0.8])),
            "country": str(random.choice(["", "", "us", "jp", "fr"])),
            "effort": int(random.choice([0, 1, ALL_PARTITIONS, ALL_PARTITIONS])),
        }
        texts = [" ".join(random.choice([*WORDS, "", "none"], random.integers(1, 5))) for _ in range(4)]
        shares = check(searcher, catalogue, texts, request, seed=number)
        (exact if request["effort"] == ALL_PARTITIONS else partial).extend(shares)
    if searcher.kind == "scann":
        assert np.mean(exact) > 0.9
    else:
        assert np.min(exact) == 1
    assert np.mean(partial) > 0.8
