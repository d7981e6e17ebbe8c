"""The embedded server: TensorFlow Serving's gRPC and REST API over saved models, in this process.

A drop-in for TensorFlow Serving in development and small deployments: the same services, routes, config files and,
where known, the same codes. What differs: a request for an unknown signature is NOT_FOUND (there FAILED_PRECONDITION),
a batch whose columns have unlike lengths is refused before the graph runs, ``Classify``, ``Regress`` and
``MultiInference`` are UNIMPLEMENTED, requests are not batched, and the model config file is read once: send
HandleReloadConfigRequest. See also `served_models`, `server_config` and `json_tensors` in this package.
"""

import ctypes
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from contextlib import ExitStack
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from q2s_tf.errors import InputError
from q2s_tf.server.cache import AnswerCache
from q2s_tf.server.limits import Limits
from q2s_tf.server.rest_server import RestServer
from q2s_tf.server.server_config import (
    METRICS_PATH,
    ModelConfig,
    read_metrics_path,
    read_model_configs,
    read_server_credentials,
)
from q2s_tf.server.server_metrics import Metrics
from q2s_tf.serving.folders import models_in

if TYPE_CHECKING:
    from q2s_tf.server.served_models import Models

log = logging.getLogger(__name__)

_M_ARENA_MAX = -8  # of malloc.h


class Server:
    """Serves models and follows their folders.

    ``with Server(models, port=0) as server: Client(server.address)``. The health service answers for the whole server
    (``""``), for each gRPC service and for each model by its name.

    Attributes:
        address: ``host:port`` of gRPC as bound.
        rest_address: That of REST, None without REST.
    """

    def __init__(
        self,
        models: Path | Sequence[ModelConfig],
        host: str = "127.0.0.1",
        port: int = 8500,
        poll_seconds: float = 1.0,
        *,
        rest_port: int | None = None,
        metrics_path: str | None = METRICS_PATH,
        credentials: grpc.ServerCredentials | None = None,
        limits: Limits | None = None,
        cache_seconds: float = 0.0,
        cache_bytes: int = 64 << 20,
        grace_seconds: float = 10.0,
    ) -> None:
        """Binds the ports (0: a free one) at once, so that a taken one shows before anything is loaded.

        Args:
            models: A folder with a folder for each model, or configs of models: see `q2s_tf.server.server_config`.
            host: The address to listen on.
            port: gRPC's port.
            poll_seconds: How often to look for new versions.
            rest_port: REST's port, None for no REST and no metrics.
            metrics_path: Where REST shows the metrics, None for nowhere.
            credentials: For gRPC over TLS: see `q2s_tf.server.server_config.read_server_credentials`.
            limits: What is refused; None for the defaults.
            cache_seconds: How long an answer is kept for the same request, 0 for not at all.
            cache_bytes: How much the kept answers may take.
            grace_seconds: How long `stop` lets requests under way go on.

        Raises:
            InputError: A port cannot be bound, or an argument is out of range.
        """
        limits = limits or Limits()
        _check_arguments(
            {"port": port, "rest_port": rest_port},
            {
                "poll_seconds": poll_seconds,
                "cache_seconds": cache_seconds,
                "cache_bytes": cache_bytes,
                "grace_seconds": grace_seconds,
            },
        )
        limits.check()
        self._source = models
        self._limits = limits
        self._metrics_path = metrics_path
        self._poll_seconds = poll_seconds
        self._grace_seconds = grace_seconds
        self._cache = AnswerCache(cache_seconds, cache_bytes) if cache_seconds else None
        self._metrics = Metrics()
        self._at_end = ExitStack()
        self._stopping = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="model-poller", daemon=True)
        self._health = health.HealthServicer()
        # One request takes one thread from start to end. A few even on one core, so that a large batch blocks no query;
        # no more than that, because each further thread makes all of them a little slower.
        self._workers = futures.ThreadPoolExecutor(max_workers=max(4, os.cpu_count() or 1))
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", limits.max_request_bytes),
            ("grpc.max_send_message_length", -1),
        ]
        self._grpc = grpc.server(self._workers, options=options)
        self.address = f"{host}:{self._bind(f'{host}:{port}', credentials)}"
        self._rest = RestServer(host, rest_port) if rest_port is not None else None
        self.rest_address = self._rest.address if self._rest is not None else None

    def start(self) -> None:
        """Loads every model, then answers.

        Raises:
            InputError: There is no model in the folder.
        """
        from grpc_reflection.v1alpha import reflection

        from q2s_tf.server.api import Api
        from q2s_tf.server.grpc_services import Services, declare_services
        from q2s_tf.server.served_models import Models

        self._models = Models(self._source)
        self._at_end.callback(self._models.close)
        self._models.refresh()
        api = Api(self._models, self._metrics, self._limits, self._cache, self._after_change)
        self._grpc.add_generic_rpc_handlers([Services(api)])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        self._services = declare_services()
        names = (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._grpc)
        self._report_health()
        _watch(self._metrics, self._models, self._cache)
        self._grpc.start()
        if self._rest is not None:
            from q2s_tf.server.rest import make_app

            app = make_app(api, self._metrics, self._workers, self._limits.max_request_bytes, self._metrics_path)
            self._rest.start(app, self._grace_seconds)
        self._poller.start()

    def stop(self) -> None:
        """Tells the health service first, then takes no new request, and returns when those under way are answered.

        They have `grace_seconds`, and are broken off after that. A version that is being loaded is loaded to the end.
        """
        self._stopping.set()
        self._health.enter_graceful_shutdown()
        end = time.monotonic() + self._grace_seconds
        self._grpc.stop(self._grace_seconds)
        if self._rest is not None:
            self._rest.stop()
        idle = threading.Thread(target=self._workers.shutdown, name="drain", daemon=True)
        idle.start()
        idle.join(max(0.0, end - time.monotonic()))
        # What is left now are those who watch the health service, who would wait for ever, and answers being sent.
        self._grpc.stop(min(0.2, self._grace_seconds)).wait()
        if self._poller.is_alive():
            self._poller.join()  # a load cannot be broken off, and the process must not end under it
        self._at_end.close()

    def serving(self) -> dict[str, list[int]]:
        """The versions that each model serves, newest last; none for a model whose versions were all refused."""
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

    def _bind(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        try:
            if credentials is None:
                return self._grpc.add_insecure_port(address)
            return self._grpc.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise InputError(
                f"cannot listen on {address}: the port is in use or not allowed; give another --port, or 0"
            ) from error

    def _poll(self) -> None:
        while not self._stopping.wait(self._poll_seconds):
            try:
                if self._models.refresh():
                    self._after_change()
            except (OSError, InputError) as error:  # the folder changes under our eyes: look again at the next poll
                log.warning("could not look for new versions: %s", error)

    def _after_change(self) -> None:
        if self._cache is not None:
            self._cache.clear()
        self._report_health()

    def _report_health(self) -> None:
        status = health_pb2.HealthCheckResponse
        serving = self._models.serving()
        for name, versions in serving.items():
            self._health.set(name, status.SERVING if versions else status.NOT_SERVING)
        whole = status.SERVING if all(serving.values()) else status.NOT_SERVING
        for name in ("", *self._services):
            self._health.set(name, whole)


def serve(
    models: Path | None,
    *,
    model_config_file: Path | None = None,
    ssl_config_file: Path | None = None,
    monitoring_config_file: Path | None = None,
    **options: Any,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains and returns; prints one line when ready.

    Args:
        models: The folder of the models, or None and
        model_config_file: TensorFlow Serving's ``ModelServerConfig`` in text format.
        ssl_config_file: Its ``SSLConfig``.
        monitoring_config_file: Its ``MonitoringConfig``.
        options: Of `Server`.

    Raises:
        InputError: There is no model, a file is not as it must be, or a port cannot be bound.
    """
    # All of this before TensorFlow is imported: what is wrong shows at once.
    source: Path | list[ModelConfig]
    if models is not None and model_config_file is None:
        models_in(models)
        source = models
    elif model_config_file is not None and models is None:
        source = read_model_configs(model_config_file)
    else:
        raise InputError("give either --models, a folder, or --model-config-file, a file")
    if ssl_config_file is not None:
        options["credentials"] = read_server_credentials(ssl_config_file)
    if monitoring_config_file is not None:
        options["metrics_path"] = read_metrics_path(monitoring_config_file)
    stop = threading.Event()

    def request_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, request_stop)
    _pool_memory()
    server = Server(source, **options)
    _spare_the_collector()
    with server:
        rest = f", REST on http://{server.rest_address}" if server.rest_address else ""
        served = ", ".join(
            f"{name} {' and '.join(map(str, versions)) or '(no version)'}"
            for name, versions in server.serving().items()
        )
        print(f"serving {served} on {server.address}{rest}", flush=True)
        stop.wait()
        log.info("stopping: requests under way may finish")


def _pool_memory() -> None:
    """Each thread has a pool of freed memory in glibc, and each would come to keep the weights of an old version."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


def _spare_the_collector() -> None:
    """The modules stay: going through them at each change of versions would hold up all requests for half a second."""
    from q2s_tf.server import served_models  # noqa: F401  (with it TensorFlow)

    gc.collect()
    gc.freeze()


def _check_arguments(ports: Mapping[str, int | None], amounts: Mapping[str, float]) -> None:
    for name, port in ports.items():
        if port is not None and not 0 <= port <= 65535:
            raise InputError(f"{name} must be 0 to 65535, got {port}")
    for name, amount in amounts.items():
        if amount < 0 or (amount == 0 and name != "cache_seconds"):
            raise InputError(f"{name} must be above 0, got {amount}")


def _watch(metrics: Metrics, models: "Models", cache: AnswerCache | None) -> None:
    def counted(versions: Mapping[str, list[int]]) -> dict[tuple[str, ...], float]:
        return {(name, str(version)): 1.0 for name, numbers in versions.items() for version in numbers}

    labels = ["model", "version"]
    metrics.watch("q2s_version_loaded", "Versions that answer.", labels, lambda: counted(models.serving()))
    metrics.watch("q2s_version_refused", "Versions that did not load.", labels, lambda: counted(models.refused()))
    if cache is not None:
        metrics.watch("q2s_cache_bytes", "What the kept answers take.", [], lambda: {(): float(cache.size_bytes())})
