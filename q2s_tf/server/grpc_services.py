"""TensorFlow Serving's gRPC services over a `RequestHandler`."""

import importlib
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import Message
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest
from tensorflow_serving.apis.predict_pb2 import PredictRequest

from q2s_tf.server.request_handler import RequestHandler, error_status

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
SERVICES = (PREDICTION_SERVICE, MODEL_SERVICE)

# The import adds the services to the descriptor pool, from which the reflection service reads them. Current protobuf
# cannot import the rest of these generated modules.
for module in ("prediction_service_pb2", "model_service_pb2"):
    with suppress(AttributeError):
        importlib.import_module(f"tensorflow_serving.apis.{module}")


class GrpcServices(grpc.GenericRpcHandler):
    """Routes the methods of both services to a `RequestHandler`.

    gRPC calls `service` when a request arrives, before a thread is free for it, so the wait can be measured.
    """

    def __init__(self, handler: RequestHandler) -> None:
        def predict(request: PredictRequest, arrival: float, context: grpc.ServicerContext) -> bytes:
            with handler.measure(request.model_spec, "GRPC"):
                return handler.predict(request, arrival, context.time_remaining())

        def serialized(answer: Callable[[Any], Message]) -> Callable[..., bytes]:
            return lambda request, *_: answer(request).SerializeToString()

        self._methods: dict[str, tuple[type[Message], Callable[..., bytes]]] = {
            f"/{PREDICTION_SERVICE}/Predict": (PredictRequest, predict),
            f"/{PREDICTION_SERVICE}/GetModelMetadata": (GetModelMetadataRequest, serialized(handler.metadata)),
            f"/{MODEL_SERVICE}/GetModelStatus": (GetModelStatusRequest, serialized(handler.status)),
            f"/{MODEL_SERVICE}/HandleReloadConfigRequest": (ReloadConfigRequest, serialized(handler.reload)),
        }

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a method, None for a method of another service."""
        if details.method not in self._methods:
            service, _, method = details.method.rpartition("/")
            if service != f"/{PREDICTION_SERVICE}":
                return None
            message = f"{method} is not supported; use Predict"
            return grpc.unary_unary_rpc_method_handler(
                lambda _, context: context.abort(grpc.StatusCode.UNIMPLEMENTED, message)
            )
        request_class, answer = self._methods[details.method]
        arrival = time.monotonic()

        def respond(request: Message, context: grpc.ServicerContext) -> bytes:
            try:
                return answer(request, arrival, context)
            except Exception as error:
                return context.abort(*error_status(error))

        return grpc.unary_unary_rpc_method_handler(respond, request_class.FromString)
