"""TensorFlow Serving's gRPC services, and what serves REST beside them, over one `Api`."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import Message
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest, ClassificationResponse
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest, GetModelMetadataResponse
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, GetModelStatusResponse
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest, MultiInferenceResponse
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest, ReloadConfigResponse
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse
from tensorflow_serving.apis.regression_pb2 import RegressionRequest, RegressionResponse

from q2s_tf.server.api import Api
from q2s_tf.serving.serving_error import ServingError

log = logging.getLogger(__name__)

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"

_Calls = dict[str, tuple[type[Message], type[Message]]]
_CALLS: dict[str, _Calls] = {
    PREDICTION_SERVICE: {
        "Predict": (PredictRequest, PredictResponse),
        "GetModelMetadata": (GetModelMetadataRequest, GetModelMetadataResponse),
        "Classify": (ClassificationRequest, ClassificationResponse),
        "Regress": (RegressionRequest, RegressionResponse),
        "MultiInference": (MultiInferenceRequest, MultiInferenceResponse),
    },
    MODEL_SERVICE: {
        "GetModelStatus": (GetModelStatusRequest, GetModelStatusResponse),
        "HandleReloadConfigRequest": (ReloadConfigRequest, ReloadConfigResponse),
    },
}


def declare_services() -> list[str]:
    """Puts the services into the pool that the reflection service looks in; their names.

    ``tensorflow-serving-api`` has modules for that, ``*_service_pb2``, which today's protobuf cannot import.
    """
    pool = descriptor_pool.Default()
    for full_name, calls in _CALLS.items():
        with suppress(KeyError):
            pool.FindServiceByName(full_name)
            continue  # another server of this process has put it there
        package, _, name = full_name.rpartition(".")
        kinds = [kind.DESCRIPTOR for pair in calls.values() for kind in pair]
        file = descriptor_pb2.FileDescriptorProto(
            name=f"tensorflow_serving/apis/{name}.proto",
            package=package,
            dependency=sorted({kind.file.name for kind in kinds}),
            syntax="proto3",
        )
        service = file.service.add(name=name)
        for method, (request, response) in calls.items():
            types = {"input_type": request.DESCRIPTOR.full_name, "output_type": response.DESCRIPTOR.full_name}
            service.method.add(name=method, **types)
        pool.AddSerializedFile(file.SerializeToString())
    return list(_CALLS)


class Services(grpc.GenericRpcHandler):
    """Finds the handler of a method.

    It is asked when a request comes, before a thread is free for it: so it can be told how long the request waited.
    """

    def __init__(self, api: Api) -> None:
        """Answers through ``api``."""
        self._api = api
        served = {
            "GetModelMetadata": api.metadata,
            "GetModelStatus": api.status,
            "HandleReloadConfigRequest": api.reload,
        }
        self._handlers = {
            f"/{service}/{method}": _handler(served.get(method, partial(_refuse, api, method)), request)
            for service, calls in _CALLS.items()
            for method, (request, _) in calls.items()
        }

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a method, None for one that is not ours."""
        if details.method != f"/{PREDICTION_SERVICE}/Predict":
            return self._handlers.get(details.method)
        arrival = time.monotonic()

        def predict(request: PredictRequest, context: grpc.ServicerContext) -> bytes:
            left = context.time_remaining()
            deadline = None if left is None else time.monotonic() + left

            def compute() -> bytes:
                with self._api.counted(request.model_spec, "GRPC"):
                    return self._api.predict(request, arrival, deadline)

            return answer(compute, context.abort)

        return grpc.unary_unary_rpc_method_handler(predict, PredictRequest.FromString, _unchanged)


def answer(compute: Callable[[], Any], refuse: Callable[[grpc.StatusCode, str], Any]) -> Any:
    """What ``compute`` returns, or what ``refuse`` makes of the error that it raises."""
    try:
        return compute()
    except ServingError as error:
        return refuse(error.code, error.message)
    except Exception:
        log.exception("a request failed: this is a defect of the server")
        return refuse(grpc.StatusCode.INTERNAL, "the server failed on this request; its log says where")


def _handler(compute: Callable[[Any], Message], kind: type[Message]) -> grpc.RpcMethodHandler:
    def serve(request: Message, context: grpc.ServicerContext) -> Message:
        return answer(lambda: compute(request), context.abort)

    return grpc.unary_unary_rpc_method_handler(serve, kind.FromString, lambda message: message.SerializeToString())


def _refuse(api: Api, method: str, request: Message) -> NoReturn:
    api.unimplemented(method)


def _unchanged(message: bytes) -> bytes:
    return message
