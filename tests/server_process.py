"""The embedded server in a separate process on real ports, and helpers to send requests to it."""

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import preloaded
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

ROOT = Path(__file__).parents[1]


def command(*arguments: str) -> list[str]:
    return [str(ROOT / "tools" / "serve.py"), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a server that exits by itself."""
    result = preloaded.run(command(*arguments), env=environment(), timeout=60)
    return result.returncode, result.stdout, result.stderr


class Process:
    """A server process with gRPC stubs for it."""

    def __init__(
        self, *arguments: str, credentials: grpc.ChannelCredentials | None = None, max_files: int | None = None
    ) -> None:
        """Starts it; with ``max_files`` it may not open more files."""
        self.log = log = tempfile.NamedTemporaryFile("r")  # noqa: SIM115  (open as long as the process runs)
        serve = command(*arguments, "--port", "0", "--poll-seconds", "0.1")
        self.process = preloaded.Program(serve, Path(log.name), environment(), max_files=max_files)
        self.line = self.process.stdout.readline()
        if not self.line:
            log.seek(0)
            raise AssertionError(f"the server exited before it was ready: {log.read()[-2000:]}")
        words = self.line.replace(",", "").split()
        self.address = words[words.index("on") + 1]
        self.rest = words[-1]
        self.connect(credentials)

    def connect(self, credentials: grpc.ChannelCredentials | None = None) -> None:
        """Creates new stubs, on a connection with these credentials."""
        self.channel = (
            grpc.insecure_channel(self.address)
            if credentials is None
            else grpc.secure_channel(self.address.replace("127.0.0.1", "localhost"), credentials)
        )
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def log_bytes(self) -> int:
        return os.fstat(self.log.fileno()).st_size

    def status(self, model: str, timeout: float | None = None) -> dict[int, tuple[int, str]]:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        answer = self.models.GetModelStatus(request, timeout=timeout)
        return {status.version: (status.state, status.status.error_message) for status in answer.model_version_status}

    def healthy(self, service: str = "") -> int:
        return self.health.Check(health_pb2.HealthCheckRequest(service=service)).status

    def wait_until_healthy(self) -> None:
        """Reads the health of the whole server until it is SERVING."""
        for response in self.health.Watch(health_pb2.HealthCheckRequest(), timeout=120):
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                return
        raise AssertionError("the server did not become healthy")

    def stop(self) -> tuple[int, str]:
        """Sends SIGTERM; returns the exit status and the rest of standard output."""
        self.channel.close()
        self.process.send_signal(signal.SIGTERM)
        rest = self.process.stdout.read()
        return self.process.wait(timeout=30), rest


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Repeats a request to the server until the condition on its response is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timeout"


def predict_request(model: str = "query_tower", signature: str = "", **inputs: Any) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for key, value in (inputs or {"query": ["red sofa"], "country": ["US"]}).items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    """Code and message of the gRPC error that a call raises."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise AssertionError("the request succeeded")
