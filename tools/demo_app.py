#!/usr/bin/env python
"""A search page over a running server: see --help."""

from pathlib import Path
from typing import Annotated

import typer

from q2s_tf import cli


def main(
    documents: Annotated[Path, typer.Option(help="Catalogue of the index of the server, Parquet or TSV.")],
    target: Annotated[str, typer.Option(help="HOST:PORT of the server, embedded or TF Serving.")] = "127.0.0.1:8500",
    models: Annotated[Path, typer.Option(help="Exports, for the names of channels.")] = Path("saved_models"),
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.")] = 8080,
    host: Annotated[str, typer.Option(help="Address of the page; 0.0.0.0 for all.")] = "127.0.0.1",
    page_size: Annotated[int, typer.Option(min=1, max=100, help="Results of a page.")] = 10,
    pictures: Annotated[str | None, typer.Option(help="Column with the path or address of a picture.")] = None,
    timeout_seconds: Annotated[float, typer.Option(help="Timeout of each request to the server.")] = 5.0,
) -> None:
    """Serve a search page with the results of the retriever next to those of BM25, and channel weights, until Ctrl-C.

    Example: python tools/demo_app.py --documents documents.parquet --target 127.0.0.1:8500 --port 8080
    """
    with cli.console.status("importing TensorFlow"):
        from q2s_tf.demo_app.app import serve

    serve(documents, target, models, host, port, page_size, pictures, timeout_seconds)


if __name__ == "__main__":
    cli.run(main)
