"""Serves the demo page and a server in this process, for the tests of its API and of the page in a browser."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import serving_models
import uvicorn

from q2s_tf.demo_app.app import make_app
from q2s_tf.demo_app.search import Search
from q2s_tf.server.server import Server
from q2s_tf.serving.client import Client

CHANNELS = ["query_trigrams", "country", "text"]
"""Channels of the query tower."""
HOSTILE = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
LEFT_OUT = serving_models.IDS[-1]
"""A document that is in the index but not in the documents table."""
WORD = "teapot"
WORDS_SCORE = 0.5
"""What the words add to the score of each result of the retriever."""


class DemoPage(NamedTuple):
    """A running page: its address, and the efforts of its requests to the server."""

    address: str
    efforts: list[int]


class WatchedClient(Client):
    """A client that records the effort of each request."""

    efforts: list[int]

    def retrieve(self, *arguments: Any, **options: Any) -> Any:
        self.efforts.append(arguments[3] if len(arguments) > 3 else options["effort"])
        return super().retrieve(*arguments, **options)


def save_models(folder: Path) -> None:
    """Saves the three servables; the manifest of the query tower names its channels."""
    serving_models.save_all(folder, WORDS_SCORE / serving_models.LEXICAL)
    manifest = folder / "query_tower" / "1" / "assets.extra" / "manifest.json"
    manifest.write_text(json.dumps({"channels": CHANNELS}))


def make_rows() -> list[dict[str, Any]]:
    """A catalogue with hostile, foreign and missing values; ten documents contain `WORD`, once or more."""
    rows: list[dict[str, Any]] = [
        {
            "document_id": document_id,
            "title": f"{WORD} {document_id}" if number % 3 == 0 else f"red lamp {document_id}",
            "description": None if number % 2 else f"{WORD} " * (number % 3 == 0) * number + "used",
            "language": ["en", "ar", "<b>", None][number % 4],
            "country": ["US", "AE", None][number % 3],
            "image_embeddings": [[0.25, 0.75]],
            "image": None,
        }
        for number, document_id in enumerate(serving_models.IDS[:-1])
    ]
    rows[1] |= {"title": "مصباح أحمر جديد", "description": "مصباح"}
    rows[2] |= {"title": HOSTILE, "description": HOSTILE, "language": "x-y z"}
    return rows


def scores(query: str, country: str = "") -> list[tuple[str, float]]:
    """Every document with its cosine to the query, best first."""
    return serving_models.scores(serving_models.Tower().embed(query, country).numpy())


def write_documents(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@contextmanager
def serve_page(
    target: str, documents: Path, models: Path | None, pictures: str | None = None, run: Path | None = None
) -> Iterator[DemoPage]:
    """Serves the page until the end of the block, with the server at `target`."""
    with WatchedClient(target, timeout_seconds=10) as client:
        client.efforts = []
        search = Search(client, documents, models, page_size=10, pictures=pictures, run=run)
        server = uvicorn.Server(uvicorn.Config(make_app(search, target), log_level="warning", lifespan="off"))
        listening = socket.create_server(("127.0.0.1", 0))  # requests wait in its queue until the page has started
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield DemoPage(f"http://127.0.0.1:{listening.getsockname()[1]}", client.efforts)
        finally:
            server.should_exit = server.force_exit = True
            thread.join()
            listening.close()


@contextmanager
def serve_market(folder: Path, pictures: str | None = None) -> Iterator[DemoPage]:
    """Writes models and a catalogue into an empty folder, and serves them."""
    models = folder / "models"
    save_models(models)
    documents = write_documents(folder / "documents.parquet", make_rows())
    with Server(models, port=0) as server, serve_page(server.address, documents, models, pictures) as page:
        yield page
