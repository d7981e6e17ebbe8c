#!/usr/bin/env python
"""How long one query takes: inside the loaded servable, and over gRPC from the embedded server.

The ways run in turn, one query at a time, so that the machine's speed is the same for all of them.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import typer

from q2s_tf.cli import run

QUERIES = ("red sofa", "sofá rojo", "赤いソファ", "kids bike 20 inch", "iphone case black new")


def main(
    models: Path = typer.Option(Path("demo/saved_models"), help="Folder of exported servables."),
    rounds: int = typer.Option(1_000, help="Queries of each way, after 100 that are not counted."),
) -> None:
    """Measure p50 and p99 of the query tower and the retriever, in process and over gRPC.

    Example: benchmarks/query_latency.py --models demo/saved_models
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # as tools/serve.py does
    import numpy as np
    from tensorflow_serving.apis import predict_pb2

    from q2s_tf.serving import Client, Server
    from q2s_tf.serving.folders import versions_in
    from q2s_tf.serving.servable import Servable
    from q2s_tf.serving.tensor_proto import encode

    def in_process(name: str) -> Callable[[str], object]:
        version, folder = max(versions_in(models / name).items())
        servable = Servable(name, version, folder)

        def ask(query: str) -> object:
            request = predict_pb2.PredictRequest()
            request.inputs["query"].CopyFrom(encode(np.array([query.encode()], object)))
            request.inputs["country"].CopyFrom(encode(np.array([b"US"], object)))
            return servable.predict(request)

        return ask

    with Server(models, port=0) as server, Client(server.address) as client:
        ways: dict[str, Callable[[str], object]] = {
            "query_tower, in process": in_process("query_tower"),
            "query_tower, gRPC": lambda query: client.embed_query([query], ["US"]),
            "retriever, in process": in_process("retriever"),
            "retriever, gRPC": lambda query: client.retrieve([query], ["US"], k=10),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for count in range(rounds + 100):
            for name, ask in ways.items():
                begin = time.perf_counter()
                ask(QUERIES[count % len(QUERIES)])
                if count >= 100:
                    seconds[name].append(time.perf_counter() - begin)
    for name, values in seconds.items():
        p50, p99 = np.percentile(values, [50, 99]) * 1e3
        print(f"{name:26} p50 {p50:6.2f} ms   p99 {p99:6.2f} ms")


if __name__ == "__main__":
    run(main)
