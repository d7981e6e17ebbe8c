"""TensorFlow Serving's calls as functions of messages, for the gRPC services and the REST routes alike."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
)

from q2s_tf.errors import InputError
from q2s_tf.server.cache import AnswerCache
from q2s_tf.server.limits import Limits
from q2s_tf.server.servable import DEFAULT_SIGNATURE, Servable
from q2s_tf.server.served_models import Models
from q2s_tf.server.server_config import check_model_configs
from q2s_tf.server.server_metrics import Metrics
from q2s_tf.serving.serving_error import ServingError


class Api:
    """Answers from loaded models. Each method raises `ServingError` with the code and message to answer with."""

    def __init__(
        self, models: Models, metrics: Metrics, limits: Limits, cache: AnswerCache | None, changed: Callable[[], None]
    ) -> None:
        """``changed`` is called when a reload has changed what is served."""
        self._models = models
        self._metrics = metrics
        self._limits = limits
        self._cache = cache
        self._changed = changed

    @contextmanager
    def counted(self, spec: model_pb2.ModelSpec, entrypoint: str) -> Iterator[None]:
        """Counts what the block does as one Predict request of ``spec``, and the code it ends with, in the metrics."""
        start = time.monotonic()
        code = grpc.StatusCode.INTERNAL
        try:
            yield
            code = grpc.StatusCode.OK
        except ServingError as error:
            code = error.code
            raise
        finally:
            labels = self._labels(spec, known=code is grpc.StatusCode.OK)
            self._metrics.observe((*labels, entrypoint, code.name), time.monotonic() - start)

    def predict(self, request: predict_pb2.PredictRequest, arrival: float, deadline: float | None = None) -> bytes:
        """The serialized `PredictResponse` of one signature of one model.

        Args:
            request: What is asked.
            arrival: When it came, by `time.monotonic`: it may have waited for a thread since.
            deadline: When nobody will wait for the answer any more, by the same clock.
        """
        self._check_time(time.monotonic(), arrival, deadline)
        servable = self.find(request.model_spec)
        if self._cache is None:
            return servable.predict(request, self._limits.max_rows).SerializeToString()
        question = request.SerializeToString(deterministic=True)
        answer = self._cache.get(servable.loading, question)
        self._metrics.count_cache(servable.name, hit=answer is not None)
        if answer is None:
            answer = servable.predict(request, self._limits.max_rows).SerializeToString()
            self._cache.put(servable.loading, question, answer)
        return answer

    def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """The signatures of a model."""
        if list(request.metadata_field) != ["signature_def"]:
            came = ", ".join(request.metadata_field) or "none"
            raise ServingError(
                grpc.StatusCode.INVALID_ARGUMENT, f"metadata_field must be signature_def, and {came} came"
            )
        servable = self.find(request.model_spec)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, definition in servable.signature_defs.items():
            signatures.signature_def[key].CopyFrom(definition)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        response.metadata["signature_def"].Pack(signatures)
        return response

    def status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """The state of each version of a model, newest first, and why one was refused."""
        response = get_model_status_pb2.GetModelStatusResponse()
        for version, (state, error) in self._models.states(*_asked(request.model_spec)).items():
            status = response.model_version_status.add(version=version, state=state)
            status.status.error_code = grpc.StatusCode.UNKNOWN.value[0] if error else 0
            status.status.error_message = error
        return response

    def reload(self, request: model_management_pb2.ReloadConfigRequest) -> model_management_pb2.ReloadConfigResponse:
        """Serves the models of another config; returns when they are loaded."""
        try:
            configs = check_model_configs(request.config)
        except InputError as error:
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, f"{error}; the old config stays") from error
        self._models.reload(configs)
        self._changed()
        return model_management_pb2.ReloadConfigResponse()

    def find(self, spec: model_pb2.ModelSpec) -> Servable:
        """The loaded version that a request is for."""
        return self._models.find(*_asked(spec))

    def unimplemented(self, method: str) -> NoReturn:
        """Refuses a call that only classification and regression models have an answer to."""
        raise ServingError(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served here; use Predict")

    def _check_time(self, now: float, arrival: float, deadline: float | None) -> None:
        if deadline is not None and now >= deadline:
            raise ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline was over before the request could run")
        if now - arrival > self._limits.max_seconds:
            raise ServingError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"it waited {now - arrival:.1f} s for a thread, and {self._limits.max_seconds:g} s are the limit here; "
                "the server has more requests than it can answer",
            )

    def _labels(self, spec: model_pb2.ModelSpec, known: bool) -> tuple[str, str]:
        """Model and signature for the metrics, ``""`` where there is none of that name: names come from strangers."""
        signature = spec.signature_name or DEFAULT_SIGNATURE
        if known:
            return spec.name, signature
        try:
            servable = self._models.find(spec.name)
        except ServingError:
            return "", ""
        return servable.name, signature if signature in servable.signatures else ""


def _asked(spec: model_pb2.ModelSpec) -> tuple[str, int | None, str | None]:
    """Name, version and version label of a `ModelSpec`."""
    return (
        spec.name,
        spec.version.value if spec.HasField("version") else None,
        spec.version_label if spec.HasField("version_label") else None,
    )
