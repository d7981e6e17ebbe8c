"""The demo page over HTTP, and its JSON, which docs/api/demo_app.md describes."""

import signal
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from q2s_tf.demo_app.search import MAX_PAGES, Search
from q2s_tf.errors import InputError
from q2s_tf.serving.search_client import SearchClient
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
SEARCH_PARAMETERS = ("query", "country", "page")
CHANNELS_PARAMETERS = ("query", "country", "document_id")
MAX_ERROR = 300
"""Characters of an error."""
_STATUS = {grpc.StatusCode.UNAVAILABLE: 503, grpc.StatusCode.DEADLINE_EXCEEDED: 504}


class Guard:
    """Adds `HEADERS` to every answer of an application, and refuses requests for other host names.

    A page elsewhere can resolve its own name to the address of this one, to read it in the browser of a user (DNS
    rebinding). Its requests have that name in their Host header.

    Args:
        app: the application.
        host: the address of the page. Allowed are this one, the address that a connection was made to, the name of the
            machine, and the names of the loopback interface.
    """

    def __init__(self, app: ASGIApp, host: str):
        self.app = app
        self.names = {"localhost", "127.0.0.1", "::1", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            name = urlsplit(f"//{Headers(scope=scope).get('host', '')}").hostname
        except ValueError:
            name = None
        app = self.app if name in {*self.names, (scope["server"] or [None])[0]} else _error("unknown host name", 400)
        return await app(scope, receive, send_with_headers)


def make_app(search: Search, target: str, host: str = "127.0.0.1") -> ASGIApp:
    """The page, its static files and its JSON.

    Args:
        search: the catalogue and the client of the server.
        target: name of the server in error messages.
        host: the address of the page.
    """
    templates = Jinja2Templates(FOLDER / "templates")
    variables = {
        "documents": len(search.documents.ids),
        "countries": search.documents.values("country"),
        "examples": search.documents.examples(),
        "max_characters": MAX_CHARACTERS,
        "has_parts": search.has_parts,
    }

    def page(request: Request) -> Response:
        return templates.TemplateResponse(request, "page.html", variables)

    def search_page(request: Request) -> Response:
        parameters = _parameters(request, SEARCH_PARAMETERS)
        number = parameters.get("page", "1")
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise InputError(f"page must be a whole number from 1 to {MAX_PAGES}, got {number!r:.40}")
        return JSONResponse(search.page(parameters.get("query", ""), parameters.get("country", ""), int(number)))

    def channel_parts(request: Request) -> Response:
        parameters = _parameters(request, CHANNELS_PARAMETERS)
        return JSONResponse(search.channel_parts(*(parameters.get(name, "") for name in CHANNELS_PARAMETERS)))

    def picture(request: Request) -> Response:
        (row,) = search.documents.look_up([request.query_params.get("document_id", "")])
        path = search.documents.picture(row)
        if not isinstance(path, Path):
            raise HTTPException(404, "there is no such picture")
        return FileResponse(path)

    def show_error(request: Request, error: Exception) -> Response:
        if isinstance(error, ServingError):
            return _error(_explain(error, target), _STATUS.get(error.code, 502))
        if isinstance(error, HTTPException):
            return _error(error.detail, error.status_code)
        return _error(str(error), 400) if isinstance(error, InputError) else _error("the demo page has a defect", 500)

    routes: list[Any] = [
        Route("/", page),
        Route("/api/search", search_page),
        Route("/api/channels", channel_parts),
        Route("/picture", picture),
        Mount("/static", StaticFiles(directory=FOLDER / "static")),
    ]
    handlers = dict.fromkeys((InputError, ServingError, HTTPException, Exception), show_error)
    return Guard(Starlette(routes=routes, exception_handlers=handlers), host)


def _parameters(request: Request, known: tuple[str, ...]) -> QueryParams:
    """The parameters of a request; `InputError` for one that is not known."""
    if unknown := [name for name in request.query_params if name not in known]:
        raise InputError(f"unknown parameter {unknown[0]!r:.40}; the parameters are {', '.join(known)}")
    return request.query_params


def _error(message: str, status: int) -> Response:
    """An error of one line, without repetitions of long input."""
    line = " ".join(message.split())
    return JSONResponse({"error": line if len(line) <= MAX_ERROR else f"{line[:MAX_ERROR]}…"}, status)


def _explain(error: ServingError, target: str) -> str:
    if error.code is grpc.StatusCode.UNAVAILABLE:
        return f"no server answers at {target}; start one with: q2s serve --models saved_models"
    if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"the server at {target} did not answer in time; try again"
    return f"the server at {target} refused: {error}"


def serve(
    documents: Path,
    client: SearchClient,
    models: Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    page_size: int = 10,
    pictures: str | None = None,
    run: Path | None = None,
) -> None:
    """Serves the page until SIGTERM or SIGINT; prints one line when it is ready.

    ``client`` searches; ``models`` are the exports, for the names of channels; ``run`` is the one that explains
    results; the others are those of `q2s demo-app`.

    Raises:
        InputError: the port is taken, the documents cannot be read, the server does not answer.
    """
    # The port is bound before the catalogue is read, so that a taken port is reported at once.
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host}:{port}: {error}; give another --port, or 0") from error
    # Connections inherit this option, without which each answer waits 40 ms for the acknowledgement of its header:
    # asyncio sets it only for sockets that were created with the number of the protocol.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listening:
        try:
            search = Search(client, documents, models, page_size, pictures, run)
        except ServingError as error:
            raise InputError(_explain(error, client.target)) from error
        # Open requests have five seconds: a browser that keeps its connection open must not keep the process alive.
        app = make_app(search, client.target, host)
        config = uvicorn.Config(app, lifespan="off", log_level="warning", timeout_graceful_shutdown=5)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # uvicorn raises it again after shutdown
        print(f"demo page on http://{host}:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run([listening])
