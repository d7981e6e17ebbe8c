#!/usr/bin/env python
"""Serves exported models over TensorFlow Serving's gRPC API: see --help."""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from q2s_tf import cli


def main(
    models: Annotated[Path, typer.Option(help="Folder of servables, <models>/<model>/<version>/.")],
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8500,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    poll_seconds: Annotated[float, typer.Option(help="How often to look for new versions.")] = 1.0,
) -> None:
    """Serves the newest version of every model and follows the folder, until SIGTERM or Ctrl-C.

    Example: python tools/serve.py --models saved_models --port 8500
    """
    # A small model loses more to hand-overs between threads than it gains; read when TensorFlow is first imported.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is told once, by us
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from q2s_tf.serving.server import serve

    serve(models, host, port, poll_seconds)


if __name__ == "__main__":
    cli.run(main)
