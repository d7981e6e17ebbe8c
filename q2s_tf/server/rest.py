r"""TensorFlow Serving's REST routes, and the metrics.

| route | answer |
|---|---|
| `GET /v1/models/M[/versions/V\|/labels/L]` | the state of each version |
| `GET /v1/models/M[/versions/V\|/labels/L]/metadata` | the signatures |
| `POST /v1/models/M[/versions/V\|/labels/L]:predict` | Predict; see `q2s_tf.server.json_tensors` for the formats |
| `GET /monitoring/prometheus/metrics`, or where the monitoring config says | see `q2s_tf.server.server_metrics` |

An error is ``{"error": "…"}`` with the HTTP status that TensorFlow Serving gives for the gRPC code; ``:classify`` and
``:regress`` answer 501. As there, REST is never encrypted: TLS is gRPC's.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import Executor

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2, predict_pb2

from q2s_tf.server import json_tensors
from q2s_tf.server.api import Api
from q2s_tf.server.grpc_services import answer
from q2s_tf.server.server_metrics import Metrics
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


def make_app(
    api: Api, metrics: Metrics, workers: Executor, max_request_bytes: int, metrics_path: str | None
) -> Starlette:
    """The routes as an ASGI application; requests are computed by ``workers``, the threads that serve gRPC."""

    async def get(request: Request) -> Response:
        return await asyncio.get_running_loop().run_in_executor(workers, _respond, lambda: _get(api, request.url.path))

    async def post(request: Request) -> Response:
        arrival = time.monotonic()
        body = await _read(request, max_request_bytes)
        if body is None:
            return _error(413, f"a request may have at most {max_request_bytes} bytes; send a smaller batch")
        path = request.url.path
        compute = lambda: _post(api, path, body, arrival)  # noqa: E731
        return await asyncio.get_running_loop().run_in_executor(workers, _respond, compute)

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    routes = [Route("/v1/{rest:path}", get, methods=["GET"]), Route("/v1/{rest:path}", post, methods=["POST"])]
    if metrics_path is not None:
        routes.insert(0, Route(metrics_path, show_metrics))
    return Starlette(routes=routes, exception_handlers={404: _no_route, 405: _no_route})


def _get(api: Api, path: str) -> Response:
    match = _GET.fullmatch(path)
    if match is None:
        raise _malformed("GET", path)
    spec = _spec(match)
    if match["metadata"]:
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        response = api.metadata(request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        metadata = {"signature_def": _to_dict(signatures)}
        return _json({"model_spec": _to_dict(response.model_spec), "metadata": metadata})
    return _json(_to_dict(api.status(get_model_status_pb2.GetModelStatusRequest(model_spec=spec))))


def _post(api: Api, path: str, body: bytes, arrival: float) -> Response:
    match = _POST.fullmatch(path)
    if match is None:
        raise _malformed("POST", path)
    if match["method"] != "predict":
        api.unimplemented(match["method"].capitalize())
    message = predict_pb2.PredictRequest(model_spec=_spec(match))
    with api.counted(message.model_spec, "REST"):
        servable = api.find(message.model_spec)
        request = json_tensors.parse(body)
        message.model_spec.signature_name = request.get("signature_name", "")
        message.output_filter.extend(request.get("output_filter", []))
        json_tensors.fill(message, request, servable.signature(message.model_spec.signature_name).inputs)
        response = predict_pb2.PredictResponse.FromString(api.predict(message, arrival))
        return Response(json_tensors.render(response, request), media_type="application/json")


def _spec(match: re.Match[str]) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=match["name"])
    if match["version"]:
        if int(match["version"]) >= 1 << 63:
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, f"version {match['version']} is no int64")
        spec.version.value = int(match["version"])
    if match["label"]:
        spec.version_label = match["label"]
    return spec


def _respond(compute: Callable[[], Response]) -> Response:
    return answer(compute, lambda code, message: _error(_HTTP_STATUS.get(code, 500), message))


async def _read(request: Request, max_bytes: int) -> bytes | None:
    """The body, None if it is larger than allowed: no more of it is read then."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            return None
    return bytes(body)


async def _no_route(request: Request, error: Exception) -> Response:
    if request.url.path.startswith("/v1/"):
        return _error(400, _malformed(request.method, request.url.path).message)
    return _error(404, f"there is no {request.url.path} here; see GET /v1/models/<model>")


def _malformed(method: str, path: str) -> ServingError:
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, f"Malformed request: {method} {path}")


def _to_dict(message: Message) -> dict[str, object]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _json(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value, indent=1, ensure_ascii=False), status, media_type="application/json")


def _error(status: int, message: str) -> Response:
    return _json({"error": message}, status)
