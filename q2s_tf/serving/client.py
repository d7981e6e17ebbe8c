"""A client of the servables over TensorFlow Serving's gRPC API, for the embedded server and for TF Serving itself.

The import of this module imports TensorFlow (about 5 s): the messages of ``tensorflow-serving-api`` are built on those
inside the ``tensorflow`` package.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import grpc
import numpy as np
from numpy.typing import ArrayLike
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from q2s_tf.errors import InputError
from q2s_tf.serving import DEFAULT_EFFORT, DEFAULT_LEXICAL_WEIGHT, MAX_RESULTS, tensor_proto
from q2s_tf.serving.connection import connect
from q2s_tf.serving.pages import IndexInfo, Matches, Page, Version, paginate
from q2s_tf.serving.request_values import Texts, to_array, to_float, to_int, to_texts
from q2s_tf.serving.search_client import Embeddings
from q2s_tf.serving.serving_error import ServingError
from q2s_tf.serving.signatures import FILTER_PREFIX, SignatureInfo, describe_signatures, select_inputs

Arrays = dict[str, np.ndarray]
Inputs = Mapping[str, Any]
"""Arrays by input: rows, whose first dimension is the query or the document, and scalars."""

FINITE = ("embedding", "min_score", "lexical_weight")
"""Inputs of the retriever that are checked before they are sent."""
REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,  # TensorFlow Serving's code for an unknown signature
}
"""The codes of a request that does not fit the served model."""


class VersionStatus(NamedTuple):
    """A version of a model, its state (``AVAILABLE``, ``LOADING``, ``END``, …), and the error if it was refused."""

    version: int
    state: str
    error: str


class Client(AbstractContextManager["Client"]):
    """A client of one server. Threads may share it, and a ``with`` statement closes it.

    `retrieve`, `embed_query` and `embed_document` take all parts that a query or a document may have and send those
    that the model has channels for; they read the model's signature once. They send ``batch_size`` rows in a request,
    one request after the other, all to the version that answered the first. If that version is removed meanwhile, they
    start again with its successor.

    ``version`` is the number or the label of a version; None for the newest.

    Every method raises `ServingError` with the gRPC code and message if the server does not succeed within the
    deadline. A request is sent again (at most three times, within the deadline) only if the server was UNAVAILABLE.
    """

    channel_names: list[str] | None = None
    """Not known: the manifests of the exports have them."""

    def __init__(
        self,
        target: str = "127.0.0.1:8500",
        timeout_seconds: float = 10.0,
        credentials: grpc.ChannelCredentials | None = None,
        batch_size: int = 64,
    ) -> None:
        """Create a client, which connects at the first request.

        Args:
            target: ``host:port``.
            timeout_seconds: Deadline of each request, including all its attempts.
            credentials: Credentials for TLS, see `q2s_tf.serving.read_credentials`; None to connect without encryption.
            batch_size: Most rows of one request.

        Raises:
            InputError: ``timeout_seconds`` is not above 0, or ``batch_size`` is less than 1.
        """
        self._timeout_seconds = float(to_float("timeout_seconds", timeout_seconds))
        if self._timeout_seconds <= 0:
            raise InputError(f"timeout_seconds must be above 0, got {timeout_seconds}")
        self.target, self._batch_size = target, to_int("batch_size", batch_size, 1)
        self._channel = connect(target, credentials)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._signatures: dict[tuple[str, str], SignatureInfo] = {}
        self._indexes: dict[Version | None, IndexInfo] = {}  # the last described index, by its version

    def predict(
        self,
        model: str,
        inputs: Inputs,
        signature: str = "serving_default",
        version: Version | None = None,
    ) -> Arrays:
        """Run one signature in one request and return its outputs; strings are object arrays of ``bytes``.

        NumPy arrays are sent with their dtype; plain Python numbers as float32 and int32, as in TensorFlow.

        Raises:
            InputError: An input is not an array of numbers, booleans or strings.
        """
        return self._predict(model, inputs, signature, version)[0]

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
        """Retrieve the ``k`` best documents of each query.

        Args:
            queries: B queries.
            countries: B countries of the searchers, or one for all; None where unknown.
            k: Documents for each query.
            effort: Partitions of the index to search. More partitions find more of the true best documents and take
                longer. 0 for the index's default, which its export calibrated.
            min_score: Least score of a match, the paper's radius; -1 for no limit.
            filters: The value that documents must have by column: one value for all queries, or B values; ``""``
                matches every document. The columns are those that were named at export.
            version: Version of the retriever.
            lexical_weight: Weight of BM25 beside the cosine: 0 for embeddings alone, below 0 for the weight that the
                export chose.

        Raises:
            InputError: A value has the wrong type or is out of range; the columns have different lengths; or there is
                no such filter. The message names the argument.
        """
        inputs: dict[str, Any] = {"query": to_texts("queries", queries)}
        count = len(inputs["query"])
        inputs["country"] = to_texts("countries", countries, count)
        if not isinstance(filters, Mapping | None):
            raise InputError(f"filters must be a dict of values by column, got {filters!r:.80}")
        for column, wanted in (filters or {}).items():
            inputs[FILTER_PREFIX + column] = to_texts(f"filter {column}", wanted, count)
        k = to_int("k", k, 1)
        # Search parameters are scalars, the same for all rows.
        inputs |= {"k": np.int32(k), "effort": np.int32(to_int("effort", effort, 0))}
        inputs["min_score"] = to_float("min_score", min_score)
        inputs["lexical_weight"] = to_float("lexical_weight", lexical_weight)
        batch_size = max(1, min(self._batch_size, MAX_RESULTS // k))
        outputs, answered = self._predict_rows("retriever", "retrieve", inputs, version, batch_size)
        decode = np.frompyfunc(lambda name: name.decode("utf-8", "backslashreplace"), 1, 1)
        parts = outputs["embedding_score"], outputs["lexical_score"]
        return Matches(decode(outputs["document_id"]), outputs["score"], *parts, answered)

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
        """Iterate over the documents of one query page by page, with little effort for page 1 and more for later ones.

        Each page is requested when the iterator reaches it; see `q2s_tf.serving.pages.paginate`. The pages end when no
        document is left that matches the filters and ``min_score``, which are those of `retrieve`. ``efforts`` are the
        partitions to search for page 1, 2, …; the last is also for all later pages. None: half the index's default
        effort for page 1, then twice that of the page before, up to all partitions. All pages are from the version of
        page 1 while that is served.

        Raises:
            InputError: ``page_size`` is less than 1, there is no such filter, or ``efforts`` is empty.
        """
        page_size = to_int("page_size", page_size, 1)
        if efforts is not None:
            efforts = [to_int("efforts", effort, 0) for effort in np.ravel(np.asarray(efforts, object))]
            if not efforts:
                raise InputError("efforts must have at least one effort, got none; leave it out for the default")

        def retrieve(k: int, effort: int, version: Version | None) -> Matches:
            return self.retrieve([query], [country], k, effort, min_score, filters, version, lexical_weight)

        return paginate(retrieve, self._describe_index, page_size, efforts, version)

    def embed_query(self, queries: Texts, countries: Texts = None, version: Version | None = None) -> Embeddings:
        """Embed B queries with the countries of their searchers (or one country for all) by the query tower."""
        rows = {"query": to_texts("queries", queries)}
        rows["country"] = to_texts("countries", countries, len(rows["query"]))
        return self._embed("query_tower", rows, version)

    def embed_document(
        self,
        titles: Texts,
        descriptions: Texts = None,
        languages: Texts = None,
        countries: Texts = None,
        image_embeddings: ArrayLike | None = None,
        version: Version | None = None,
    ) -> Embeddings:
        """Embed B documents by the document tower.

        Args:
            titles: B titles.
            descriptions: B descriptions; None for no descriptions.
            languages: B languages, or one for all; None for no languages.
            countries: B countries, in the same way.
            image_embeddings: ``float[B, M, I]``; rows of zeros are padding. None for no images.
            version: Version of the document tower.
        """
        rows = {"title": to_texts("titles", titles)}
        columns = {"descriptions": descriptions, "languages": languages, "countries": countries}
        for (name, column), key in zip(columns.items(), ("description", "language", "country"), strict=True):
            rows[key] = to_texts(name, column, len(rows["title"]))
        if image_embeddings is not None:
            try:
                rows["image_embeddings"] = np.asarray(image_embeddings, np.float32)
            except (TypeError, ValueError) as error:
                raise InputError(f"image_embeddings must be numbers [B, M, I]: {error}") from error
        return self._embed("document_tower", rows, version)

    def status(self, model: str) -> list[VersionStatus]:
        """List the versions of a model on the server, newest first."""
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=_model_spec(model))
        versions = self._call(self._models.GetModelStatus, request).model_version_status
        name = get_model_status_pb2.ModelVersionStatus.State.Name
        return sorted((VersionStatus(v.version, name(v.state), v.status.error_message) for v in versions), reverse=True)

    def metadata(self, model: str, version: Version | None = None) -> dict[str, SignatureInfo]:
        """Describe the signatures of a model by name."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=_model_spec(model, version), metadata_field=["signature_def"]
        )
        response = self._call(self._prediction.GetModelMetadata, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)

        return describe_signatures(signatures)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __exit__(self, *details: object) -> None:
        """Close the connection."""
        self.close()

    def _embed(self, tower: str, rows: Arrays, version: Version | None) -> Embeddings:
        outputs, answered = self._predict_rows(tower, "serving_default", rows, version, self._batch_size)
        return Embeddings(outputs["embedding"], outputs["channel_weights"], answered)

    def _predict(self, model: str, inputs: Inputs, signature: str, version: Version | None) -> tuple[Arrays, int]:
        """The outputs of one request, and the version that answered."""
        request = predict_pb2.PredictRequest(model_spec=_model_spec(model, version))
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            try:
                array = to_array(value)
                if name in FINITE and not np.isfinite(array).all():
                    raise ValueError("it must hold finite numbers")
                request.inputs[name].CopyFrom(tensor_proto.encode(array))
            except (TypeError, ValueError) as error:
                raise InputError(f'input "{name}" cannot be sent: {error}') from error
        response = self._call(self._prediction.Predict, request)
        outputs = {name: tensor_proto.decode(value) for name, value in response.outputs.items()}
        return outputs, response.model_spec.version.value

    def _predict_rows(
        self, model: str, signature: str, inputs: Inputs, version: Version | None, batch_size: int
    ) -> tuple[Arrays, int]:
        """The outputs of all rows `[B, …]`, from one version of the model, and that version.

        If the version that answered the first rows is removed before the last, all are sent to its successor.
        """
        counts = {name: len(values) for name, values in inputs.items() if values.ndim}
        if len(set(counts.values())) > 1:
            received = ", ".join(f"{count} of {name}" for name, count in counts.items())
            raise InputError(f"all inputs must have one value for each row, got {received}; give equally many")
        starts = range(0, max(1, *counts.values()), batch_size)  # without a row, one request gives the shapes
        answers: list[tuple[Arrays, int]] = []
        while len(answers) < len(starts):
            rows = slice(starts[len(answers)], starts[len(answers)] + batch_size)
            batch = {name: values[rows] if values.ndim else values for name, values in inputs.items()}
            pinned = answers[0][1] if answers else version
            try:
                answers.append(self._predict_batch(model, signature, batch, pinned))
            except ServingError as error:
                if error.code is not grpc.StatusCode.NOT_FOUND or pinned == version:
                    raise
                answers.clear()
        first, answered = answers[0]
        return {name: np.concatenate([outputs[name] for outputs, _ in answers]) for name in first}, answered

    def _predict_batch(self, model: str, signature: str, inputs: Inputs, version: Version | None) -> tuple[Arrays, int]:
        """Predict with the inputs that the signature has; if that is refused and the signature has changed, retry."""
        known = self._signatures.get((model, signature)) or self._read_signature(model, signature, version)
        try:
            return self._predict(model, select_inputs(inputs, known), signature, version)
        except (InputError, ServingError) as error:
            if isinstance(error, ServingError) and error.code not in REFUSED:
                raise
            current = self._read_signature(model, signature, version)
            if current == known:
                raise
        return self._predict(model, select_inputs(inputs, current), signature, version)

    def _read_signature(self, model: str, signature: str, version: Version | None) -> SignatureInfo:
        signatures = self.metadata(model, version)
        if signature not in signatures:
            message = f'model "{model}" has no signature "{signature}"; it has {", ".join(sorted(signatures))}'
            raise ServingError(grpc.StatusCode.NOT_FOUND, message)
        self._signatures[model, signature] = signatures[signature]
        return signatures[signature]

    def _describe_index(self, version: Version | None) -> IndexInfo:
        """The index of a retriever; the last answer is kept, so that of a label or of the newest may be out of date."""
        index = self._indexes.get(version)
        if index is None:
            outputs, answered = self._predict("retriever", {}, "index", version)
            index = IndexInfo(int(outputs["partitions"]), int(outputs["default_effort"]), answered)
            self._indexes = {version: index, answered: index}
        return index

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout_seconds)
        except grpc.RpcError as error:
            raise ServingError(error.code(), error.details() or "the server gave no details") from error


def _model_spec(model: str, version: Version | None = None) -> model_pb2.ModelSpec:
    if isinstance(version, str):
        return model_pb2.ModelSpec(name=model, version_label=version)
    number = None if version is None else {"value": to_int("version", version, 0, 2**63)}
    return model_pb2.ModelSpec(name=model, version=number)
