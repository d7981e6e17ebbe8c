"""Hybrid search in one collection, with the score of the retriever.

    score(d) = cos(q, d) + λ · BM25(q, d) / max BM25(q)

The candidates are the best documents of a search by cosine and of a search by BM25, and both parts are exact for each
of them. Milvus's own rankers of a hybrid search leave out the part that the other search did not return.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from q2s_tf.milvus.collection_rows import BM25, ID, VECTOR
from q2s_tf.milvus.filter_expressions import any_of
from q2s_tf.milvus.milvus_connection import engine_errors
from q2s_tf.serving.retriever import CANDIDATES

if TYPE_CHECKING:
    from pymilvus import MilvusClient

FETCHED_IDS = 500
"""Vectors that one request fetches."""
Scores = dict[str, float]
"""Scores by document, best first."""


class Ranked(NamedTuple):
    """The best documents of a query, best first: their ids, and scores `[K]` with both parts."""

    document_ids: list[str]
    scores: np.ndarray
    cosines: np.ndarray
    lexical: np.ndarray


class HybridSearch:
    """Searches one collection.

    Every method raises `ServingError` if Milvus does not succeed.

    Args:
        client: Connected to Milvus.
        name: The collection.
        timeout_seconds: Deadline of each request.
    """

    def __init__(self, client: "MilvusClient", name: str, timeout_seconds: float):
        self._client, self._name, self._timeout_seconds = client, name, timeout_seconds

    def search(self, vectors: np.ndarray, terms: list[str], expression: str, k: int, weight: float) -> list[Ranked]:
        """The best `k` documents of each query.

        Args:
            vectors: Unit vectors `[B, D]`.
            terms: The terms of each query, of `query_terms`.
            expression: The filter of all of them; "" for none.
            k: Documents of each query.
            weight: λ; 0 for cosines alone.
        """
        limit = max(k, CANDIDATES) if weight > 0 else k
        by_cosine = self.by_cosine(vectors, expression, limit)
        if weight <= 0:
            return [_rank(cosines, {}, 1.0, weight, k) for cosines in by_cosine]
        by_words = self._by_words(terms, expression, limit)
        highest = self._by_words(terms, "", 1) if expression else by_words
        self._add_cosines(by_cosine, by_words, vectors)
        ranked = []
        for row, (cosines, words) in enumerate(zip(by_cosine, by_words, strict=True)):
            # A search by words that found fewer has found all documents with a word of the query.
            if len(words) == limit and (others := [name for name in cosines if name not in words]):
                words |= self._by_words([terms[row]], any_of(ID, others), len(others))[0]
            best = next(iter(highest[row].values()), 0.0)
            ranked.append(_rank(cosines, words, best, weight, k))
        return ranked

    def by_cosine(self, vectors: np.ndarray, expression: str, limit: int) -> list[Scores]:
        """The best documents of each vector `[B, D]` by their cosines."""
        return self._search(list(vectors), VECTOR, expression, limit)

    def _by_words(self, terms: list[str], expression: str, limit: int) -> list[Scores]:
        """The best documents of each query by BM25; a query without a word has none."""
        rows = [row for row, text in enumerate(terms) if text]
        scores: list[Scores] = [{} for _ in terms]
        for row, found in zip(rows, self._search([terms[row] for row in rows], BM25, expression, limit), strict=True):
            # milvus-lite returns −BM25.
            scores[row] = {name: abs(score) for name, score in found.items()}
        return scores

    def _search(self, data: list, field: str, expression: str, limit: int) -> list[Scores]:
        if not data:
            return []
        with engine_errors():
            hits = self._client.search(
                self._name,
                data=data,
                anns_field=field,
                filter=expression,
                limit=limit,
                output_fields=[ID],
                timeout=self._timeout_seconds,
            )
        return [{hit[ID]: hit["distance"] for hit in of_query} for of_query in hits]

    def _add_cosines(self, by_cosine: list[Scores], by_words: list[Scores], vectors: np.ndarray) -> None:
        """Add the cosines of documents that only the search by words found."""
        absent = [
            [name for name in words if name not in cosines] for cosines, words in zip(by_cosine, by_words, strict=True)
        ]
        ids = list(dict.fromkeys(name for names in absent for name in names))
        embeddings: dict[str, np.ndarray] = {}
        for start in range(0, len(ids), FETCHED_IDS):
            part = ids[start : start + FETCHED_IDS]
            with engine_errors():
                found = self._client.query(
                    self._name, filter=any_of(ID, part), output_fields=[ID, VECTOR], timeout=self._timeout_seconds
                )
            embeddings |= {row[ID]: np.asarray(row[VECTOR], np.float32) for row in found}
        for cosines, names, vector in zip(by_cosine, absent, vectors, strict=True):
            cosines |= {name: float(embeddings[name] @ vector) for name in names if name in embeddings}


def _rank(cosines: Scores, words: Scores, highest: float, weight: float, k: int) -> Ranked:
    names = list(cosines)
    parts = np.fromiter(cosines.values(), np.float32, len(names))
    lexical = np.fromiter((words.get(name, 0.0) for name in names), np.float32, len(names)) / (highest or 1.0)
    scores = parts + np.float32(weight) * lexical
    best = np.argsort(-scores, kind="stable")[:k]
    return Ranked([names[row] for row in best], scores[best], parts[best], lexical[best])
