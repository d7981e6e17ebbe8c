"""TensorFlow Serving's calls as functions of messages: the one place that answers requests, for gRPC and for REST."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from tensorflow_serving.apis import get_model_metadata_pb2 as metadata_pb2
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, GetModelStatusResponse
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest, ReloadConfigResponse
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest

from q2s_tf.errors import InputError
from q2s_tf.server.answer_cache import AnswerCache, request_key
from q2s_tf.server.model_manager import ModelManager
from q2s_tf.server.servable import DEFAULT_SIGNATURE
from q2s_tf.server.server_config import RequestLimits, check_model_configs
from q2s_tf.server.server_metrics import ServerMetrics
from q2s_tf.serving.serving_error import ServingError

log = logging.getLogger(__name__)


class RequestHandler:
    """Answers requests from the loaded models. Its methods raise `ServingError`; see `error_status`."""

    def __init__(self, models: ModelManager, limits: RequestLimits, cache: AnswerCache | None) -> None:
        self.models = models
        self.limits = limits
        self.metrics = ServerMetrics(models, cache)
        self._cache = cache

    @contextmanager
    def measure(self, spec: ModelSpec, entrypoint: str) -> Iterator[None]:
        """Records the block in the metrics, as one Predict request for ``spec`` with its duration and status code."""
        start = time.monotonic()
        code = grpc.StatusCode.INTERNAL
        try:
            yield
            code = grpc.StatusCode.OK
        except ServingError as error:
            code = error.code
            raise
        finally:
            seconds = time.monotonic() - start
            model, signature = spec.name, spec.signature_name or DEFAULT_SIGNATURE
            if code is not grpc.StatusCode.OK:  # the names may not exist
                signatures = self.models.signature_names(model)
                model, signature = model if signatures else "", signature if signature in signatures else ""
            self.metrics.request_seconds.labels(model, signature, entrypoint, code.name).observe(seconds)

    def predict(self, request: PredictRequest, arrival: float, remaining_seconds: float | None = None) -> bytes:
        """Runs one signature of one model and returns the serialized ``PredictResponse``.

        Args:
            request: The inputs, and optionally a version, a signature and an ``output_filter``.
            arrival: When the request arrived, by `time.monotonic`; it may have waited for a thread since.
            remaining_seconds: Time until the client's deadline, None without one.
        """
        if remaining_seconds is not None and remaining_seconds <= 0:
            raise ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the request could run")
        waited = time.monotonic() - arrival
        if waited > self.limits.max_seconds:
            limit = f"the request waited {waited:.1f} s for a thread, and the limit is {self.limits.max_seconds:g} s"
            message = f"{limit}; the server receives more requests than it can answer"
            raise ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, message)
        servable = self.models.find(request.model_spec)
        if self._cache is None:
            return servable.predict(request, self.limits.max_rows).SerializeToString()
        key = request_key(servable.loading, request)
        answer = self._cache.get(key)
        self.metrics.cache_requests.labels(servable.name, "miss" if answer is None else "hit").inc()
        if answer is None:
            answer = servable.predict(request, self.limits.max_rows).SerializeToString()
            self._cache.put(key, answer)
        return answer

    def metadata(self, request: metadata_pb2.GetModelMetadataRequest) -> metadata_pb2.GetModelMetadataResponse:
        """The signatures of a model."""
        if list(request.metadata_field) != ["signature_def"]:
            received = ", ".join(request.metadata_field) or "none"
            message = f"metadata_field must be signature_def, got {received}"
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)
        servable = self.models.find(request.model_spec)
        response = metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        response.metadata["signature_def"].Pack(metadata_pb2.SignatureDefMap(signature_def=servable.signature_defs))
        return response

    def status(self, request: GetModelStatusRequest) -> GetModelStatusResponse:
        """The states of a model's versions, newest first, with the errors of those that failed to load."""
        return GetModelStatusResponse(model_version_status=self.models.statuses(request.model_spec))

    def reload(self, request: ReloadConfigRequest) -> ReloadConfigResponse:
        """Replaces the served models by those of another config; returns when they are loaded."""
        try:
            configs = check_model_configs(request.config)
        except InputError as error:
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, f"{error}; the old config stays") from error
        self.models.reload(configs)
        return ReloadConfigResponse()


def error_status(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The code and message to answer with. Logs an exception that is not a `ServingError`, because it is a bug."""
    if isinstance(error, ServingError):
        return error.code, error.message
    log.error("a request failed because of a bug in the server", exc_info=error)
    return grpc.StatusCode.INTERNAL, "the server failed to answer this request; its log has the error"
