"""Requests of one connection: whole tables in batches of one version, with the inputs that the model takes.

Importing this module imports TensorFlow (about 5 s), for the reason that `q2s_tf.serving.messages` gives.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import grpc
import numpy as np
from numpy.typing import ArrayLike
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from q2s_tf.errors import InputError
from q2s_tf.serving.messages import (
    FILTER_PREFIX,
    SignatureInfo,
    Version,
    VersionStatus,
    model_spec,
    predict_request,
    read_outputs,
    read_signatures,
    read_statuses,
)
from q2s_tf.serving.serving_error import ServingError

Request = TypeVar("Request")
Response = TypeVar("Response")
Outputs = dict[str, np.ndarray]

REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,  # what TensorFlow Serving answers for a signature that is not there
}
"""The codes of a request that does not fit what is served."""


class Requests:
    """Sends requests over one channel; safe to share between threads. Every method raises `ServingError`.

    Args:
        channel: Of `q2s_tf.serving.connection.connect`.
        timeout_seconds: How long each request may take.
        batch_size: The most rows of a request.
    """

    def __init__(self, channel: grpc.Channel, timeout_seconds: float, batch_size: int) -> None:
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(channel)
        self._timeout_seconds = timeout_seconds
        self._batch_size = batch_size
        self._signatures: dict[tuple[str, str], SignatureInfo] = {}

    def status(self, model: str) -> list[VersionStatus]:
        """The versions of a model that the server knows, newest first."""
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=model_spec(model))
        return read_statuses(self._ask(self._models.GetModelStatus, request))

    def metadata(self, model: str, version: Version | None = None) -> dict[str, SignatureInfo]:
        """The signatures of a model by name."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=model_spec(model, version))
        request.metadata_field.append("signature_def")
        return read_signatures(self._ask(self._prediction.GetModelMetadata, request))

    def predict(
        self, model: str, inputs: Mapping[str, ArrayLike], signature: str, version: Version | None
    ) -> tuple[Outputs, int]:
        """One request: the outputs, and the version that they are from.

        Raises:
            InputError: An input is no array of numbers, booleans or strings.
        """
        response = self._ask(self._prediction.Predict, predict_request(model, inputs, signature, version))
        return read_outputs(response), response.model_spec.version.value

    def predict_rows(
        self,
        model: str,
        rows: Mapping[str, np.ndarray],
        knobs: Mapping[str, ArrayLike],
        signature: str,
        version: Version | None,
    ) -> tuple[Outputs, int]:
        """The outputs of all rows, from one version of the model, and which version that is.

        When the version that answered the first rows is gone before the last, all are asked of its successor.

        Args:
            model: Which.
            rows: Values ``[B, …]`` by input; those that the signature does not take are left out.
            knobs: Inputs that are the same in every request.
            signature: Of the model.
            version: Of the model.

        Raises:
            InputError: Unlike numbers of rows, or a filter that the signature does not have.
        """
        count = _count(rows)
        starts = range(0, max(count, 1), self._batch_size)  # no row at all is one request, for the outputs' shapes
        answers: list[tuple[Outputs, int]] = []
        while len(answers) < len(starts):
            start = starts[len(answers)]
            batch = {key: values[start : start + self._batch_size] for key, values in rows.items()}
            pinned = answers[0][1] if answers else version
            try:
                answers.append(self._predict_taken(model, batch, knobs, signature, pinned))
            except ServingError as error:
                if error.code is not grpc.StatusCode.NOT_FOUND or pinned == version:
                    raise
                answers.clear()  # the version of the first rows is gone
        first, answered = answers[0]
        return {key: np.concatenate([outputs[key] for outputs, _ in answers]) for key in first}, answered

    def _predict_taken(
        self,
        model: str,
        rows: Mapping[str, np.ndarray],
        knobs: Mapping[str, ArrayLike],
        signature: str,
        version: Version | None,
    ) -> tuple[Outputs, int]:
        """Predicts with those of the rows that the signature takes."""
        known = self._signatures.get((model, signature)) or self._learn(model, signature, version)
        try:
            return self.predict(model, {**_taken(rows, known), **knobs}, signature, version)
        except (InputError, ServingError) as error:
            if isinstance(error, ServingError) and error.code not in REFUSED:
                raise
            # Another version may take other inputs than the one that was asked about.
            learnt = self._learn(model, signature, version)
            if learnt == known:
                raise
        return self.predict(model, {**_taken(rows, learnt), **knobs}, signature, version)

    def _learn(self, model: str, signature: str, version: Version | None) -> SignatureInfo:
        signatures = self.metadata(model, version)
        if signature not in signatures:
            if signature == "retrieve_filtered":
                raise InputError("the retriever has no filters; name columns when it is exported: --filter COLUMN")
            there = ", ".join(sorted(signatures))
            raise ServingError(
                grpc.StatusCode.NOT_FOUND, f'model "{model}" has no signature "{signature}"; it has {there}'
            )
        self._signatures[model, signature] = signatures[signature]
        return signatures[signature]

    def _ask(self, method: Callable[..., Response], request: Request) -> Response:
        try:
            return method(request, timeout=self._timeout_seconds)
        except grpc.RpcError as error:
            raise ServingError(error.code(), error.details() or "no details came") from error


def _count(rows: Mapping[str, np.ndarray]) -> int:
    """How many rows there are.

    Raises:
        InputError: Not as many of one as of another.
    """
    counts = {key: len(values) for key, values in rows.items()}
    if len(set(counts.values())) > 1:
        came = ", ".join(f"{count} of {key}" for key, count in counts.items())
        raise InputError(f"all inputs must have one value a row, and there came {came}; give equally many")
    return next(iter(counts.values()))


def _taken(rows: Mapping[str, np.ndarray], signature: SignatureInfo) -> dict[str, np.ndarray]:
    """The rows that the signature takes; filters and images that it takes and that did not come are left open.

    Raises:
        InputError: A filter came that it does not have.
    """
    unknown = [key.removeprefix(FILTER_PREFIX) for key in rows if key.startswith(FILTER_PREFIX)]
    unknown = [column for column in unknown if column not in signature.filters]
    if unknown:
        there = ", ".join(signature.filters)
        raise InputError(f'there is no filter "{unknown[0]}"; the retriever was exported to filter by {there}')
    taken = {key: values for key, values in rows.items() if key in signature.inputs}
    count = _count(rows)
    for column in signature.filters:
        taken.setdefault(FILTER_PREFIX + column, np.full(count, "", object))
    images = signature.inputs.get("image_embeddings")
    if images is not None and images.shape is not None and "image_embeddings" not in rows:
        taken["image_embeddings"] = np.zeros((count, 0, images.shape[-1] or 0), np.float32)
    return taken
