"""A client of the servables, over TensorFlow Serving's own gRPC API: for the embedded server and for TF Serving itself.

Importing this module imports TensorFlow (about 5 s), for the reason that `q2s_tf.serving.messages` gives.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

import grpc
import numpy as np
from numpy.typing import ArrayLike

from q2s_tf.errors import InputError
from q2s_tf.serving import DEFAULT_EFFORT
from q2s_tf.serving.connection import connect
from q2s_tf.serving.messages import (
    FILTER_PREFIX,
    Embeddings,
    Matches,
    SignatureInfo,
    Version,
    VersionStatus,
    to_strings,
    to_text,
)
from q2s_tf.serving.pages import IndexInfo, Page, turn
from q2s_tf.serving.requests import REFUSED, Requests
from q2s_tf.serving.serving_error import ServingError

_KNOWN_INDEXES = 16


class Client:
    """Asks one server; safe to share between threads, and to use in a ``with`` statement.

    `retrieve`, `embed_query` and `embed_document` take whatever a query or a document may have, and send what the model
    has channels for; they ask the server once for its signature. They send ``batch_size`` rows a request, one request
    after the other, all to the version that answered the first; if that one is taken away meanwhile, they begin again
    with its successor.

    ``version`` is a version's number or its label, None for the newest.

    Every method raises `ServingError` with the gRPC code and message if the server does not answer with success within
    the deadline. A request is sent again (at most three times, within the deadline) only if the server was UNAVAILABLE.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:8500",
        timeout_seconds: float = 10.0,
        credentials: grpc.ChannelCredentials | None = None,
        batch_size: int = 64,
    ) -> None:
        """Connects at the first request.

        Args:
            target: ``host:port``.
            timeout_seconds: How long each request may take, with all its attempts.
            credentials: For TLS, see `q2s_tf.serving.read_credentials`; None for a connection that is not encrypted.
            batch_size: The most rows that one request has.

        Raises:
            InputError: ``timeout_seconds`` is not above 0, or ``batch_size`` under 1.
        """
        if not timeout_seconds > 0:
            raise InputError(f"timeout_seconds must be above 0, got {timeout_seconds}")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        self.target = target
        self._channel = connect(target, credentials)
        self._requests = Requests(self._channel, timeout_seconds, batch_size)
        self._indexes: dict[Version | None, IndexInfo] = {}

    def predict(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        signature: str = "serving_default",
        version: Version | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs one signature, in one request; strings come back as object arrays of ``bytes``.

        NumPy arrays are sent with their dtype; plain Python numbers as float32 and int32, as TensorFlow would.

        Raises:
            InputError: An input is no array of numbers, booleans or strings.
        """
        return self._requests.predict(model, inputs, signature, version)[0]

    def retrieve(
        self,
        queries: Sequence[str],
        countries: Sequence[str],
        k: int = 10,
        effort: int = DEFAULT_EFFORT,
        min_score: float = -1.0,
        filters: Mapping[str, str | Sequence[str]] | None = None,
        version: Version | None = None,
    ) -> Matches:
        """The ``k`` best documents of each query.

        Args:
            queries: B queries.
            countries: B countries of the searchers, ``""`` where unknown.
            k: How many documents each.
            effort: How many partitions of the index are searched: more finds more of the true best, and takes longer.
                0 leaves it to the index: what its export found to be enough.
            min_score: The least cosine that counts, the paper's radius; -1 lets all through.
            filters: By column of the documents the value that they must have, one for all queries or a list of B;
                ``""`` lets every value through. The columns are those that the export was told to filter by.
            version: Of the retriever.

        Raises:
            InputError: ``k`` is under 1, ``effort`` under 0, or one of them no int32; lists of unlike lengths; there is
                no such filter.
        """
        for name, value, least in (("k", k, 1), ("effort", effort, 0)):
            if not least <= value < 2**31:
                raise InputError(f"{name} must be at least {least} and below 2^31, got {value}")
        rows = {"query": to_strings("queries", queries), "country": to_strings("countries", countries)}
        for column, wanted in (filters or {}).items():
            values = [wanted] * len(queries) if isinstance(wanted, str) else wanted
            rows[FILTER_PREFIX + column] = to_strings(f"filter {column}", values)
        knobs = {"k": np.int32(k), "effort": np.int32(effort), "min_score": np.float32(min_score)}
        signature = "retrieve_filtered" if filters else "retrieve"
        outputs, answered = self._requests.predict_rows("retriever", rows, knobs, signature, version)
        return Matches(to_text(outputs["document_id"]), outputs["score"], answered)

    def pages(
        self,
        query: str,
        country: str = "",
        page_size: int = 10,
        efforts: Sequence[int] | None = None,
        min_score: float = -1.0,
        filters: Mapping[str, str] | None = None,
        version: Version | None = None,
    ) -> Iterator[Page]:
        """The documents of one query page by page, cheap for the first and costlier for later ones, without repeats.

        A page is asked for when it is taken. They end when no document is left that the filters and ``min_score`` let
        through; only the last page may be short. See `q2s_tf.serving.pages.turn`.

        Args:
            query: The query.
            country: The searcher's.
            page_size: Documents of a page.
            efforts: Partitions searched for page 1, 2, …; the last also for all pages after. None: half the index's
                default effort for the first, then twice that of the page before, up to all partitions.
            min_score: As for `retrieve`.
            filters: As for `retrieve`.
            version: As for `retrieve`; pages after the first are of the version of the first while that is served.

        Raises:
            InputError: ``page_size`` is under 1, there is no such filter, ``efforts`` is empty.
        """
        if page_size < 1:
            raise InputError(f"page_size must be at least 1, got {page_size}")
        if efforts is not None and not efforts:
            raise InputError("efforts must have at least one effort, and none came; leave it out for the default")

        def retrieve(k: int, effort: int, asked: Version | None) -> Matches:
            return self.retrieve([query], [country], k, effort, min_score, filters, asked)

        return turn(retrieve, self._describe_index, page_size, efforts, version)

    def embed_query(
        self, queries: Sequence[str], countries: Sequence[str], version: Version | None = None
    ) -> Embeddings:
        """The query tower's vectors and fusion weights of B queries and the searchers' countries."""
        rows = {"query": to_strings("queries", queries), "country": to_strings("countries", countries)}
        return self._embed("query_tower", rows, version)

    def embed_document(
        self,
        titles: Sequence[str],
        descriptions: Sequence[str] | None = None,
        languages: Sequence[str] | None = None,
        countries: Sequence[str] | None = None,
        image_embeddings: np.ndarray | None = None,
        version: Version | None = None,
    ) -> Embeddings:
        """The document tower's vectors and fusion weights of B documents.

        Args:
            titles: B titles.
            descriptions: B descriptions; None, or ``""`` for one, means missing, as in the others.
            languages: B languages.
            countries: B countries.
            image_embeddings: ``float[B, M, I]``, rows of zeros are padding; None means no images.
            version: Of the document tower.
        """
        rows = {"title": to_strings("titles", titles)}
        texts = {"description": descriptions, "language": languages, "country": countries}
        for key, column in texts.items():
            rows[key] = to_strings(key, [""] * len(titles) if column is None else column)
        if image_embeddings is not None:
            rows["image_embeddings"] = np.asarray(image_embeddings, np.float32)
        return self._embed("document_tower", rows, version)

    def status(self, model: str) -> list[VersionStatus]:
        """The versions of a model that the server knows, newest first."""
        return self._requests.status(model)

    def metadata(self, model: str, version: Version | None = None) -> dict[str, SignatureInfo]:
        """The signatures of a model by name."""
        return self._requests.metadata(model, version)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes."""
        self.close()

    def _embed(self, tower: str, rows: Mapping[str, np.ndarray], version: Version | None) -> Embeddings:
        outputs, answered = self._requests.predict_rows(tower, rows, {}, "serving_default", version)
        return Embeddings(outputs["embedding"], outputs["channel_weights"], answered)

    def _describe_index(self, version: Version | None) -> IndexInfo | None:
        """What the retriever says of its index; what is known of a label, or of the newest, may be out of date."""
        known = self._indexes.get(version)
        if known is not None:
            return known
        try:
            outputs, answered = self._requests.predict("retriever", {}, "index", version)
        except ServingError as error:
            if error.code in REFUSED:
                return None  # it has no such signature; if it is not there at all, `retrieve` will say so
            raise
        index = IndexInfo(int(outputs["partitions"]), int(outputs["default_effort"]), answered)
        if isinstance(version, int) or len(self._indexes) >= _KNOWN_INDEXES:
            self._indexes.clear()  # a version that nobody told of: labels have moved
        self._indexes.update({version: index, answered: index})
        return index
