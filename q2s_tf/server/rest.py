r"""TensorFlow Serving's REST routes, and the metrics.

| route | response |
|---|---|
| `GET /v1/models/M[/versions/V\|/labels/L]` | the state of each version |
| `GET /v1/models/M[/versions/V\|/labels/L]/metadata` | the signatures |
| `POST /v1/models/M[/versions/V\|/labels/L]:predict` | Predict; see `q2s_tf.server.json_tensors` for the formats |
| `GET /monitoring/prometheus/metrics`, or the path in the monitoring config | see `q2s_tf.server.server_metrics` |

An error is ``{"error": "…"}`` with the HTTP status that TensorFlow Serving uses for the gRPC code; ``:classify`` and
``:regress`` return 501. As in TensorFlow Serving, REST is never encrypted; TLS is only for gRPC.
"""

import asyncio
import json
import re
import time
from concurrent.futures import Executor

import grpc
from google.protobuf import json_format
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse

from q2s_tf.server import json_tensors
from q2s_tf.server.request_handler import RequestHandler, error_status
from q2s_tf.serving.serving_error import ServingError

_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_POST = re.compile(_MODEL + r":(?P<method>classify|regress|predict)")
_GET = re.compile(_MODEL + r"(?P<metadata>/metadata)?")
_HTTP_STATUS = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


def make_app(handler: RequestHandler, workers: Executor, metrics_path: str | None) -> Starlette:
    """The routes as an ASGI application; requests are answered in the threads of ``workers``."""
    max_bytes = handler.limits.max_request_bytes

    async def respond(request: Request) -> Response:
        arrival = time.monotonic()
        match = (_POST if request.method == "POST" else _GET).fullmatch(request.scope["path"])
        if match is None:
            return await _no_route(request)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                return _error(413, f"a request may have at most {max_bytes} bytes; send a smaller batch")
        run = asyncio.get_running_loop().run_in_executor
        try:
            if request.method == "POST":
                content = await run(workers, _post, handler, match, body, arrival)
            else:
                content = await run(workers, _get, handler, match)
            return Response(content, media_type="application/json")
        except Exception as error:
            code, message = error_status(error)
            return _error(_HTTP_STATUS.get(code, 500), message)

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(handler.metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    routes = [Route("/v1/{rest:path}", respond, methods=["GET", "POST"])]
    if metrics_path is not None:
        routes.insert(0, Route(metrics_path, metrics))
    return Starlette(routes=routes, exception_handlers={404: _no_route, 405: _no_route})


def _get(handler: RequestHandler, match: re.Match[str]) -> bytes:
    spec = _model_spec(match)
    if match["metadata"]:
        response = handler.metadata(GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"]))
    else:
        response = handler.status(GetModelStatusRequest(model_spec=spec))
    content = json_format.MessageToDict(
        response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    if match["metadata"]:
        del content["metadata"]["signature_def"]["@type"]
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def _post(handler: RequestHandler, match: re.Match[str], body: bytearray, arrival: float) -> bytes:
    if match["method"] != "predict":
        message = f"{match['method'].capitalize()} is not supported; use Predict"
        raise ServingError(grpc.StatusCode.UNIMPLEMENTED, message)
    message = PredictRequest(model_spec=_model_spec(match))
    with handler.measure(message.model_spec, "REST"):
        rows = json_tensors.fill(message, body, handler.models.find(message.model_spec).signature)
        response = PredictResponse.FromString(handler.predict(message, arrival))
        return json_tensors.render(response, rows)


def _model_spec(match: re.Match[str]) -> ModelSpec:
    spec = ModelSpec(name=match["name"])
    if match["version"]:
        if int(match["version"]) >= 1 << 63:
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, f"version {match['version']} is larger than an int64")
        spec.version.value = int(match["version"])
    if match["label"]:
        spec.version_label = match["label"]
    return spec


async def _no_route(request: Request, error: Exception | None = None) -> Response:
    path = request.scope["path"]
    if path.startswith("/v1/"):
        return _error(400, f"Malformed request: {request.method} {path}")
    return _error(404, f"no route {path}; see GET /v1/models/<model>")


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)
