"""The embedded server: TensorFlow Serving's gRPC API over a folder of saved models, in this process."""

import logging
import os
import signal
import threading
from concurrent import futures
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from q2s_tf.errors import InputError
from q2s_tf.serving.folders import models_in

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 << 20
_SERVICES = ("tensorflow.serving.PredictionService", "tensorflow.serving.ModelService")


class Server:
    """Serves the newest loadable version of every model in a folder, and follows the folder.

    ``with Server(models, port=0) as server: Client(server.address)``. The health service answers for the whole server
    (``""``), for each gRPC service and for each model by its name.

    Attributes:
        address: ``host:port`` as bound.
    """

    def __init__(self, models: Path, host: str = "127.0.0.1", port: int = 8500, poll_seconds: float = 1.0) -> None:
        """Binds the port (0: a free one) at once, so that a taken one shows before anything is loaded.

        Raises:
            InputError: The port cannot be bound, or an argument is out of range.
        """
        if not 0 <= port <= 65535:
            raise InputError(f"port must be 0 to 65535, got {port}")
        if poll_seconds <= 0:
            raise InputError(f"poll_seconds must be above 0, got {poll_seconds}")
        self._folder = models
        self._poll_seconds = poll_seconds
        self._stopping = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="model-poller", daemon=True)
        self._health = health.HealthServicer()
        # One request takes one thread from start to end. A few even on one core, so that a large batch blocks no query;
        # no more than that, because each further thread makes all of them a little slower.
        workers = futures.ThreadPoolExecutor(max_workers=max(4, os.cpu_count() or 1))
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
        self._grpc = grpc.server(workers, options=options)
        try:
            self.address = f"{host}:{self._grpc.add_insecure_port(f'{host}:{port}')}"
        except RuntimeError as error:
            raise InputError(
                f"cannot listen on {host}:{port}: the port is in use or not allowed; give another --port, or 0"
            ) from error

    def start(self) -> None:
        """Loads every model, then answers.

        Raises:
            InputError: There is no model in the folder.
        """
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        from q2s_tf.serving.models import Models
        from q2s_tf.serving.services import ModelService, PredictionService

        self._models = Models(self._folder)
        self._models.refresh()
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(self._models), self._grpc)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self._models), self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        self._report_health()
        self._grpc.start()
        self._poller.start()

    def stop(self, grace_seconds: float = 10.0) -> None:
        """Takes no new request, gives those under way ``grace_seconds`` to finish, and returns when they have.

        A version that is just being loaded is loaded to the end first.
        """
        self._stopping.set()
        self._health.enter_graceful_shutdown()
        self._grpc.stop(grace_seconds).wait()
        if self._poller.is_alive():
            self._poller.join()  # a load cannot be broken off, and the process must not end under it

    def serving(self) -> dict[str, int | None]:
        """The version that each model serves, None for a model whose versions were all refused."""
        return self._models.serving()

    def __enter__(self) -> Self:
        """Starts."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops."""
        self.stop()

    def _poll(self) -> None:
        while not self._stopping.wait(self._poll_seconds):
            try:
                self._models.refresh()
                self._report_health()
            except (OSError, InputError) as error:  # the folder changes under our eyes: look again at the next poll
                log.warning("could not look for new versions: %s", error)

    def _report_health(self) -> None:
        status = health_pb2.HealthCheckResponse
        serving = self._models.serving()
        for name, version in serving.items():
            self._health.set(name, status.SERVING if version is not None else status.NOT_SERVING)
        whole = status.SERVING if None not in serving.values() else status.NOT_SERVING
        for name in ("", *_SERVICES):
            self._health.set(name, whole)


def serve(models: Path, host: str, port: int, poll_seconds: float = 1.0) -> None:
    """Serves until SIGTERM or SIGINT, then drains and returns; prints one line when ready.

    Raises:
        InputError: There is no model in the folder, or the port cannot be bound.
    """
    models_in(models)  # before TensorFlow is imported: a wrong folder shows at once
    stop = threading.Event()

    def request_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, request_stop)
    with Server(models, host, port, poll_seconds) as server:
        served = ", ".join(f"{name} {'(no version)' if v is None else v}" for name, v in server.serving().items())
        print(f"serving {served} on {server.address}", flush=True)
        stop.wait()
        log.info("stopping: requests under way may finish")
