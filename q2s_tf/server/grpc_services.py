"""TensorFlow Serving's gRPC services and the health service, over a `RequestHandler`."""

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection, reflection_pb2
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest
from tensorflow_serving.apis.predict_pb2 import PredictRequest

from q2s_tf.server.request_handler import RequestHandler, error_status
from q2s_tf.server.request_threads import RequestThreads
from q2s_tf.serving.serving_error import ServingError

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
SERVICES = (PREDICTION_SERVICE, MODEL_SERVICE)
MAX_UNREAD = 32
"""Answers of more than `UNREAD_BYTES` whose clients have not read them yet; a further one ends the oldest call."""
UNREAD_BYTES = 64 << 10
UNREAD_SECONDS = 30.0

# The import adds the services to the descriptor pool, from which the reflection service reads them. Current protobuf
# cannot import the rest of these generated modules.
for module in ("prediction_service_pb2", "model_service_pb2"):
    with suppress(AttributeError):
        importlib.import_module(f"tensorflow_serving.apis.{module}")


class GrpcServices(grpc.GenericRpcHandler):
    """Routes the methods of all services.

    gRPC would wait for a request's message itself, without a limit. So every method is registered as one that reads a
    stream of messages, and `receive` reads them.
    """

    def __init__(
        self, handler: RequestHandler, checks: health.HealthServicer, threads: RequestThreads, reflect: bool
    ) -> None:
        """Answers in ``threads``, health from ``checks``, and gRPC's reflection if ``reflect``."""
        self._receiving = threads.waits(handler.limits.receive_seconds)
        self._unread = threads.waits(UNREAD_SECONDS, MAX_UNREAD)

        def predict(message: bytes, context: grpc.ServicerContext, arrival: float) -> bytes:
            with handler.turn("GRPC", arrival, context.time_remaining()) as spec:
                request = _parse(PredictRequest, message)
                spec.CopyFrom(request.model_spec)
                return handler.predict(request)

        def unary(request_class: Any, answer: Callable[[Any, grpc.ServicerContext], Message]) -> Callable[..., bytes]:
            return lambda message, context, _: answer(_parse(request_class, message), context).SerializeToString()

        self._methods: dict[str, Callable[[bytes, grpc.ServicerContext, float], bytes]] = {
            f"/{PREDICTION_SERVICE}/Predict": predict,
            f"/{PREDICTION_SERVICE}/GetModelMetadata": unary(GetModelMetadataRequest, lambda r, _: handler.metadata(r)),
            f"/{MODEL_SERVICE}/GetModelStatus": unary(GetModelStatusRequest, lambda r, _: handler.status(r)),
            f"/{MODEL_SERVICE}/HandleReloadConfigRequest": unary(ReloadConfigRequest, lambda r, _: handler.reload(r)),
            f"/{health.SERVICE_NAME}/Check": unary(HealthCheckRequest, checks.Check),
        }

        def watch(messages: Iterator[Any], context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
            checks.Watch(next(self.receive(messages, context), HealthCheckRequest()), context, send)

        watch.experimental_non_blocking = True  # type: ignore[attr-defined]  # a watch holds no thread
        self._streams = {
            f"/{health.SERVICE_NAME}/Watch": grpc.stream_stream_rpc_method_handler(
                watch, HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
            )
        }
        if reflect:
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            answers = reflection.ReflectionServicer(names).ServerReflectionInfo
            self._streams[f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"] = grpc.stream_stream_rpc_method_handler(
                lambda messages, context: answers(self.receive(messages, context), context),
                reflection_pb2.ServerReflectionRequest.FromString,
                reflection_pb2.ServerReflectionResponse.SerializeToString,
            )

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a method, None for a method of another service; called when a request arrives."""
        if details.method in self._streams:
            return self._streams[details.method]
        answer = self._methods.get(details.method)
        if answer is None:
            service, _, method = details.method.rpartition("/")
            message = f"{method} is not supported; use Predict"
            return (
                grpc.stream_unary_rpc_method_handler(
                    lambda _, context: context.abort(grpc.StatusCode.UNIMPLEMENTED, message)
                )
                if service == f"/{PREDICTION_SERVICE}"
                else None
            )
        arrival = time.monotonic()

        def respond(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            message = next(self.receive(messages, context), b"")
            try:
                response = answer(message, context, arrival)
            except Exception as error:
                return context.abort(*error_status(error))
            if len(response) > UNREAD_BYTES and context.add_callback(lambda: self._unread.finish(context)):
                self._unread.start(context, context.cancel)
            return response

        return grpc.stream_unary_rpc_method_handler(respond)

    def receive(self, messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """The messages of a call, which is cancelled if one of them is late."""
        while True:
            self._receiving.start(context, context.cancel)
            try:
                message = next(messages, None)
            finally:
                self._receiving.finish(context)
            if message is None:
                return
            yield message


def _parse(message_class: Any, content: bytes) -> Any:
    try:
        return message_class.FromString(content)
    except DecodeError as error:
        message = f"the message is not a {message_class.DESCRIPTOR.full_name}"
        raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, message) from error
