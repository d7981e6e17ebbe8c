"""A client of the servables, over TensorFlow Serving's own gRPC API: for the embedded server and for TF Serving itself.

Importing this module imports TensorFlow (about 5 s): the messages of ``tensorflow-serving-api`` are built on the ones
that live inside the ``tensorflow`` package, and Python imports a package before its modules.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

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
from q2s_tf.serving import DEFAULT_EFFORT, tensor_proto
from q2s_tf.serving.errors import ServingError

MAX_MESSAGE_BYTES = 64 << 20
_RETRY_POLICY = {
    "methodConfig": [
        {
            "name": [
                {"service": "tensorflow.serving.PredictionService"},
                {"service": "tensorflow.serving.ModelService"},
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

Request = TypeVar("Request")
Response = TypeVar("Response")


class Matches(NamedTuple):
    """The best documents of each query, best first: ``document_ids: str[B, k]``, ``scores: float[B, k]``.

    Where there are fewer than k (a small index, or scores under ``min_score``) the id is ``""`` and the score -1.
    """

    document_ids: np.ndarray
    scores: np.ndarray


class Embeddings(NamedTuple):
    """What a tower gives: ``embedding: float[B, D]`` of unit length and ``channel_weights: float[B, N]``."""

    embedding: np.ndarray
    channel_weights: np.ndarray


class VersionStatus(NamedTuple):
    """A version of a model, its state (``AVAILABLE``, ``LOADING``, ``END``, …) and why it was refused, if it was."""

    version: int
    state: str
    error: str


class TensorInfo(NamedTuple):
    """One input or output of a signature; ``shape`` has None where any size will do, and is None for any rank."""

    dtype: str
    shape: tuple[int | None, ...] | None


class SignatureInfo(NamedTuple):
    """The inputs and outputs of a signature by name."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


class Client:
    """Asks one server; safe to share between threads, and to use in a ``with`` statement.

    `retrieve`, `embed_query` and `embed_document` take whatever a query or a document may have, and send what the model
    has channels for; they ask the server once for its signature.

    Every method raises `ServingError` with the gRPC code and message if the server does not answer with success within
    the deadline. A request is sent again (at most three times, within the deadline) only if the server was UNAVAILABLE.
    """

    def __init__(self, target: str = "127.0.0.1:8500", timeout_seconds: float = 10.0) -> None:
        """Connects at the first request to ``target`` (``host:port``); each request has ``timeout_seconds``."""
        self.target = target
        self.timeout_seconds = timeout_seconds
        options = [
            ("grpc.service_config", json.dumps(_RETRY_POLICY)),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
        self._channel = grpc.insecure_channel(target, options=options)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._known: dict[tuple[str, str], SignatureInfo] = {}

    def predict(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        signature: str = "serving_default",
        version: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs one signature; strings come back as object arrays of ``bytes``.

        NumPy arrays are sent with their dtype; plain Python numbers as float32 and int32, as TensorFlow would.

        Raises:
            InputError: An input is no array of numbers, booleans or strings.
        """
        request = predict_pb2.PredictRequest(model_spec=_model_spec(model, version))
        request.model_spec.signature_name = signature
        for key, value in inputs.items():
            try:
                request.inputs[key].CopyFrom(tensor_proto.encode(_to_array(value)))
            except ValueError as error:
                raise InputError(f'input "{key}" cannot be sent: {error}') from error
        response = self._ask(self._prediction.Predict, request)
        return {key: tensor_proto.decode(value) for key, value in response.outputs.items()}

    def retrieve(
        self,
        queries: Sequence[str],
        countries: Sequence[str],
        k: int = 10,
        effort: int = DEFAULT_EFFORT,
        min_score: float = -1.0,
    ) -> Matches:
        """The ``k`` best documents of each query.

        Args:
            queries: B queries.
            countries: B countries of the searchers, ``""`` where unknown.
            k: How many documents each.
            effort: How many partitions of the index are searched: more finds more of the true best, and takes longer.
                0 leaves it to the index: what its export found to be enough.
            min_score: The least cosine that counts, the paper's radius; -1 lets all through.

        Raises:
            InputError: ``k`` is under 1, ``effort`` under 0, or one of them no int32.
        """
        for name, value, least in (("k", k, 1), ("effort", effort, 0)):
            if not least <= value < 2**31:
                raise InputError(f"{name} must be at least {least} and below 2^31, got {value}")
        values: dict[str, ArrayLike] = {
            "query": _strings(queries),
            "country": _strings(countries),
            "k": np.int32(k),
            "effort": np.int32(effort),
            "min_score": np.float32(min_score),
        }
        outputs = self._predict_taken("retriever", values, "retrieve")
        return Matches(_to_text(outputs["document_id"]), outputs["score"])

    def embed_query(self, queries: Sequence[str], countries: Sequence[str]) -> Embeddings:
        """The query tower's vectors and fusion weights of B queries and the searchers' countries."""
        outputs = self._predict_taken("query_tower", {"query": _strings(queries), "country": _strings(countries)})
        return Embeddings(outputs["embedding"], outputs["channel_weights"])

    def embed_document(
        self,
        titles: Sequence[str],
        descriptions: Sequence[str] | None = None,
        languages: Sequence[str] | None = None,
        countries: Sequence[str] | None = None,
        image_embeddings: np.ndarray | None = None,
    ) -> Embeddings:
        """The document tower's vectors and fusion weights of B documents.

        Args:
            titles: B titles.
            descriptions: B descriptions; None, or ``""`` for one, means missing, as in the others.
            languages: B languages.
            countries: B countries.
            image_embeddings: ``float[B, M, I]``, rows of zeros are padding; None means no images.
        """
        values: dict[str, ArrayLike] = {"title": _strings(titles)}
        texts = {"description": descriptions, "language": languages, "country": countries}
        for key, column in texts.items():
            values[key] = _strings([""] * len(titles) if column is None else column)
        if image_embeddings is not None:
            values["image_embeddings"] = np.asarray(image_embeddings, np.float32)
        outputs = self._predict_taken("document_tower", values)
        return Embeddings(outputs["embedding"], outputs["channel_weights"])

    def status(self, model: str) -> list[VersionStatus]:
        """The versions of a model that the server knows, newest first."""
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=_model_spec(model, None))
        response = self._ask(self._models.GetModelStatus, request)
        name = get_model_status_pb2.ModelVersionStatus.State.Name
        states = response.model_version_status
        return sorted((VersionStatus(s.version, name(s.state), s.status.error_message) for s in states), reverse=True)

    def metadata(self, model: str, version: int | None = None) -> dict[str, SignatureInfo]:
        """The signatures of a model by name."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=_model_spec(model, version))
        request.metadata_field.append("signature_def")
        response = self._ask(self._prediction.GetModelMetadata, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return {
            key: SignatureInfo(_tensor_infos(definition.inputs), _tensor_infos(definition.outputs))
            for key, definition in signatures.signature_def.items()
            if definition.method_name  # an initialiser has none, and cannot be called
        }

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

    def _predict_taken(
        self, model: str, values: Mapping[str, ArrayLike], signature: str = "serving_default"
    ) -> dict[str, np.ndarray]:
        """Predicts with those of the values that the signature takes, and with no images if it wants some."""
        known = self._known.get((model, signature)) or self._learn(model, signature)
        try:
            return self.predict(model, _taken(values, known), signature)
        except ServingError as error:
            # A new version may take other inputs than the one that was asked about.
            if error.code is not grpc.StatusCode.INVALID_ARGUMENT or self._learn(model, signature) == known:
                raise
        return self.predict(model, _taken(values, self._known[model, signature]), signature)

    def _learn(self, model: str, signature: str) -> SignatureInfo:
        signatures = self.metadata(model)
        if signature not in signatures:
            raise ServingError(grpc.StatusCode.NOT_FOUND, f'model "{model}" has no signature "{signature}"')
        self._known[model, signature] = signatures[signature]
        return signatures[signature]

    def _ask(self, method: Callable[..., Response], request: Request) -> Response:
        try:
            return method(request, timeout=self.timeout_seconds)
        except grpc.RpcError as error:
            raise ServingError(error.code(), error.details() or "no details came") from error


def _model_spec(model: str, version: int | None) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=model)
    if version is not None:
        spec.version.value = version
    return spec


def _to_array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    array = np.asarray(value)
    if array.dtype.kind in "SU":  # NumPy's own strings drop NULs at the end; objects keep them
        return np.asarray(value, dtype=object)
    narrow = {"i": np.int32, "f": np.float32}.get(array.dtype.kind)
    return array.astype(narrow) if narrow else array


def _taken(values: Mapping[str, ArrayLike], signature: SignatureInfo) -> dict[str, ArrayLike]:
    taken = {key: value for key, value in values.items() if key in signature.inputs}
    images = signature.inputs.get("image_embeddings")
    if images is not None and images.shape is not None and "image_embeddings" not in values:
        taken["image_embeddings"] = np.zeros((len(np.asarray(values["title"])), 0, images.shape[-1] or 0), np.float32)
    return taken


def _strings(values: Sequence[str]) -> np.ndarray:
    if isinstance(values, str | bytes):
        raise InputError(f"a list of texts is needed, one per row, and the single text {values!r} came; wrap it in []")
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _to_text(array: np.ndarray) -> np.ndarray:
    """Document ids are text; what is no UTF-8 is kept readable rather than refused."""
    texts = np.empty(array.size, object)
    texts[:] = [value.decode("utf-8", errors="backslashreplace") for value in array.ravel()]
    return texts.reshape(array.shape)


def _tensor_infos(infos: Mapping[str, Any]) -> dict[str, TensorInfo]:
    return {
        key: TensorInfo(
            tensor_proto.dtype_name(info.dtype),
            None
            if info.tensor_shape.unknown_rank
            else tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim),
        )
        for key, info in sorted(infos.items())
    }
