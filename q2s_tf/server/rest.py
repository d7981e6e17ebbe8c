r"""TensorFlow Serving's REST routes, and the metrics.

| route | response |
|---|---|
| `GET /v1/models/M[/versions/V\|/labels/L]` | the state of each version |
| `GET /v1/models/M[/versions/V\|/labels/L]/metadata` | the signatures |
| `POST /v1/models/M[/versions/V\|/labels/L]:predict` | Predict; see `q2s_tf.server.json_tensors` for the formats |
| `GET /monitoring/prometheus/metrics` | see `q2s_tf.server.server_metrics` |

An error is ``{"error": "…"}`` with the HTTP status that TensorFlow Serving uses for the gRPC code. As in TensorFlow
Serving, TLS is only for gRPC.
"""

import asyncio
import json
import re
from concurrent.futures import Executor
from contextlib import suppress

import h11
from google.protobuf import json_format
from grpc import StatusCode
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from q2s_tf.server import json_tensors
from q2s_tf.server.request_handler import RequestHandler, error_status
from q2s_tf.server.request_waits import PeerWaits
from q2s_tf.serving.serving_error import ServingError

_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_GET = re.compile(_MODEL + r"(?P<metadata>/metadata)?")
_ROUTES = {"GET": _GET, "HEAD": _GET, "POST": re.compile(_MODEL + r":(?P<method>classify|regress|predict)")}
_HTTP_STATUS = {
    StatusCode.CANCELLED: 499,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.NOT_FOUND: 404,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
METRICS_PATH = "/monitoring/prometheus/metrics"


def make_app(handler: RequestHandler, threads: Executor, send_seconds: float) -> ASGIApp:
    """The routes as an ASGI application, which answers in ``threads``; a client has ``send_seconds`` to read."""
    max_bytes = handler.limits.max_request_bytes

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        with suppress(ClientDisconnect):
            response = await respond(request)
            async with asyncio.timeout(send_seconds):
                await response(scope, receive, send)

    async def respond(request: Request) -> Response:
        path = request.scope["path"]
        if path == METRICS_PATH and request.method in ("GET", "HEAD"):
            return Response(generate_latest(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
        route = _ROUTES.get(request.method)
        match = route.fullmatch(path) if route else None
        if match is None:
            if path.startswith("/v1/"):
                return _error(400, f"Malformed request: {request.method} {path[:200]}")
            return _error(404, f"no route {path[:200]}; see GET /v1/models/<model>")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                message = f"a request may have at most {max_bytes} bytes; send a smaller batch"
                return JSONResponse({"error": message}, 413, {"connection": "close"})
        answer = _post if request.method == "POST" else _get
        loop = asyncio.get_running_loop()
        try:
            content = await loop.run_in_executor(threads, answer, handler, match, body)
            return Response(content, media_type="application/json")
        except Exception as error:
            code, message = error_status(error)
            return _error(_HTTP_STATUS.get(code, 500), message)

    return app


def make_protocol(headers: PeerWaits, bodies: PeerWaits, max_connections: int) -> type[H11Protocol]:
    """An HTTP protocol that closes a connection whose ``headers`` or ``bodies`` are not complete in time.

    Above ``max_connections`` the oldest one that waits for a request is closed.
    """

    class BoundedProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await(headers)
            if len(self.connections) > max_connections:
                headers.end_oldest()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._await({h11.IDLE: headers, h11.SEND_BODY: bodies}.get(self.conn.their_state))

        def connection_lost(self, exc: Exception | None) -> None:
            self._await(None)
            super().connection_lost(exc)

        def _await(self, wanted: PeerWaits | None) -> None:
            for waits in (headers, bodies):
                if waits is wanted:
                    waits.start(self, lambda: self.loop.call_soon_threadsafe(self.transport.abort))
                else:
                    waits.finish(self)

    return BoundedProtocol


def _get(handler: RequestHandler, match: re.Match[str], *_: object) -> bytes:
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


def _post(handler: RequestHandler, match: re.Match[str], body: bytearray) -> bytes:
    if match["method"] != "predict":
        raise ServingError(StatusCode.UNIMPLEMENTED, f"{match['method'].capitalize()} is not supported; use Predict")
    with handler.turn("REST") as spec:
        spec.CopyFrom(_model_spec(match))
        request, rows = json_tensors.read(body, spec, handler.models.find(spec).signature)
        spec.CopyFrom(request.model_spec)
        return json_tensors.render(PredictResponse.FromString(handler.predict(request)), rows)


def _model_spec(match: re.Match[str]) -> ModelSpec:
    number = match["version"]
    if number and (len(number) > 19 or int(number) >= 1 << 63):
        raise ServingError(StatusCode.INVALID_ARGUMENT, f"version {number[:40]} is larger than an int64")
    version = {"value": int(number)} if number else None
    return ModelSpec(name=match["name"], version=version, version_label=match["label"])


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)
