"""Peers that send nothing, too much or never stop: the server answers others and its memory and log stay small."""

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import serving_models
import tensorflow as tf
from grpc_health.v1 import health_pb2
from server_process import Process, predict_request, refusal, wait_until
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow_serving.apis import model_pb2

from q2s_tf.server.model_manager import ModelManager
from q2s_tf.server.request_handler import RequestHandler
from q2s_tf.server.request_waits import MAX_RUNNING, MAX_WAITING, PeerWaits, RequestThreads
from q2s_tf.server.server_config import RequestLimits
from q2s_tf.serving.serving_error import ServingError

MEBIBYTE = 1 << 20
PREDICT = "/tensorflow.serving.PredictionService/Predict"
WATCH = "/grpc.health.v1.Health/Watch"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    serving_models.save_all(folder)
    return folder


@pytest.fixture(scope="module")
def patient(models: Path) -> Iterator[Process]:
    """A server that awaits messages for so long that no idle call ends in a test."""
    process = Process(
        *("--models", str(models), "--rest-port", "0", "--receive-seconds", "600"),
        *("--grace-seconds", "1"),
    )
    yield process
    assert process.stop() == (0, "")


@pytest.fixture(scope="module")
def strict(models: Path) -> Iterator[Process]:
    """A server that ends what does not arrive within a second."""
    process = Process("--models", str(models), "--rest-port", "0", "--receive-seconds", "1")
    yield process
    assert process.stop() == (0, "")


def idle_calls(server: Process, stack: ExitStack, method: str, count: int) -> list[grpc.Future]:
    """Calls that send headers and no message, at most 100 on a connection."""
    closed = threading.Event()
    calls = []
    for start in range(0, count, 100):
        channel = grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
        stack.callback(channel.close)
        for _ in range(min(100, count - start)):
            calls.append(channel.stream_unary(method).future(iter(lambda: closed.wait() and b"", b"")))
    stack.callback(closed.set)
    stack.callback(lambda: [call.cancel() for call in calls])
    return calls


def everything_is_answered(server: Process, seconds: float = 5) -> None:
    """Health, status, Predict and REST, each in time."""
    assert server.health.Check(health_pb2.HealthCheckRequest(), timeout=seconds).status == 1
    assert server.status("query_tower", seconds)[1][1] == ""
    assert server.prediction.Predict(predict_request(), timeout=seconds).model_spec.version.value == 1
    assert httpx.get(f"{server.rest}/v1/models/query_tower", timeout=seconds).status_code == 200


@pytest.mark.parametrize("method", [PREDICT, WATCH])
@pytest.mark.parametrize("count", [4, 400])
def test_calls_without_a_message_do_not_hold_what_others_need(patient: Process, method: str, count: int) -> None:
    with ExitStack() as stack:
        idle_calls(patient, stack, method, count)
        for _ in range(3):
            everything_is_answered(patient)


def test_calls_without_a_message_end(strict: Process) -> None:
    with ExitStack() as stack:
        for call in idle_calls(strict, stack, PREDICT, 10):
            error = call.exception(timeout=60)
            assert isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.CANCELLED


def test_health_watches_hold_no_thread(patient: Process) -> None:
    watches = [patient.health.Watch(health_pb2.HealthCheckRequest()) for _ in range(50)]
    assert [next(watch).status for watch in watches] == [1] * 50
    everything_is_answered(patient)
    for watch in watches:
        watch.cancel()


def connect(server: Process, stack: ExitStack, rest: bool = True) -> socket.socket:
    host, port = (server.rest.removeprefix("http://") if rest else server.address).split(":")
    return stack.enter_context(socket.create_connection((host, int(port)), timeout=60))


def is_closed(connection: socket.socket) -> bool:
    """Reads until the server closes the connection."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def test_half_headers_are_closed(strict: Process) -> None:
    with ExitStack() as stack:
        connections = [connect(strict, stack) for _ in range(2000)]
        for connection in connections[1000:]:
            connection.sendall(b"POST /v1/models/query_tower:predict HTTP/1.1\r\nHost:")
        everything_is_answered(strict)
        assert all(is_closed(connection) for connection in connections)


def test_bodies_that_never_end_are_refused_within_bounds(strict: Process) -> None:
    chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    with peak_memory(strict) as peak, ExitStack() as stack:
        connections = [connect(strict, stack) for _ in range(100)]
        for connection in connections:
            connection.sendall(
                b"POST /v1/models/query_tower:predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
        refused: set[socket.socket] = set()
        while len(refused) < len(connections):
            for connection in set(connections) - refused:
                try:
                    connection.sendall(chunk)
                except ConnectionError:
                    refused.add(connection)
        everything_is_answered(strict)
    assert peak.bytes() < 300 * MEBIBYTE


def test_a_body_that_stops_is_closed(strict: Process) -> None:
    with ExitStack() as stack:
        connection = connect(strict, stack)
        connection.sendall(b"POST /v1/models/query_tower:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
        assert is_closed(connection)


class peak_memory:
    """The highest memory of a process in a block, above that at its begin."""

    def __init__(self, server: Process) -> None:
        self.folder = Path(f"/proc/{server.process.pid}")

    def read(self, field: str) -> int:
        (line,) = [line for line in (self.folder / "status").read_text().splitlines() if line.startswith(field)]
        return int(line.split()[1]) * 1024

    def __enter__(self) -> "peak_memory":
        (self.folder / "clear_refs").write_text("5")  # resets the peak
        self.start = self.read("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        self.peak = self.read("VmHWM")

    def bytes(self) -> int:
        return self.peak - self.start


def filled_tensor(rows: int, value: bytes) -> tensor_pb2.TensorProto:
    """A tensor that repeats its only value."""
    shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=rows)])
    return tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=[value])


def test_large_texts_are_refused_before_they_cost_memory(strict: Process) -> None:
    huge = "a" * 10_000_000
    with peak_memory(strict) as peak:
        assert refusal(lambda: strict.prediction.Predict(predict_request(query=[huge], country=["US"])))[0] == (
            "RESOURCE_EXHAUSTED"
        )
        request = predict_request()
        for key in ("query", "country"):
            request.inputs[key].CopyFrom(filled_tensor(4096, b"a" * MEBIBYTE))
        code, message = refusal(lambda: strict.prediction.Predict(request))
        assert code == "INVALID_ARGUMENT" and 'input "country": shape [4096] takes ' in message
        body = {"instances": [{"query": huge, "country": "US"}]}
        assert httpx.post(f"{strict.rest}/v1/models/query_tower:predict", json=body).status_code == 413
    assert peak.bytes() < 300 * MEBIBYTE
    for key in ("query", "country"):
        request.inputs[key].CopyFrom(filled_tensor(1000, b"a"))
    outputs = strict.prediction.Predict(request).outputs
    assert tf.make_ndarray(outputs["embedding"]).shape == (1000, serving_models.DIM)


def test_rows_times_k_is_limited(strict: Process) -> None:
    options = {"k": 1000, "effort": 1, "min_score": np.float32(0), "lexical_weight": np.float32(0)}
    request = predict_request("retriever", "retrieve", query=["a"] * 101, country=["US"] * 101, **options)
    code, message = refusal(lambda: strict.prediction.Predict(request))
    assert code == "INVALID_ARGUMENT" and "rows × k may be at most 100000, got 101 × 1000" in message


def test_the_service_goes_on_when_file_descriptors_are_exhausted(models: Path) -> None:
    server = Process("--models", str(models), "--rest-port", "0", "--receive-seconds", "1", max_files=120)
    server.prediction.Predict(predict_request())
    with ExitStack() as stack:
        for number in range(600):
            with suppress(ConnectionError):
                connect(server, stack, rest=number % 2 == 0).sendall(b"GET / HTTP/1.1\r\n")
        for _ in range(100):
            assert server.prediction.Predict(predict_request(), timeout=10).model_spec.version.value == 1
    wait_until(lambda: answers(server))
    everything_is_answered(server)
    assert server.log_bytes() < MEBIBYTE
    assert server.stop() == (0, "")


def answers(server: Process) -> bool:
    try:
        return httpx.get(f"{server.rest}/v1/models/query_tower", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_invalid_requests_do_not_fill_the_log(strict: Process) -> None:
    before = strict.log_bytes()
    with ExitStack() as stack:
        for _ in range(1000):
            connection = connect(strict, stack)
            connection.sendall(b"\x00\x01 no HTTP\r\n\r\n")
            assert is_closed(connection)
    assert strict.log_bytes() - before < 50_000


def test_a_wait_ends_when_it_is_late_or_one_too_many() -> None:
    ended: list[str] = []
    waits = PeerWaits(seconds=0.0, most=2)
    for name in ("a", "b", "c"):
        waits.start(name, lambda name=name: ended.append(name))  # type: ignore[misc]
    assert ended == ["a"]
    waits.finish("b")
    wait_until(lambda: waits.end_late() or ended == ["a", "c"])  # type: ignore[func-returns-value]


def test_calls_behind_blocked_ones_get_threads() -> None:
    threads = RequestThreads(2)
    blocked = threading.Event()
    waiting = [threads.submit(blocked.wait) for _ in range(20)]
    health = threads.submit(lambda: "health")
    wait_until(lambda: threads.run_late() or health.done())  # type: ignore[func-returns-value]
    assert health.result() == "health"
    blocked.set()
    assert all(future.result(timeout=60) for future in waiting)
    threads.drain(60)


def test_more_requests_than_can_wait_are_refused() -> None:
    handler = RequestHandler(ModelManager([]), RequestLimits())
    with ExitStack() as running, ThreadPoolExecutor(MAX_WAITING + 1) as threads:
        for _ in range(MAX_RUNNING):
            running.enter_context(handler.turn("GRPC"))

        def wait() -> str:
            with handler.turn("GRPC"):
                return "answered"

        waiting = [threads.submit(wait) for _ in range(MAX_WAITING + 1)]
        refused = next(as_completed(waiting)).exception()
        running.close()
        answers = [future.result(timeout=60) for future in waiting if future.exception() is not refused]
    assert isinstance(refused, ServingError) and refused.code is grpc.StatusCode.UNAVAILABLE
    assert answers == ["answered"] * MAX_WAITING


# --- versions that cannot be loaded


class Endless(tf.Module):
    """Counts for hours."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "query")])
    def __call__(self, query: tf.Tensor) -> dict[str, tf.Tensor]:
        limit = tf.constant(2**31 - 1) - tf.size(query)
        return {"counted": tf.while_loop(lambda i: i < limit, lambda i: (i + 1,), [tf.constant(0)])[0]}


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version whose warm-up never ends."""
    module = Endless()
    version = tmp_path_factory.mktemp("endless") / "1"
    tf.saved_model.save(module, str(version), signatures={"serving_default": module.__call__})
    serving_models.write_warmup(version, {"query": ["warm"]})
    return version


@pytest.mark.parametrize("signals", [1, 2])
def test_a_version_that_never_finishes_loading_blocks_nothing(
    models: Path, endless: Path, tmp_path: Path, signals: int
) -> None:
    shutil.copytree(models / "query_tower", tmp_path / "query_tower")
    server = Process("--models", str(tmp_path), "--rest-port", "0", "--grace-seconds", "1" if signals == 1 else "600")
    shutil.copytree(endless, tmp_path / "endless" / "1")
    wait_until(lambda: refusal_or_state(server, "endless") == "LOADING")
    shutil.copytree(tmp_path / "query_tower" / "1", tmp_path / "query_tower" / ".2")
    (tmp_path / "query_tower" / ".2").rename(tmp_path / "query_tower" / "2")
    wait_until(lambda: server.prediction.Predict(predict_request()).model_spec.version.value == 2)
    for _ in range(signals):
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.process.poll() is not None or not answers(server))
    assert server.process.wait(timeout=60) == (0 if signals == 1 else -signal.SIGTERM)


def test_a_signal_that_another_thread_receives_stops_the_server(models: Path) -> None:
    """The handler runs in the main thread, which such a signal does not wake."""
    server = Process("--models", str(models), "--rest-port", "0")
    threads = (int(name) for name in os.listdir(f"/proc/{server.process.pid}/task"))
    os.kill(max(threads), signal.SIGTERM)  # the kernel prefers the thread of this number
    assert server.process.wait(timeout=60) == 0


def refusal_or_state(server: Process, model: str) -> str:
    try:
        return {20: "LOADING", 30: "AVAILABLE", 50: "END"}[server.status(model)[1][0]]
    except (grpc.RpcError, KeyError):
        return ""


def test_a_pipe_in_a_version_is_refused_at_once(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "query_tower", tmp_path / "query_tower")
    (tmp_path / "query_tower" / "2").mkdir()
    os.mkfifo(tmp_path / "query_tower" / "2" / "saved_model.pb")
    served = ModelManager(tmp_path)
    served.refresh()
    assert not served.loading(60)
    assert served.serving() == {"query_tower": [1]}
    assert (
        "is neither a file nor a folder"
        in served.statuses(model_pb2.ModelSpec(name="query_tower"))[0].status.error_message
    )


def test_a_repaired_version_with_its_old_times_is_loaded(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "query_tower", tmp_path / "query_tower")
    (variables,) = (tmp_path / "query_tower" / "1").glob("variables/variables.data-*")
    good, state = variables.read_bytes(), variables.stat()
    variables.write_bytes(bytes(len(good)))
    graph = tmp_path / "query_tower" / "1" / "saved_model.pb"
    content = graph.read_bytes()
    graph_state = graph.stat()
    graph.write_bytes(bytes(len(content)))
    os.utime(graph, ns=(graph_state.st_atime_ns, graph_state.st_mtime_ns))
    served = ModelManager(tmp_path)
    served.refresh()
    assert not served.loading(60) and served.serving() == {"query_tower": []}
    for file, bytes_, times in ((variables, good, state), (graph, content, graph_state)):
        file.write_bytes(bytes_)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    deadline = time.monotonic() + 60
    while not served.serving()["query_tower"]:
        served.refresh()
        assert not served.loading(60) and time.monotonic() < deadline
