"""One page of results, from the retriever over gRPC and from BM25, with the channel weights of the query."""

import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from q2s_tf.cli import console
from q2s_tf.demo_app.channel_parts import ChannelParts
from q2s_tf.demo_app.shown_documents import ShownDocuments
from q2s_tf.errors import InputError
from q2s_tf.evaluation.rankers import Bm25, top_k
from q2s_tf.serving.query_command import weigh_channels
from q2s_tf.serving.search_client import SearchClient
from q2s_tf.text import MAX_CHARACTERS

MAX_PAGES = 50
"""Page n retrieves pages 1 to n again, because nothing is kept between requests."""
COLUMNS = ("title", "description", "language", "country")
"""Columns of the documents table that results have."""


class Search:
    """Searches one server and one catalogue; safe to share between threads.

    The arguments are those of `q2s demo-app`. Without ``models``, the exports, channels have numbers.

    Raises:
        InputError: the documents cannot be read.
        ServingError: the server does not answer, or lacks the query tower or the retriever.
    """

    def __init__(
        self,
        client: SearchClient,
        documents: Path,
        models: Path | None = None,
        page_size: int = 10,
        pictures: str | None = None,
        run: Path | None = None,
    ):
        self._client = client
        self._models = models
        self._page_size = page_size
        with console.status("reading documents"):
            self.documents = ShownDocuments(documents, pictures)
        self._bm25 = Bm25(self.documents.table)
        self._channel_parts = None if run is None else ChannelParts(client, run, documents)
        self.page("warm-up")  # requests what is cached for later searches, and fails if a servable is missing

    @property
    def has_parts(self) -> bool:
        """Whether there is a run for `channel_parts`."""
        return self._channel_parts is not None

    def page(self, query: str, country: str = "", number: int = 1) -> dict[str, Any]:
        """Page ``number`` (from 1) of both rankings, as in the JSON of `q2s_tf.demo_app.app`.

        Raises:
            InputError: the query is empty or too long, or there is no such page.
            ServingError: the server did not answer.
        """
        _check_texts(query, country)
        if not 1 <= number <= MAX_PAGES:
            raise InputError(f"page must be 1 to {MAX_PAGES}, got {number}")
        return {
            "query": query,
            "country": country,
            "page": number,
            "channels": [
                {"name": name, "weight": weight}
                for name, weight in weigh_channels(self._client, query, country, self._models)
            ],
            "hybrid": self._search_retriever(query, country, number),
            "bm25": self._search_bm25(query, number),
        }

    def channel_parts(self, query: str, country: str, document_id: str) -> dict[str, Any]:
        """The document channels with their parts of the cosine, as in the JSON of `q2s_tf.demo_app.app`.

        Raises:
            InputError: there is no run, or no such document; the query is empty or too long.
        """
        _check_texts(query, country)
        row = self.documents.row(document_id)
        if self._channel_parts is None or row is None:
            missing = "the page has no run: start it with --explain RUN" if row is not None else "no such document_id"
            raise InputError(missing)
        return {"channels": self._channel_parts.of(query, country, row)}

    def _search_retriever(self, query: str, country: str, number: int) -> dict[str, Any]:
        """Results of the retriever. Page 1 uses the cheapest search, each further page a more expensive one."""
        pages = self._client.pages(query, country, page_size=self._page_size)
        before = sum(1 for _ in islice(pages, number - 1))
        begin = time.perf_counter()
        page = next(pages, None)
        milliseconds = 1_000 * (time.perf_counter() - begin)
        found = list(zip(*page[:4], strict=True)) if page else []
        return {
            "milliseconds": milliseconds,
            "effort": page.effort if page else None,
            "more": len(found) == self._page_size and number < MAX_PAGES,
            "results": self._results(found, before * self._page_size + 1),
        }

    def _search_bm25(self, query: str, number: int) -> dict[str, Any]:
        """Results of BM25: documents that share a word with the query."""
        end = number * self._page_size
        begin = time.perf_counter()
        scores = next(self._bm25.rows([query]))
        ranked = [row for row in top_k(scores, end + 1).tolist() if row >= 0 and scores[row] > 0]
        milliseconds = 1_000 * (time.perf_counter() - begin)
        start = end - self._page_size
        return {
            "milliseconds": milliseconds,
            "more": len(ranked) > end and number < MAX_PAGES,
            "results": self._results([(self.documents.ids[row], scores[row]) for row in ranked[start:end]], start + 1),
        }

    def _results(self, found: Sequence[tuple[Any, ...]], first_rank: int) -> list[dict[str, Any]]:
        """Results from an id and its scores; a document that is not in the table has none of its `COLUMNS`."""
        rows = self.documents.look_up([document_id for document_id, *_ in found])
        results = []
        for rank, (row, (document_id, *scores)) in enumerate(zip(rows, found, strict=True), start=first_rank):
            picture = self.documents.picture(row)
            if isinstance(picture, Path):
                picture = f"/picture?{urlencode({'document_id': document_id})}"
            named = zip(("score", "embedding_score", "lexical_score"), map(float, scores), strict=False)
            columns = {name: row[name] for name in COLUMNS if name in row}
            results.append({"rank": rank, **dict(named), "document_id": document_id, **columns, "picture": picture})
        return results


def _check_texts(query: str, country: str) -> None:
    if not query.strip():
        raise InputError("query must not be empty; write what is looked for")
    if max(len(query), len(country)) > MAX_CHARACTERS:
        raise InputError(f"query and country may have {MAX_CHARACTERS} characters each; shorten them")
