#!/usr/bin/env python
"""Latency and throughput of the embedded server.

The server runs in a separate process, as started by `tools/serve.py`. For the latency, each query is answered by the
loaded servable in this process, over gRPC and over REST in turn, so that the speed of the machine is the same for all
three. For the throughput, clients in separate processes send one query after the other, to this server and, with
`--other`, to that of another checkout in turn.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from q2s_tf.cli import run, track

QUERIES = ("red sofa", "sofá rojo", "赤いソファ", "kids bike 20 inch", "iphone case black new")
PREDICT = "/tensorflow.serving.PredictionService/Predict"
WARM_UP = 200
TURNS = 4
"""Parts into which the duration is divided, so that two servers are measured at the same speed of the machine."""


def main(
    models: Annotated[Path, typer.Option(help="Folder of exported servables.")] = Path("demo/saved_models"),
    rounds: Annotated[int, typer.Option(help="Measured queries for each transport, after the warm-up.")] = 2_000,
    seconds: Annotated[float, typer.Option(help="Duration for each number of clients.")] = 5.0,
    other: Annotated[
        Path | None, typer.Option(help="Another checkout, whose server is measured in the same run.")
    ] = None,
) -> None:
    """Measure latency (p50, p99) and queries per second of the query tower and the retriever behind the server.

    Example: benchmarks/server.py --models demo/saved_models
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # as tools/serve.py does
    console = Console(width=100)
    here = Path(__file__).parents[1]
    for cache_seconds in (0, 60):
        with ExitStack() as stack:
            roots = {"this": here} | ({"other": other} if other else {})
            addresses = {
                name: stack.enter_context(_server(root, models, cache_seconds)) for name, root in roots.items()
            }
            for model in ("query_tower", "retriever"):
                if not cache_seconds:
                    console.print(_latency(models, model, addresses, rounds))
                console.print(_throughput(model, addresses, seconds, "cached" if cache_seconds else "computed"))


@contextmanager
def _server(root: Path, models: Path, cache_seconds: float) -> Iterator[tuple[str, str]]:
    command = [sys.executable, str(root / "tools" / "serve.py"), "--models", str(models.resolve())]
    command += ["--port", "0", "--rest-port", "0", "--cache-seconds", str(cache_seconds)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root, env=environment
    )
    try:
        assert process.stdout is not None
        words = process.stdout.readline().replace(",", "").split()
        yield words[words.index("on") + 1], words[-1].removeprefix("http://")
    finally:
        process.terminate()
        process.wait()


def _latency(models: Path, model: str, addresses: dict[str, tuple[str, str]], rounds: int) -> Table:
    import grpc
    import numpy as np

    requests = _requests(model)
    bodies = [json.dumps({"instances": [{"query": query, "country": "US"}]}) for query in QUERIES]

    def over_grpc(address: str) -> Callable[[int], object]:
        predict = grpc.insecure_channel(address).unary_unary(PREDICT)
        return lambda number: predict(requests[number])

    def over_rest(address: str) -> Callable[[int], object]:
        http = HTTPConnection(address)

        def predict(number: int) -> bytes:
            http.request("POST", f"/v1/models/{model}:predict", bodies[number])
            return http.getresponse().read()

        return predict

    transports = {"in process": _in_process(models, model, requests)}
    for name, (grpc_address, rest_address) in addresses.items():
        transports |= {f"gRPC, {name}": over_grpc(grpc_address), f"REST, {name}": over_rest(rest_address)}
    milliseconds: dict[str, list[float]] = {name: [] for name in transports}
    for count in track(range(rounds + WARM_UP), model):
        for name, send in transports.items():
            begin = time.perf_counter()
            send(count % len(QUERIES))
            if count >= WARM_UP:
                milliseconds[name].append(1e3 * (time.perf_counter() - begin))
    table = Table("latency, ms", "p50", "p99", "p50 above in process", title=model, title_justify="left")
    floor = float(np.median(milliseconds["in process"]))
    for name, values in milliseconds.items():
        p50, p99 = np.percentile(values, [50, 99])
        table.add_row(name, f"{p50:.2f}", f"{p99:.2f}", f"{p50 - floor:.2f}")
    return table


def _in_process(models: Path, model: str, requests: list[bytes]) -> Callable[[int], object]:
    """The computation of the server for a message, without the server."""
    from tensorflow_serving.apis import predict_pb2

    from q2s_tf.server.servable import Servable
    from q2s_tf.serving.folders import versions_in

    version, folder = max(versions_in(models / model).items())
    servable = Servable(model, version, folder)
    messages = [predict_pb2.PredictRequest.FromString(request) for request in requests]
    return lambda number: servable.predict(messages[number])


def _requests(model: str) -> list[bytes]:
    import numpy as np
    from tensorflow_serving.apis import predict_pb2

    from q2s_tf.serving.tensor_proto import encode

    requests = []
    for query in QUERIES:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        for key, value in (("query", query), ("country", "US")):
            request.inputs[key].CopyFrom(encode(np.array([value.encode()], object)))
        requests.append(request.SerializeToString())
    return requests


def _throughput(model: str, addresses: dict[str, tuple[str, str]], seconds: float, how: str) -> Table:
    table = Table("clients", "server", "queries/s", "p50, ms", "p99, ms", title=f"{model}, {how}", title_justify="left")
    spawn = multiprocessing.get_context("spawn")  # the clients import neither TensorFlow nor q2s_tf
    requests = _requests(model)
    for clients in track((1, 4, 16), f"{model}, {how}"):
        latencies: dict[str, list[float]] = {name: [] for name in addresses}
        with spawn.Pool(clients) as pool:
            pool.map(time.sleep, [0.3] * clients, chunksize=1)  # until all clients have started
            for _ in range(TURNS):
                for name, (address, _rest) in addresses.items():
                    task = (address, requests, time.time() + 1, seconds / TURNS)
                    for values in pool.starmap(_send_queries, [task] * clients, chunksize=1):
                        latencies[name] += values
        for name, values in latencies.items():
            p50, p99 = (1e3 * sorted(values)[int(len(values) * share)] for share in (0.5, 0.99))
            table.add_row(str(clients), name, f"{len(values) / seconds:.0f}", f"{p50:.2f}", f"{p99:.2f}")
    return table


def _send_queries(address: str, requests: list[bytes], start: float, seconds: float) -> list[float]:
    import grpc

    latencies: list[float] = []
    with grpc.insecure_channel(address) as channel:
        predict = channel.unary_unary(PREDICT)
        predict(requests[0])
        time.sleep(max(0.0, start - time.time()))
        end = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            predict(requests[len(latencies) % len(requests)])
            latencies.append(time.perf_counter() - begin)
    return latencies


if __name__ == "__main__":
    run(main)
