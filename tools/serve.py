#!/usr/bin/env python
"""Serves exported models over TensorFlow Serving's gRPC and REST API: see --help."""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from q2s_tf import cli

BYTES = 64 << 20


def main(
    models: Annotated[Path | None, typer.Option(help="Folder of servables, <models>/<model>/<version>/.")] = None,
    model_config_file: Annotated[
        Path | None, typer.Option(help="Instead of --models: TF Serving's model config, with labels and policies.")
    ] = None,
    port: Annotated[int, typer.Option(help="gRPC port; 0 takes a free one.")] = 8500,
    rest_port: Annotated[
        int | None, typer.Option(help="Port of REST and metrics, TF Serving's is 8501; off if not given; 0 as above.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    poll_seconds: Annotated[float, typer.Option(help="How often to look for new versions.")] = 1.0,
    ssl_config_file: Annotated[
        Path | None, typer.Option(help="TF Serving's SSLConfig: gRPC over TLS, or mutual TLS with client_verify.")
    ] = None,
    monitoring_config_file: Annotated[
        Path | None, typer.Option(help="TF Serving's MonitoringConfig: whether and where REST shows metrics.")
    ] = None,
    max_request_bytes: Annotated[int, typer.Option(help="The largest request that is read.")] = BYTES,
    max_rows: Annotated[int, typer.Option(help="The largest batch.")] = 4096,
    max_seconds: Annotated[
        float, typer.Option(help="The longest a request may wait for a free thread before it is refused.")
    ] = 10.0,
    cache_seconds: Annotated[
        float, typer.Option(help="How long an answer is kept for the same request; 0: not at all. The paper: 28800.")
    ] = 0.0,
    cache_bytes: Annotated[int, typer.Option(help="How much the kept answers may take.")] = BYTES,
    grace_seconds: Annotated[
        float, typer.Option(help="How long requests under way may take to finish after SIGTERM.")
    ] = 10.0,
) -> None:
    """Serves the newest version of every model and follows the folder, until SIGTERM or Ctrl-C.

    Example: python tools/serve.py --models saved_models --port 8500 --rest-port 8501

    gRPC: PredictionService (Predict, GetModelMetadata), ModelService, grpc.health.v1.Health, reflection. REST: TF
    Serving's /v1/models/M[/versions/V|/labels/L] with :predict and /metadata, and /monitoring/prometheus/metrics.
    """
    # A small model loses more to hand-overs between threads than it gains; read when TensorFlow is first imported.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is told once, by us
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from q2s_tf.server.server import serve
    from q2s_tf.server.server_config import RequestLimits

    serve(
        models,
        host=host,
        port=port,
        rest_port=rest_port,
        model_config_file=model_config_file,
        poll_seconds=poll_seconds,
        ssl_config_file=ssl_config_file,
        monitoring_config_file=monitoring_config_file,
        limits=RequestLimits(max_request_bytes, max_rows, max_seconds),
        cache_seconds=cache_seconds,
        cache_bytes=cache_bytes,
        grace_seconds=grace_seconds,
    )


if __name__ == "__main__":
    cli.run(main)
