"""The demo page over HTTP, and its JSON.

``GET /api/search?query=red+sofa&country=US&page=1`` returns one page of both rankings. ``country`` and ``page`` are
optional. The times are those of the retriever over gRPC and of BM25 in memory, measured in this process.

```
{"query": "red sofa", "country": "US", "page": 1,
 "channels": [{"name": "query_trigrams", "weight": 0.41}, …],     channel weights of the query tower
 "semantic": {"milliseconds": 2.1, "effort": 4, "more": true, "results": [RESULT, …]},
 "bm25": {"milliseconds": 0.8, "more": false, "results": [RESULT, …]}}

RESULT: {"rank": 1, "score": 0.83, "document_id": "d7", "title": "Sofa", "description": null, "language": "en",
         "country": "US", "picture": null, "channels": [{"name": "images", "weight": 0.55}, …]}
```

``score`` is the cosine on the semantic side and the score of BM25 on the other. ``picture`` is an address for
``<img src>``. The ``channels`` of a result are the channel weights of the document tower; the list is empty for a
document that is not in the documents table. An error is one line, ``{"error": "…"}``, with status 400 (wrong request),
503 (no server), 504 (no answer in time) or 502 (the server refused).
"""

import signal
import socket
import sys
from pathlib import Path
from typing import Any

import grpc
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from q2s_tf.demo_app.search import Search
from q2s_tf.errors import InputError
from q2s_tf.serving.client import Client
from q2s_tf.serving.serving_error import ServingError
from q2s_tf.text import MAX_CHARACTERS

FOLDER = Path(__file__).parent
HEADERS = {
    # Titles are written by strangers. Text that is not escaped must still not run, and must not send anything.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' http: https:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_STATUS = {grpc.StatusCode.UNAVAILABLE: 503, grpc.StatusCode.DEADLINE_EXCEEDED: 504}


def make_app(search: Search, target: str) -> Starlette:
    """The page, its static files and its JSON; ``target`` is the name of the server in error messages."""
    templates = Jinja2Templates(FOLDER / "templates")
    variables = {
        "documents": len(search.documents.ids),
        "countries": search.documents.values("country"),
        "examples": search.documents.examples(),
        "max_characters": MAX_CHARACTERS,
    }

    def page(request: Request) -> Response:
        return templates.TemplateResponse(request, "page.html", variables, headers=HEADERS)

    def search_page(request: Request) -> Response:
        parameters = request.query_params
        number = parameters.get("page", "1")
        if not (number.isascii() and number.isdigit()):
            raise InputError(f"page must be a whole number, got {number!r}")
        results = search.page(parameters.get("query", ""), parameters.get("country", ""), int(number))
        return JSONResponse(results, headers=HEADERS)

    def picture(request: Request) -> Response:
        (row,) = search.documents.look_up([request.query_params.get("document_id", "")])
        path = search.documents.picture(row)
        if not isinstance(path, Path):
            raise HTTPException(404)
        return FileResponse(path, headers=HEADERS)

    def input_error(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": " ".join(str(error).split())}, 400, HEADERS)

    def serving_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServingError)
        return JSONResponse({"error": _explain(error, target)}, _STATUS.get(error.code, 502), HEADERS)

    routes: list[Any] = [
        Route("/", page),
        Route("/api/search", search_page),
        Route("/picture", picture),
        Mount("/static", StaticFiles(directory=FOLDER / "static")),
    ]
    return Starlette(routes=routes, exception_handlers={InputError: input_error, ServingError: serving_error})


def _explain(error: ServingError, target: str) -> str:
    if error.code is grpc.StatusCode.UNAVAILABLE:
        return f"no server answers at {target}; start one with: q2s serve --models saved_models"
    if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"the server at {target} did not answer in time; try again"
    return f"the server at {target} refused: {' '.join(str(error).split())}"


def serve(
    documents: Path,
    target: str,
    models: Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    page_size: int = 10,
    pictures: str | None = None,
    timeout_seconds: float = 5.0,
) -> None:
    """Serves the page until SIGTERM or SIGINT; prints one line when it is ready.

    Args:
        documents: the catalogue, Parquet or TSV.
        target: ``host:port`` of the server.
        models: the exports, for the names of channels.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        page_size: results of a page, on each side.
        pictures: the column with the picture of each document.
        timeout_seconds: for each request to the server.

    Raises:
        InputError: the port is taken, the documents cannot be read, the server does not answer.
    """
    # The port is bound before the catalogue is read, so that a taken port is reported at once.
    try:
        listening = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host}:{port}: {error}; give another --port, or 0") from error
    # Connections inherit this option, without which each answer waits 40 ms for the acknowledgement of its header:
    # asyncio sets it only for sockets that were created with the number of the protocol.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listening, Client(target, timeout_seconds) as client:
        try:
            search = Search(client, documents, models, page_size, pictures)
        except ServingError as error:
            raise InputError(_explain(error, target)) from error
        # Open requests have five seconds: a browser that keeps its connection open must not keep the process alive.
        config = uvicorn.Config(
            make_app(search, target), lifespan="off", log_level="warning", timeout_graceful_shutdown=5
        )
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # uvicorn raises it again after shutdown
        print(f"demo page on http://{host}:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run([listening])
