"""One page of results, from the retriever over gRPC and from BM25, with the channel weights of both towers."""

import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np

from q2s_tf.cli import console
from q2s_tf.demo_app.shown_documents import ShownDocuments
from q2s_tf.errors import InputError
from q2s_tf.evaluation.rankers import Bm25, top_k
from q2s_tf.models.plain_data import text_tensor, vector_tensor
from q2s_tf.serving.client import Client, SignatureInfo
from q2s_tf.serving.folders import channel_names
from q2s_tf.text import MAX_CHARACTERS

MAX_PAGES = 50
"""Page n retrieves pages 1 to n again, because nothing is kept between requests."""


class Search:
    """Searches one server and one catalogue; safe to share between threads.

    The arguments are those of `q2s demo-app`. Without ``models``, the exports, channels have numbers.

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
            self.documents = ShownDocuments(documents, list(self._signature.inputs), vectors, pictures)
        self._bm25 = Bm25(self.documents.table)
        self.page("warm-up")  # requests what is cached for later searches, and fails if a servable is missing

    def page(self, query: str, country: str = "", number: int = 1) -> dict[str, Any]:
        """Page ``number`` (from 1) of both rankings, as in the JSON of `q2s_tf.demo_app.app`.

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
        semantic, lexical = self._search_retriever(query, country, number), self._search_bm25(query, number)
        self._add_channels([*semantic["results"], *lexical["results"]])
        weights = self._client.embed_query([query], [country]).channel_weights
        return {
            "query": query,
            "country": country,
            "page": number,
            "channels": self._name_weights("query_tower", weights)[0],
            "semantic": semantic,
            "bm25": lexical,
        }

    def _search_retriever(self, query: str, country: str, number: int) -> dict[str, Any]:
        """Results of the retriever. Page 1 uses the cheapest search, each further page a more expensive one."""
        pages = self._client.pages(query, country, page_size=self._page_size)
        before = sum(1 for _ in islice(pages, number - 1))
        begin = time.perf_counter()
        page = next(pages, None)
        milliseconds = 1_000 * (time.perf_counter() - begin)
        scores = list(zip(page.document_ids, page.scores, strict=True)) if page else []
        return {
            "milliseconds": milliseconds,
            "effort": page.effort if page else None,
            "more": len(scores) == self._page_size and number < MAX_PAGES,
            "results": self._results(scores, first_rank=before * self._page_size + 1),
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

    def _results(self, scores: Sequence[tuple[str, float]], first_rank: int) -> list[dict[str, Any]]:
        rows = self.documents.look_up([document_id for document_id, _ in scores])
        results = []
        for rank, (row, (document_id, score)) in enumerate(zip(rows, scores, strict=True), start=first_rank):
            picture = self.documents.picture(row)
            if isinstance(picture, Path):
                picture = f"/picture?{urlencode({'document_id': document_id})}"
            columns = {name: row.get(name) for name in ("document_id", "title", "description", "language", "country")}
            results.append({"rank": rank, "score": float(score), **columns, "picture": picture, "row": row})
        return results

    def _add_channels(self, results: list[dict[str, Any]]) -> None:
        """Replaces ``row`` by the weights of the document tower; none for a document that is not in the table."""
        rows = {result["document_id"]: result.pop("row") for result in results}
        known = {name: row for name, row in rows.items() if "title" in row}
        channels: dict[str, list[dict[str, Any]]] = {}
        if known:
            outputs = self._client.predict("document_tower", tower_inputs(list(known.values()), self._signature))
            weights = self._name_weights("document_tower", outputs["channel_weights"])
            channels = dict(zip(known, weights, strict=True))
        for result in results:
            result["channels"] = channels.get(result["document_id"], [])

    def _name_weights(self, tower: str, weights: np.ndarray) -> list[list[dict[str, Any]]]:
        """Weights `[B, N]` with the names of their channels, or with numbers if the served export is not at hand."""
        names = [f"channel {number}" for number in range(1, weights.shape[1] + 1)]
        if self._models is not None:
            served = [status.version for status in self._client.status(tower) if status.state == "AVAILABLE"]
            known = channel_names(self._models, tower, served[0]) if served else None
            names = known if known is not None and len(known) == len(names) else names
        return [[{"name": n, "weight": w} for n, w in zip(names, row, strict=True)] for row in weights.tolist()]


def tower_inputs(rows: Sequence[Mapping[str, Any]], signature: SignatureInfo) -> dict[str, np.ndarray]:
    """Rows of a catalogue as the inputs of the signature of a tower: strings `[B]` and vectors `[B, M, I]`.

    Raises:
        InputError: vectors of another dimension than that of the signature.
    """
    inputs = {}
    for name, info in signature.inputs.items():
        column = [row.get(name) for row in rows]
        dimension = (info.shape or (None,))[-1]
        tensor = text_tensor(name, column) if info.dtype == "string" else vector_tensor(name, column, dimension)
        inputs[name] = tensor.numpy()
    return inputs
