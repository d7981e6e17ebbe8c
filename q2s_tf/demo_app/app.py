"""The search page over HTTP, and the JSON behind it.

``GET /api/search?query=red+sofa&country=US&page=1`` answers one page of both rankings. ``country`` and ``page`` may be
left out. Times are those that this process waited: for the retriever's answer over gRPC, and for BM25 in memory.

```
{"query": "red sofa", "country": "US", "page": 1,
 "channels": [{"name": "query_trigrams", "weight": 0.41}, …],     what the query tower weighed
 "semantic": {"milliseconds": 2.1, "effort": 4, "more": true, "results": [RESULT, …]},
 "bm25": {"milliseconds": 0.8, "more": false, "results": [RESULT, …]}}

RESULT: {"rank": 1, "score": 0.83, "document_id": "d7", "title": "Sofa", "description": null, "language": "en",
         "country": "US", "picture": null, "channels": [{"name": "images", "weight": 0.55}, …]}
```

``score`` is the cosine on the semantic side and BM25's on the other; ``picture`` is an address for ``<img src>``; the
``channels`` of a result are what the document tower weighed, none for a document that the documents table lacks. What
cannot be answered has one line, ``{"error": "…"}``, with status 400 (the request is wrong), 503 (no server), 504 (no
answer in time) or 502 (the server refused).
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

HERE = Path(__file__).parent
HEADERS = {
    # Listings are written by strangers: even what would slip through our escaping must not run or send anything.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' http: https:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_STATUS = {grpc.StatusCode.UNAVAILABLE: 503, grpc.StatusCode.DEADLINE_EXCEEDED: 504}


def make_app(search: Search, target: str) -> Starlette:
    """The page, its files and its JSON over one `Search`; ``target`` is how errors name the server."""
    templates = Jinja2Templates(HERE / "templates")
    facts = {
        "documents": len(search.catalogue),
        "countries": search.catalogue.countries(),
        "examples": search.catalogue.examples(),
        "max_characters": MAX_CHARACTERS,
    }

    def page(request: Request) -> Response:
        return templates.TemplateResponse(request, "page.html", facts, headers=HEADERS)

    def answer(request: Request) -> Response:
        asked = request.query_params
        page = asked.get("page", "1")
        if not (page.isascii() and page.isdigit()):
            raise InputError(f"page must be a whole number, got {page!r}")
        return JSONResponse(search.page(asked.get("query", ""), asked.get("country", ""), int(page)), headers=HEADERS)

    def picture(request: Request) -> Response:
        (row,) = search.catalogue.look_up([request.query_params.get("document_id", "")])
        path = search.catalogue.picture(row)
        if not isinstance(path, Path):
            raise HTTPException(404)
        return FileResponse(path, headers=HEADERS)

    def refuse(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": " ".join(str(error).split())}, 400, HEADERS)

    def report(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServingError)
        return JSONResponse({"error": _explain(error, target)}, _STATUS.get(error.code, 502), HEADERS)

    routes: list[Any] = [
        Route("/", page),
        Route("/api/search", answer),
        Route("/picture", picture),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    return Starlette(routes=routes, exception_handlers={InputError: refuse, ServingError: report})


def _explain(error: ServingError, target: str) -> str:
    if error.code is grpc.StatusCode.UNAVAILABLE:
        return f"no server answers at {target}; start one with: python tools/serve.py --models saved_models"
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
        models: the exports, for the channels' names.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        page_size: results of a page, on each side.
        pictures: the column with each document's picture.
        timeout_seconds: for each answer of the server.

    Raises:
        InputError: the port cannot be bound, the documents cannot be read, the server does not answer.
    """
    with _listen(host, port) as listening, Client(target, timeout_seconds) as client:
        try:
            search = Search(client, documents, models, page_size, pictures)
        except ServingError as error:
            raise InputError(_explain(error, target)) from error
        # Five seconds for what is under way: a browser that keeps its connection open must not hold the process.
        config = uvicorn.Config(
            make_app(search, target), lifespan="off", log_level="warning", timeout_graceful_shutdown=5
        )
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # uvicorn raises it again when it has drained
        print(f"demo page on http://{host}:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run([listening])


def _listen(host: str, port: int) -> socket.socket:
    """The page's socket, bound before the catalogue is read: a taken port shows at once."""
    try:
        listening = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host}:{port}: {error}; give another --port, or 0") from error
    # Connections inherit it. Without it each answer waits 40 ms for the browser to acknowledge its header: asyncio sets
    # it only for sockets that were made with the protocol's number.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
