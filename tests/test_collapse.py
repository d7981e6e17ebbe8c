"""Collapsed results compared with a brute-force oracle, for every kind of index."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from q2s_tf.index import DocumentRows, IndexedDocuments, build_index
from q2s_tf.models import Towers
from q2s_tf.serving.retriever import RetrieverServable

DIMENSION, BASE, DELTA = 16, 3_000, 150
COUNT = BASE + DELTA
GROUPS = 300


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


class Catalogue:
    """Documents in clusters. Half of them are in a group of their own; one group has about a quarter of all."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        centres = generator.normal(size=(60, DIMENSION))
        noise = generator.normal(scale=0.4, size=(COUNT, DIMENSION))
        self.vectors = unit(centres[generator.integers(60, size=COUNT)] + noise)
        self.groups = np.minimum(generator.geometric(0.004, COUNT), GROUPS) + 2**40
        self.groups[generator.random(COUNT) < 0.25] = 7
        single = generator.random(COUNT) < 0.5
        self.groups[single] = -1 - np.flatnonzero(single)
        self.country = np.where(generator.random(COUNT) < 0.2, b"jp", b"us").astype(object)
        self.alive = (np.arange(COUNT) % 9 != 0) | (np.arange(COUNT) >= BASE)
        self.queries = unit(self.vectors[::500] + generator.normal(scale=0.3, size=(7, DIMENSION)))

    def expected(self, query: np.ndarray, k: int, country: str, min_score: float) -> list[tuple[float, int]]:
        """The k best pairs of score and group."""
        best: dict[int, float] = {}
        for row, score in enumerate(self.vectors @ query):
            if self.alive[row] and country.encode() in (b"", self.country[row]) and score >= min_score:
                best[self.groups[row]] = max(score, best.get(self.groups[row], -2.0))
        return sorted(((score, group) for group, score in best.items()), reverse=True)[:k]


CATALOGUE = Catalogue()


@pytest.fixture(scope="module", params=["exact", "partitioned", "scann"])
def retriever(request: pytest.FixtureRequest, towers: Towers) -> RetrieverServable:
    index, order = build_index(request.param, CATALOGUE.vectors[:BASE], 1)
    rows = np.concatenate([order, np.arange(BASE, COUNT)])
    ids = pa.array([str(row).encode() for row in rows], pa.large_binary())
    documents = DocumentRows(ids, {"country": CATALOGUE.country[rows]}, CATALOGUE.groups[rows])
    indexed = IndexedDocuments(documents, CATALOGUE.alive[order], CATALOGUE.vectors[BASE:])
    return RetrieverServable(towers.query, index, indexed)


@pytest.mark.parametrize("effort", [1, 10**6])
def test_results_are_the_best_documents_of_the_best_groups(retriever: RetrieverServable, effort: int) -> None:
    """With a high effort the answer is the oracle's; with any effort it is complete, and each group occurs once."""
    by_embedding: Any = retriever.endpoints["by_embedding"]
    by_embedding = by_embedding.get_concrete_function()
    generator = np.random.default_rng(effort)
    hits = total = 0
    for k in (1, 3, 10, 60, 2_000):
        for min_score in (-1.0, 0.3):
            countries = generator.choice(["", "jp", "us", "nowhere"], len(CATALOGUE.queries))
            answer = by_embedding(
                embedding=tf.constant(CATALOGUE.queries),
                k=tf.constant(k),
                effort=tf.constant(effort),
                min_score=tf.constant(min_score),
                filter_country=tf.constant(countries),
            )
            answers = zip(answer["document_id"].numpy(), answer["score"].numpy(), strict=True)
            for query, country, (ids, scores) in zip(CATALOGUE.queries, countries, answers, strict=True):
                expected = CATALOGUE.expected(query, k, country, min_score)
                documents = np.array([int(name) for name in ids if name], int)
                assert len(ids) == k
                assert len(documents) == len(expected) or (effort == 1 and min_score > -1)
                assert (np.diff(scores) <= 1e-6).all()
                groups = CATALOGUE.groups[documents]
                assert len(set(groups)) == len(groups)
                assert CATALOGUE.alive[documents].all()
                assert set(CATALOGUE.country[documents]) <= ({country.encode()} if country else {b"us", b"jp"})
                np.testing.assert_allclose(scores[: len(documents)], CATALOGUE.vectors[documents] @ query, atol=1e-5)
                hits += len({group for _, group in expected} & set(groups.tolist()))
                total += len(expected)
                if effort > 1 and retriever.index.parameters["kind"] != "scann":
                    np.testing.assert_allclose(scores[: len(documents)], [score for score, _ in expected], atol=1e-5)
    assert hits / total > (0.97 if effort > 1 else 0.3)
