"""A client of a published catalogue: queries are embedded, Milvus searches, and the results are those of a `Client`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import grpc
import numpy as np

from q2s_tf.errors import InputError
from q2s_tf.milvus.filter_expressions import filter_expressions
from q2s_tf.milvus.hybrid_search import HybridSearch
from q2s_tf.milvus.lexical_terms import query_terms
from q2s_tf.milvus.milvus_connection import connect, engine_errors
from q2s_tf.milvus.publications import Publication, check_alias, current_publication, find_current, read_publication
from q2s_tf.milvus.query_encoders import QueryEncoder
from q2s_tf.serving import DEFAULT_EFFORT, DEFAULT_LEXICAL_WEIGHT, MAX_RESULTS
from q2s_tf.serving.pages import IndexInfo, Matches, Page, Version, paginate
from q2s_tf.serving.request_values import Texts, to_float, to_int, to_texts
from q2s_tf.serving.retriever import CANDIDATES, MAX_LEXICAL_WEIGHT
from q2s_tf.serving.search_client import Embeddings
from q2s_tf.serving.serving_error import ServingError

Answer = TypeVar("Answer")
MAX_K = 16_384
"""Milvus returns at most this many documents of a query."""


class EngineClient(AbstractContextManager["EngineClient"]):
    """A client of a catalogue in Milvus, with the methods of `q2s_tf.serving.client.Client` that search.

    All requests of one call go to the collection that the alias named at its beginning. If that was dropped meanwhile,
    the call starts again with its successor. Threads may share a client.

    Methods raise `ServingError` with a gRPC code and message if Milvus does not succeed.

    Attributes:
        target: The address of Milvus, for messages.
    """

    def __init__(
        self,
        uri: str,
        encoder: QueryEncoder,
        alias: str = "products",
        token: str = "",
        timeout_seconds: float = 10.0,
        batch_size: int = 64,
    ) -> None:
        """Connect to Milvus, and check that a catalogue is published there.

        Args:
            uri: The address of a Milvus, or the folder of milvus-lite; see `connect`.
            encoder: Embeds the queries: a `ServedQueryTower` or a `LocalQueryTower`.
            alias: The name of the catalogue, `--collection` of `q2s publish`.
            token: `user:password` or an API key.
            timeout_seconds: Deadline of each request to Milvus.
            batch_size: Most queries of one request.

        Raises:
            InputError: No Milvus answers, nothing is published there, or an argument is out of range.
        """
        check_alias(alias)
        self._timeout_seconds = float(to_float("timeout_seconds", timeout_seconds))
        if self._timeout_seconds <= 0:
            raise InputError(f"timeout_seconds must be above 0, got {timeout_seconds}")
        self._batch_size = to_int("batch_size", batch_size, 1)
        self.target, self.alias, self.encoder = uri, alias, encoder
        self._client = connect(uri, token, self._timeout_seconds)
        self._publications: dict[str, Publication] = {}
        try:
            current_publication(self._client, alias, self._timeout_seconds)
        except ServingError as error:
            raise InputError(f"uri {uri}: Milvus refused: {error}") from error

    @property
    def channel_names(self) -> list[str] | None:
        """The channels of the query tower, in the order of their weights; None if they are not known."""
        return self.encoder.channel_names

    def publication(self, version: Version | None = None) -> Publication:
        """The publication that is searched; of a version, the collection of that number.

        Raises:
            InputError: Nothing is published.
            ServingError: NOT_FOUND if there is no such version.
        """
        return self._open(self._name(version))

    def retrieve(
        self,
        queries: Texts,
        countries: Texts = None,
        k: int = 10,
        effort: int = DEFAULT_EFFORT,
        min_score: float = -1.0,
        filters: Mapping[str, Texts] | None = None,
        version: Version | None = None,
        lexical_weight: float = DEFAULT_LEXICAL_WEIGHT,
    ) -> Matches:
        """Retrieve the ``k`` best documents of each query; see `q2s_tf.serving.client.Client.retrieve`.

        ``effort`` must be 0: Milvus decides how much of its index it searches. ``k`` is at most 16,384. ``version`` is
        the number of a publication. ``Matches`` always has ``k`` columns.

        Raises:
            InputError: A value has the wrong type or is out of range, there is no such filter, or no query tower of the
                run of the collection.
        """
        texts = to_texts("queries", queries)
        countries = to_texts("countries", countries, len(texts))
        if not isinstance(filters, Mapping | None):
            raise InputError(f"filters must be a dict of values by column, got {filters!r:.80}")
        wanted = {name: to_texts(f"filter {name}", values, len(texts)) for name, values in (filters or {}).items()}
        for name, column in {"countries": countries, **wanted}.items():
            if len(column) != len(texts):
                what = f"filter {name}" if name in wanted else name
                raise InputError(f"{what} must have one value for each of {len(texts)} queries, got {len(column)}")
        k = to_int("k", k, 1)
        if k > MAX_K:
            raise InputError(f"k must be at most {MAX_K:,}, the limit of Milvus, got {k}")
        _check_effort(to_int("effort", effort, 0))
        least, weight = to_float("min_score", min_score), float(to_float("lexical_weight", lexical_weight))
        if weight > MAX_LEXICAL_WEIGHT:
            raise InputError(f"lexical_weight must be at most {MAX_LEXICAL_WEIGHT:g}, got {weight:g}")

        def search(publication: Publication) -> Matches:
            of_request = max(1, min(self._batch_size, MAX_RESULTS // max(k, CANDIDATES)))
            matches = _no_matches(len(texts), k, publication.version)
            for start in range(0, len(texts), of_request):
                rows = np.arange(start, min(start + of_request, len(texts)))
                self._fill(matches, publication, rows, texts, countries, wanted, weight)
            low = matches.scores < least
            for column, nothing in zip(matches[:4], ("", -1, -1, 0), strict=True):
                column[low] = nothing
            return matches

        return self._on_one_collection(search, version)

    def pages(
        self,
        query: str,
        country: str = "",
        page_size: int = 10,
        efforts: Sequence[int] | None = None,
        min_score: float = -1.0,
        filters: Mapping[str, str] | None = None,
        version: Version | None = None,
        lexical_weight: float = DEFAULT_LEXICAL_WEIGHT,
    ) -> Iterator[Page]:
        """Iterate over the documents of one query page by page; see `q2s_tf.serving.client.Client.pages`.

        ``efforts`` must be None or zeros. All pages are from the publication of page 1 while it exists.
        """
        page_size = to_int("page_size", page_size, 1)
        for effort in efforts or ():
            _check_effort(effort)

        def retrieve(k: int, effort: int, version: Version | None) -> Matches:
            return self.retrieve([query], [country], k, effort, min_score, filters, version, lexical_weight)

        return paginate(retrieve, _no_partitions, page_size, [DEFAULT_EFFORT], version)

    def embed_query(self, queries: Texts, countries: Texts = None, version: Version | None = None) -> Embeddings:
        """Embed B queries by the query tower of the run of the collection. ``version`` is that of a publication."""
        return self.encoder.embed(queries, countries, self.publication(version).hashes)

    def by_embedding(self, embeddings: np.ndarray, k: int) -> list[list[str]]:
        """The ids of the ``k`` best documents of each unit vector `[Q, D]` by their cosines, best first."""

        def search(publication: Publication) -> list[list[str]]:
            searcher = HybridSearch(self._client, publication.name, self._timeout_seconds)
            parts = [
                embeddings[start : start + self._batch_size] for start in range(0, len(embeddings), self._batch_size)
            ]
            return [list(scores) for part in parts for scores in searcher.by_cosine(part, "", k)]

        return self._on_one_collection(search, None)

    def close(self) -> None:
        """Close the connection. milvus-lite keeps its folder open until the process ends."""
        self._client.close()

    def __exit__(self, *details: object) -> None:
        """Close the connection."""
        self.close()

    def _on_one_collection(self, search: Callable[[Publication], Answer], version: Version | None) -> Answer:
        """The answer of a search of one collection; again if the alias names another one by now and it failed."""
        while True:
            name = self._name(version)
            try:
                return search(self._open(name))
            except ServingError as error:
                self._publications.pop(name, None)  # it may have been released
                if version is None and find_current(self._client, self.alias, self._timeout_seconds) != name:
                    continue
                if error.code is grpc.StatusCode.UNKNOWN and name not in self._collections():
                    raise ServingError(grpc.StatusCode.NOT_FOUND, f"{name} was dropped") from error
                raise

    def _name(self, version: Version | None) -> str:
        """The collection of a version, or the current one."""
        if version is not None:
            return f"{self.alias}_{to_int('version', version, 0, 2**63)}"
        name = find_current(self._client, self.alias, self._timeout_seconds)
        if name is None:
            raise InputError(f"collection {self.alias}: nothing is published under this name at {self.target}")
        return name

    def _open(self, name: str) -> Publication:
        """The publication in a collection; loads it at its first use, because milvus-lite starts with none loaded."""
        publication = self._publications.get(name)
        if publication is None:
            publication = read_publication(self._client, name, self._timeout_seconds)
            with engine_errors():
                self._client.load_collection(name, timeout=self._timeout_seconds)
            self._publications[name] = publication
        return publication

    def _collections(self) -> list[str]:
        with engine_errors():
            return self._client.list_collections(timeout=self._timeout_seconds)

    def _fill(
        self,
        matches: Matches,
        publication: Publication,
        rows: np.ndarray,
        texts: np.ndarray,
        countries: np.ndarray,
        wanted: Mapping[str, np.ndarray],
        weight: float,
    ) -> None:
        """Search for some rows of a request, and write what was found into the matches."""
        vectors = self.encoder.embed(texts[rows], countries[rows], publication.hashes).embedding
        settings = publication.settings
        weight = settings["lexical_weight"] if weight < 0 else weight
        terms = query_terms(texts[rows].tolist(), settings["language"]) if settings["lexical"] and weight else []
        expressions = filter_expressions(
            publication, {name: values[rows] for name, values in wanted.items()}, len(rows)
        )
        searcher = HybridSearch(self._client, publication.name, self._timeout_seconds)
        present = np.any(vectors != 0, axis=1)  # a query without any channel has no nearest documents
        for expression in dict.fromkeys(expressions):
            chosen = [row for row in range(len(rows)) if expressions[row] == expression and present[row]]
            if not chosen:
                continue
            of_chosen = [terms[row] for row in chosen] if terms else []
            k = matches.document_ids.shape[1]
            found = searcher.search(vectors[chosen], of_chosen, expression, k, weight if terms else 0.0)
            for row, ranked in zip(rows[chosen], found, strict=True):
                for column, values in zip(matches[:4], ranked, strict=True):
                    column[row, : len(ranked.document_ids)] = values


def _no_matches(queries: int, k: int, version: int) -> Matches:
    score, cosine, lexical = (np.full((queries, k), value, np.float32) for value in (-1, -1, 0))
    return Matches(np.full((queries, k), "", object), score, cosine, lexical, version)


def _check_effort(effort: int) -> None:
    if effort != DEFAULT_EFFORT:
        raise InputError(f"effort must be {DEFAULT_EFFORT} for Milvus, which chooses it itself, got {effort}")


def _no_partitions(version: Version | None) -> IndexInfo:
    raise AssertionError("efforts are given")
