"""One page of answers to a query: from the retriever over gRPC and from BM25, with what both towers looked at."""

import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np

from q2s_tf.cli import console
from q2s_tf.demo_app.catalogue import Catalogue
from q2s_tf.errors import InputError
from q2s_tf.evaluation.rankers import Bm25, first
from q2s_tf.serving.client import Client, SignatureInfo
from q2s_tf.serving.folders import channel_names
from q2s_tf.text import MAX_CHARACTERS

MAX_PAGES = 50
"""Page n asks for pages 1 to n again, because the page keeps nothing between requests."""


class Search:
    """Answers queries from one server and one catalogue; safe to share between threads.

    Args:
        client: of the server, embedded or TensorFlow Serving.
        documents: the catalogue, Parquet or TSV.
        models: the exports, for the channels' names; where they are not there, channels have numbers.
        page_size: results of a page, on each side.
        pictures: the column of the documents with their pictures, if any.

    Raises:
        InputError: the documents cannot be read.
        ServingError: the server does not answer, or lacks one of the three servables.
    """

    def __init__(
        self,
        client: Client,
        documents: Path,
        models: Path | None = None,
        page_size: int = 10,
        pictures: str | None = None,
    ):
        self._client = client
        self._models = models
        self._page_size = page_size
        self._signature = client.metadata("document_tower")["serving_default"]
        vectors = [name for name, info in self._signature.inputs.items() if info.dtype != "string"]
        with console.status("reading documents"):
            self.catalogue = Catalogue(documents, list(self._signature.inputs), vectors, pictures)
        self._bm25 = Bm25(self.catalogue.table)
        self.page("warm-up")  # what is asked of a server only once is asked now, and a missing servable shows

    def page(self, query: str, country: str = "", number: int = 1) -> dict[str, Any]:
        """Page ``number`` (from 1) of both rankings; the fields are those of `q2s_tf.demo_app.app`'s JSON.

        Raises:
            InputError: the query is empty or too long, or there is no such page.
            ServingError: the server did not answer.
        """
        if not query.strip():
            raise InputError("query must not be empty; write what is looked for")
        if max(len(query), len(country)) > MAX_CHARACTERS:
            raise InputError(f"query and country may have {MAX_CHARACTERS} characters each; shorten them")
        if not 1 <= number <= MAX_PAGES:
            raise InputError(f"page must be 1 to {MAX_PAGES}, got {number}")
        semantic, lexical = self._retrieve(query, country, number), self._rank_words(query, number)
        self._add_channels([*semantic["results"], *lexical["results"]])
        return {
            "query": query,
            "country": country,
            "page": number,
            "channels": self._named("query_tower", self._client.embed_query([query], [country]).channel_weights)[0],
            "semantic": semantic,
            "bm25": lexical,
        }

    def _retrieve(self, query: str, country: str, number: int) -> dict[str, Any]:
        """What the retriever finds: the cheapest search for page 1, a costlier one for each further page."""
        pages = self._client.pages(query, country, page_size=self._page_size)
        before = sum(1 for _ in islice(pages, number - 1))
        begin = time.perf_counter()
        page = next(pages, None)
        milliseconds = 1_000 * (time.perf_counter() - begin)
        found = list(zip(page.document_ids, page.scores, strict=True)) if page else []
        return {
            "milliseconds": milliseconds,
            "effort": page.effort if page else None,
            "more": len(found) == self._page_size and number < MAX_PAGES,
            "results": self._results(found, first_rank=before * self._page_size + 1),
        }

    def _rank_words(self, query: str, number: int) -> dict[str, Any]:
        """What BM25 ranks: documents that share a word with the query."""
        end = number * self._page_size
        begin = time.perf_counter()
        scores = next(self._bm25.rows([query]))
        ranked = [place for place in first(scores, end + 1).tolist() if place >= 0 and scores[place] > 0]
        milliseconds = 1_000 * (time.perf_counter() - begin)
        start = end - self._page_size
        found = [(self.catalogue.document_id(place), float(scores[place])) for place in ranked[start:end]]
        return {
            "milliseconds": milliseconds,
            "more": len(ranked) > end and number < MAX_PAGES,
            "results": self._results(found, first_rank=start + 1),
        }

    def _results(self, found: Sequence[tuple[str, float]], first_rank: int) -> list[dict[str, Any]]:
        rows = self.catalogue.look_up([document_id for document_id, _ in found])
        return [
            {
                "rank": rank,
                "score": float(score),
                **{name: row.get(name) for name in ("document_id", "title", "description", "language", "country")},
                "picture": self._picture_address(row),
                "row": row,
            }
            for rank, (row, (_, score)) in enumerate(zip(rows, found, strict=True), start=first_rank)
        ]

    def _picture_address(self, row: dict[str, Any]) -> str | None:
        picture = self.catalogue.picture(row)
        return f"/picture?{urlencode({'document_id': row['document_id']})}" if isinstance(picture, Path) else picture

    def _add_channels(self, results: list[dict[str, Any]]) -> None:
        """Puts what the document tower weighed into each result; a document that the catalogue lacks has nothing."""
        rows = {result["document_id"]: result.pop("row") for result in results}
        known = {name: row for name, row in rows.items() if "title" in row}
        weights = []
        if known:
            inputs = tower_inputs(list(known.values()), self._signature)
            outputs = self._client.predict("document_tower", inputs)
            weights = self._named("document_tower", outputs["channel_weights"])
        channels = dict(zip(known, weights, strict=True))
        for result in results:
            result["channels"] = channels.get(result["document_id"], [])

    def _named(self, tower: str, weights: np.ndarray) -> list[list[dict[str, Any]]]:
        """Weights `[B, N]` by the channels' names, or numbers where the export that is served is not at hand."""
        names = [f"channel {number}" for number in range(1, weights.shape[1] + 1)]
        if self._models is not None:
            served = [status.version for status in self._client.status(tower) if status.state == "AVAILABLE"]
            known = channel_names(self._models, tower, served[0]) if served else None
            names = known if known is not None and len(known) == len(names) else names
        return [[{"name": n, "weight": w} for n, w in zip(names, row, strict=True)] for row in weights.tolist()]


def tower_inputs(rows: Sequence[Mapping[str, Any]], signature: SignatureInfo) -> dict[str, np.ndarray]:
    """Rows of a catalogue as the inputs of a tower's signature.

    Returns:
        Strings `[B]`, `""` where missing; vectors `[B, M, I]`, padded with rows of zeros.

    Raises:
        InputError: vectors of another dimension than the signature's.
    """
    inputs = {}
    for name, info in signature.inputs.items():
        values = [row.get(name) for row in rows]
        if info.dtype == "string":
            inputs[name] = np.array([value or "" for value in values], object)
        else:
            inputs[name] = _padded(name, values, (info.shape or (None,))[-1] or 0)
    return inputs


def _padded(name: str, lists: Sequence[Sequence[Sequence[float]] | None], dimension: int) -> np.ndarray:
    padded = np.zeros((len(lists), max(len(vectors or ()) for vectors in lists), dimension), np.float32)
    for row, vectors in enumerate(lists):
        for place, vector in enumerate(vectors or ()):
            if len(vector) != dimension:
                raise InputError(f"documents: {name} must have vectors of {dimension} numbers; one has {len(vector)}")
            padded[row, place] = vector
    return padded
