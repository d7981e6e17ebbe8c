"""TensorFlow Serving's gRPC services and the health service, over a `RequestHandler`."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import StatusCode
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
from tensorflow_serving.apis.predict_pb2 import PredictRequest

from q2s_tf.server.request_handler import RequestHandler, error_status
from q2s_tf.server.request_waits import PeerWaits
from q2s_tf.serving.serving_error import ServingError

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
SERVICES = (PREDICTION_SERVICE, MODEL_SERVICE)
UNREAD_BYTES = 64 << 10  # a larger answer is one of ``unread`` until its client has read it


def make_services(
    handler: RequestHandler, checks: health.HealthServicer, receiving: PeerWaits, unread: PeerWaits
) -> list[grpc.GenericRpcHandler]:
    """All services, with health from ``checks``.

    gRPC would wait for a request's message itself, without a limit. So every method is registered as one that reads a
    stream of messages. A call is cancelled if its message (``receiving``) or its reader (``unread``) is late.
    """

    def receive(messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """The message of a call, None if it has none."""
        receiving.start(context, context.cancel)
        try:
            return next(messages, None)
        finally:
            receiving.finish(context)

    def method(answer: Callable[[bytes, grpc.ServicerContext], bytes]) -> grpc.RpcMethodHandler:
        def respond(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            message = receive(messages, context) or b""
            try:
                response = answer(message, context)
            except Exception as error:
                return context.abort(*error_status(error))
            if len(response) > UNREAD_BYTES and context.add_callback(lambda: unread.finish(context)):
                unread.start(context, context.cancel)
            return response

        return grpc.stream_unary_rpc_method_handler(respond)

    def simple(request_class: Any, answer: Callable[[Any, grpc.ServicerContext], Message]) -> grpc.RpcMethodHandler:
        return method(lambda message, context: answer(_parse(request_class, message), context).SerializeToString())

    def predict(message: bytes, context: grpc.ServicerContext) -> bytes:
        with handler.turn("GRPC", context.time_remaining()) as spec:
            request = _parse(PredictRequest, message)
            spec.CopyFrom(request.model_spec)
            return handler.predict(request)

    def refuse(message: bytes, context: grpc.ServicerContext) -> bytes:
        raise ServingError(StatusCode.UNIMPLEMENTED, "this method is not supported; use Predict")

    def watch(messages: Iterator[Any], context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
        checks.Watch(receive(messages, context) or HealthCheckRequest(), context, send)

    watch.experimental_non_blocking = True  # type: ignore[attr-defined]  # a watch holds no thread
    services = {
        PREDICTION_SERVICE: {
            "Predict": method(predict),
            "GetModelMetadata": simple(GetModelMetadataRequest, lambda request, _: handler.metadata(request)),
            **dict.fromkeys(("Classify", "Regress", "MultiInference"), method(refuse)),
        },
        MODEL_SERVICE: {"GetModelStatus": simple(GetModelStatusRequest, lambda request, _: handler.status(request))},
        health.SERVICE_NAME: {
            "Check": simple(HealthCheckRequest, checks.Check),
            "Watch": grpc.stream_stream_rpc_method_handler(
                watch, HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
            ),
        },
    }
    return [grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items()]


def _parse(message_class: Any, content: bytes) -> Any:
    try:
        return message_class.FromString(content)
    except DecodeError as error:
        message = f"the message is not a {message_class.DESCRIPTOR.full_name}"
        raise ServingError(StatusCode.INVALID_ARGUMENT, message) from error
