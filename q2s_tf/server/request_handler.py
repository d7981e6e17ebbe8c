"""TensorFlow Serving's calls as functions of messages: the one place that answers requests, for gRPC and for REST."""

import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cachetools import TTLCache
from grpc import StatusCode
from tensorflow_serving.apis import get_model_metadata_pb2 as metadata_pb2
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, GetModelStatusResponse
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest

from q2s_tf.server import server_metrics
from q2s_tf.server.model_manager import ModelManager
from q2s_tf.server.request_waits import MAX_RUNNING, MAX_WAITING
from q2s_tf.server.servable import DEFAULT_SIGNATURE
from q2s_tf.server.server_config import RequestLimits
from q2s_tf.serving.serving_error import ServingError

log = logging.getLogger(__name__)

ENTRY_BYTES = 450  # memory of an entry of the cache in addition to its answer (measured: 408)


class RequestHandler:
    """Answers requests from the loaded models, equal ones from a cache. Its methods raise `ServingError`."""

    def __init__(
        self, models: ModelManager, limits: RequestLimits, cache_seconds: float = 0.0, cache_bytes: int = 0
    ) -> None:
        """Keeps answers for ``cache_seconds``; 0 for no cache."""
        self.models, self.limits = models, limits
        self._running, self._waiting = threading.Semaphore(MAX_RUNNING), threading.Semaphore(MAX_WAITING)
        size = cache_bytes if cache_seconds else 0
        self._cache: TTLCache = TTLCache(size, cache_seconds, getsizeof=lambda answer: len(answer) + ENTRY_BYTES)
        self._cache_lock = threading.Lock()

    @contextmanager
    def turn(self, entrypoint: str, remaining_seconds: float | None = None) -> Iterator[ModelSpec]:
        """Waits until a Predict request may run, runs the block, and records it in the metrics.

        ``remaining_seconds`` is the time until the client's deadline. Yields a `ModelSpec` to copy that of the request
        to, for the metrics.
        """
        start, spec, code = time.monotonic(), ModelSpec(), StatusCode.INTERNAL
        try:
            seconds = self.limits.max_seconds
            self._wait_to_run(seconds if remaining_seconds is None else min(remaining_seconds, seconds))
            try:
                yield spec
            finally:
                self._running.release()
            code = StatusCode.OK
        except ServingError as error:
            code = error.code
            raise
        finally:
            model, signature = spec.name, spec.signature_name or DEFAULT_SIGNATURE
            if code is not StatusCode.OK:  # the names may not exist
                signatures = self.models.signatures(model)
                model, signature = model if signatures else "", signature if signature in signatures else ""
            labels = server_metrics.request_seconds.labels(model, signature, entrypoint, code.name)
            labels.observe(time.monotonic() - start)

    def _wait_to_run(self, seconds: float) -> None:
        if seconds > 0 and self._running.acquire(blocking=False):
            return
        overload = "the server receives more requests than it can answer"
        if not self._waiting.acquire(blocking=False):
            raise ServingError(StatusCode.UNAVAILABLE, f"{MAX_WAITING} requests wait already; {overload}")
        try:
            if seconds <= 0 or not self._running.acquire(timeout=seconds):
                limit = f"the request could not run within {max(0.0, seconds):.3g} s"
                raise ServingError(StatusCode.DEADLINE_EXCEEDED, f"{limit}; {overload}")
        finally:
            self._waiting.release()

    def predict(self, request: PredictRequest) -> bytes:
        """Runs one signature of one model and returns the serialized ``PredictResponse``."""
        servable = self.models.find(request.model_spec)
        if not self._cache.maxsize:
            return servable.predict(request, self.limits).SerializeToString()
        content = request.SerializeToString(deterministic=True)
        # Not the version: another one may be loaded under its number, while this one still answers.
        key = servable.loading, hashlib.blake2b(content, digest_size=32).digest()
        with self._cache_lock:
            answer = self._cache.get(key)
        server_metrics.cache_requests.labels(servable.name, "miss" if answer is None else "hit").inc()
        if answer is None:
            answer = servable.predict(request, self.limits).SerializeToString()
            with suppress(ValueError), self._cache_lock:  # an answer may be larger than the cache
                self._cache[key] = answer
        return answer

    def metadata(self, request: metadata_pb2.GetModelMetadataRequest) -> metadata_pb2.GetModelMetadataResponse:
        """The signatures of a model."""
        if list(request.metadata_field) != ["signature_def"]:
            received = ", ".join(request.metadata_field) or "none"
            raise ServingError(StatusCode.INVALID_ARGUMENT, f"metadata_field must be signature_def, got {received}")
        servable = self.models.find(request.model_spec)
        spec = ModelSpec(name=servable.name, version={"value": servable.version})
        response = metadata_pb2.GetModelMetadataResponse(model_spec=spec)
        response.metadata["signature_def"].Pack(metadata_pb2.SignatureDefMap(signature_def=servable.signature_defs))
        return response

    def status(self, request: GetModelStatusRequest) -> GetModelStatusResponse:
        """The states of a model's versions, newest first, with the errors of those that failed to load."""
        return GetModelStatusResponse(model_version_status=self.models.statuses(request.model_spec))


def error_status(error: Exception) -> tuple[StatusCode, str]:
    """The code and message to answer with. Logs an exception that is not a `ServingError`, because it is a bug."""
    if isinstance(error, ServingError):
        message = error.message.encode(errors="backslashreplace").decode()
        return error.code, message[:500]  # gRPC sends it as metadata, which is limited to 8 KiB
    log.error("a request failed because of a bug in the server", exc_info=error)
    return StatusCode.INTERNAL, "the server failed to answer this request; its log has the error"
