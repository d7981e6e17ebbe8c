"""TensorFlow Serving's gRPC services over the loaded models."""

import logging
from collections.abc import Callable
from typing import NoReturn, TypeVar

import grpc
from google.protobuf.message import Message
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from q2s_tf.serving.errors import ServingError
from q2s_tf.serving.models import Models

log = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; the towers have no other kind of signature."""

    def __init__(self, models: Models) -> None:
        """Answers from ``models``."""
        self._models = models

    def Predict(
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        """Runs one signature of one model."""
        return _answer(self._predict, request, context)

    def GetModelMetadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Tells the signatures of a model."""
        return _answer(self._metadata, request, context)

    def Classify(self, request: Message, context: grpc.ServicerContext) -> NoReturn:
        """Not served."""
        _unimplemented("Classify", context)

    def Regress(self, request: Message, context: grpc.ServicerContext) -> NoReturn:
        """Not served."""
        _unimplemented("Regress", context)

    def MultiInference(self, request: Message, context: grpc.ServicerContext) -> NoReturn:
        """Not served."""
        _unimplemented("MultiInference", context)

    def _predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        return self._models.find(request.model_spec.name, _version(request.model_spec)).predict(request)

    def _metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        if list(request.metadata_field) != ["signature_def"]:
            came = ", ".join(request.metadata_field) or "none"
            raise ServingError(
                grpc.StatusCode.INVALID_ARGUMENT, f"metadata_field must be signature_def, and {came} came"
            )
        servable = self._models.find(request.model_spec.name, _version(request.model_spec))
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, definition in servable.signature_defs.items():
            signatures.signature_def[key].CopyFrom(definition)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        response.metadata["signature_def"].Pack(signatures)
        return response


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus; what is served is decided by the folder on disk, so there is no config to reload."""

    def __init__(self, models: Models) -> None:
        """Answers from ``models``."""
        self._models = models

    def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Tells the state of each version of a model, and why one was refused."""
        return _answer(self._status, request, context)

    def HandleReloadConfigRequest(self, request: Message, context: grpc.ServicerContext) -> NoReturn:
        """Not served."""
        _unimplemented("HandleReloadConfigRequest", context)

    def _status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        response = get_model_status_pb2.GetModelStatusResponse()
        states = self._models.states(request.model_spec.name, _version(request.model_spec))
        for version, (state, error) in states.items():
            status = response.model_version_status.add(version=version, state=state)
            status.status.error_code = grpc.StatusCode.UNKNOWN.value[0] if error else 0
            status.status.error_message = error
        return response


def _version(spec: model_pb2.ModelSpec) -> int | None:
    if spec.HasField("version_label"):
        raise ServingError(
            grpc.StatusCode.NOT_FOUND, f'there is no version label "{spec.version_label}"; ask by version'
        )
    return spec.version.value if spec.HasField("version") else None


def _answer(compute: Callable[[Request], Response], request: Request, context: grpc.ServicerContext) -> Response:
    try:
        return compute(request)
    except ServingError as error:
        _abort(context, error.code, error.message)
    except Exception:
        log.exception("a request failed: this is a defect of the server")
        _abort(context, grpc.StatusCode.INTERNAL, "the server failed on this request; its log says where")


def _unimplemented(method: str, context: grpc.ServicerContext) -> NoReturn:
    _abort(context, grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served here; use Predict")


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, message: str) -> NoReturn:
    context.abort(code, message)
    raise AssertionError("grpc's abort raises")
