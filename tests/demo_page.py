"""The demo page over a real server, in this process on real ports, for its API tests and its browser tests."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import serving_models
import uvicorn

from q2s_tf.demo_app.app import make_app
from q2s_tf.demo_app.search import Search
from q2s_tf.server.server import Server
from q2s_tf.serving import Client

CHANNELS = {
    "query_tower": ["trigrams", "country", "text"],
    "document_tower": ["title", "description", "images", "place"],
}
HOSTILE = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
LEFT_OUT = serving_models.IDS[-1]
"""A document that the index has and the documents table has not."""
WORD = "teapot"


class DemoPage(NamedTuple):
    """A page that is being served: its address, and the efforts that the server was asked with."""

    address: str
    efforts: list[int]


class WatchedClient(Client):
    """A client that writes down the efforts it asks with."""

    efforts: list[int]

    def retrieve(self, *arguments: Any, **options: Any) -> Any:
        self.efforts.append(arguments[3] if len(arguments) > 3 else options["effort"])
        return super().retrieve(*arguments, **options)


def save_models(folder: Path) -> None:
    """The three servables, with the manifests that name their channels."""
    serving_models.save_all(folder)
    for tower, channels in CHANNELS.items():
        manifest = folder / tower / "1" / "assets.extra" / "manifest.json"
        manifest.parent.mkdir(exist_ok=True)
        manifest.write_text(json.dumps({"channels": channels}))


def make_rows() -> list[dict[str, Any]]:
    """A catalogue with hostile, foreign and missing values; ten documents have `WORD`, once or more."""
    generator = np.random.default_rng(11)
    rows: list[dict[str, Any]] = []
    for number, document_id in enumerate(serving_models.IDS[:-1]):
        weights = generator.dirichlet(np.ones(serving_models.IMAGE_DIM)).astype(np.float32)
        rows.append(
            {
                "document_id": document_id,
                "title": f"{WORD} {document_id}" if number % 3 == 0 else f"red lamp {document_id}",
                "description": None if number % 2 else f"{WORD} " * (number % 3 == 0) * number + "used",
                "language": ["en", "ar", "<b>", None][number % 4],
                "country": ["US", "AE", None][number % 3],
                "image_embeddings": [(0.25 * weights).tolist(), (0.75 * weights).tolist()],
                "image": None,
            }
        )
    rows[1] |= {"title": "مصباح أحمر جديد", "description": "مصباح"}
    rows[2] |= {"title": HOSTILE, "description": HOSTILE, "language": "x-y z"}
    return rows


def write_documents(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@contextmanager
def serve_page(target: str, documents: Path, models: Path | None, pictures: str | None = None) -> Iterator[DemoPage]:
    """The page over the server at `target`, until the end of the block."""
    with WatchedClient(target, timeout_seconds=10) as client:
        client.efforts = []
        search = Search(client, documents, models, page_size=10, pictures=pictures)
        server = uvicorn.Server(uvicorn.Config(make_app(search, target), port=0, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the page did not start"
            time.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()
        try:
            yield DemoPage(f"http://{host}:{port}", client.efforts)
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


@contextmanager
def serve_market(folder: Path, pictures: str | None = None) -> Iterator[DemoPage]:
    """Models, catalogue, server and page, made in an empty folder."""
    models = folder / "models"
    save_models(models)
    documents = write_documents(folder / "documents.parquet", make_rows())
    with Server(models, port=0) as server, serve_page(server.address, documents, models, pictures) as page:
        yield page
