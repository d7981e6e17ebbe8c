"""TensorFlow Serving's gRPC services over a `RequestHandler`."""

import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from google.protobuf.message import Message
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest
from tensorflow_serving.apis.predict_pb2 import PredictRequest

from q2s_tf.server.request_handler import RequestHandler, error_status

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
SERVICES = (PREDICTION_SERVICE, MODEL_SERVICE)

_SERVICES_PROTO = """
    name: "q2s_tf/grpc_services.proto" package: "tensorflow.serving" syntax: "proto3"
    dependency: "tensorflow_serving/apis/get_model_metadata.proto"
    dependency: "tensorflow_serving/apis/get_model_status.proto"
    dependency: "tensorflow_serving/apis/model_management.proto"
    dependency: "tensorflow_serving/apis/predict.proto"
    service { name: "PredictionService"
        method { name: "Predict" input_type: "PredictRequest" output_type: "PredictResponse" }
        method { name: "GetModelMetadata"
                 input_type: "GetModelMetadataRequest" output_type: "GetModelMetadataResponse" } }
    service { name: "ModelService"
        method { name: "GetModelStatus" input_type: "GetModelStatusRequest" output_type: "GetModelStatusResponse" }
        method { name: "HandleReloadConfigRequest"
                 input_type: "ReloadConfigRequest" output_type: "ReloadConfigResponse" } }
"""
# For the reflection service. The `*_service_pb2` of tensorflow-serving-api cannot be imported with current protobuf.
descriptor_pool.Default().AddSerializedFile(
    text_format.Parse(_SERVICES_PROTO, descriptor_pb2.FileDescriptorProto()).SerializeToString()
)


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
