"""The embedded server: TensorFlow Serving's gRPC and REST APIs in this process.

It replaces TensorFlow Serving in development and in small deployments, with the same services, routes, config files
and, where known, the same error codes. docs/operating.md lists the differences.
"""

import ctypes
import gc
import logging
import math
import os
import resource
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc
import uvicorn
from grpc_health.v1 import health, health_pb2

from q2s_tf.errors import InputError
from q2s_tf.server.request_waits import MAX_RECEIVING, PeerWaits, RequestThreads
from q2s_tf.server.server_config import ModelConfig, RequestLimits

log = logging.getLogger(__name__)

FIRST_LOAD_SECONDS = 60.0
"""How long `Server.start` waits for models; one that takes longer is served as soon as it is loaded."""
MAX_CONNECTIONS = 1000
"""Highest number of gRPC connections, and of REST connections; less if the process may not open so many files."""
SEND_SECONDS = 30.0
"""The longest time for a client to read its answer."""


class Server:
    """Serves models and loads new versions of them.

    ``with Server(models, port=0) as server: Client(server.address)``. The health service has a status for the whole
    server (``""``), for each gRPC service and for each model, by name.

    Attributes:
        address: ``host:port`` of gRPC, with the actual port.
        rest_address: The same for REST; None without REST.
        models: The `ModelManager`, after `start`.
        stopping: An event; when it is set, no further versions are loaded.
    """

    def __init__(
        self,
        models: Path | Sequence[ModelConfig],
        host: str = "127.0.0.1",
        port: int = 8500,
        poll_seconds: float = 1.0,
        *,
        rest_port: int | None = None,
        credentials: grpc.ServerCredentials | None = None,
        limits: RequestLimits = RequestLimits(),
        cache_seconds: float = 0.0,
        cache_bytes: int = 64 << 20,
        grace_seconds: float = 10.0,
    ) -> None:
        """Binds the ports, so that a port in use is reported before a model is loaded.

        Args:
            models: A folder with a folder for each model, or model configs: see `q2s_tf.server.server_config`.
            host: The address to listen on.
            port: The port of gRPC; 0 takes a free one.
            poll_seconds: Time between two checks for new versions.
            rest_port: The port of REST, 0 takes a free one; None for neither REST nor metrics.
            credentials: For gRPC over TLS: see `q2s_tf.server.server_config.read_server_credentials`.
            limits: The limits of a request.
            cache_seconds: How long to keep an answer for equal requests; 0 for no cache.
            cache_bytes: The size of the cache.
            grace_seconds: How long `stop` waits for running requests.

        Raises:
            InputError: A port cannot be bound.
        """
        self.stopping, self._stopped = threading.Event(), threading.Event()
        self._source, self._poll_seconds, self._grace_seconds = models, poll_seconds, grace_seconds
        self._handler_options = limits, cache_seconds, cache_bytes
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._max_connections = min(MAX_CONNECTIONS, most // 4)
        seconds = limits.receive_seconds
        self._messages, self._bodies = PeerWaits(seconds, MAX_RECEIVING), PeerWaits(seconds, MAX_RECEIVING)
        self._headers, self._unread = PeerWaits(seconds, self._max_connections), PeerWaits(SEND_SECONDS, MAX_RECEIVING)
        self._health = health.HealthServicer()
        self._threads = RequestThreads()
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", limits.max_request_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", 100),  # of one connection; its client lets further calls wait
            ("grpc.max_allowed_incoming_connections", self._max_connections),
            ("grpc.max_connection_idle_ms", 60_000),  # a client connects again with its next call
            ("grpc.server_handshake_timeout_ms", int(1000 * seconds)),
        ]
        self._grpc = grpc.server(self._threads, options=options)
        with _binding(f"{host}:{port}", "--port"):
            credentials = credentials or grpc.insecure_server_credentials()
            self.address = f"{host}:{self._grpc.add_secure_port(f'{host}:{port}', credentials)}"
        self.rest_address = None
        if rest_port is not None:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            # asyncio sets TCP_NODELAY (otherwise 40 ms per request) only if the protocol is explicit.
            self._rest_socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            self._rest_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with _binding(f"{host}:{rest_port}", "--rest-port"):
                self._rest_socket.bind((host.strip("[]"), rest_port))
            self.rest_address = f"{host}:{self._rest_socket.getsockname()[1]}"

    def start(self) -> None:
        """Loads all models, then starts to answer, at the latest after `FIRST_LOAD_SECONDS`.

        Raises:
            InputError: The folder has no model.
        """
        from q2s_tf.server.grpc_services import SERVICES, make_services
        from q2s_tf.server.model_manager import ModelManager
        from q2s_tf.server.request_handler import RequestHandler
        from q2s_tf.server.rest import make_app, make_protocol

        self._services = SERVICES
        self.models = ModelManager(self._source, self._after_change)
        self._handler = RequestHandler(self.models, *self._handler_options)
        self.models.refresh()
        end = time.monotonic() + FIRST_LOAD_SECONDS
        while self.models.loading(0.1) and time.monotonic() < end and not self.stopping.is_set():
            pass
        self._after_change()  # also if no version could be loaded
        services = make_services(self._handler, self._health, self._messages, self._unread)
        self._grpc.add_generic_rpc_handlers(services)
        self._grpc.start()
        if self.rest_address is not None:
            config = uvicorn.Config(
                make_app(self._handler, self._threads, SEND_SECONDS),
                http=make_protocol(self._headers, self._bodies, self._max_connections),
                ws="none",
                h11_max_incomplete_event_size=16 << 10,
                backlog=128,  # asyncio logs as many errors at once when file descriptors are exhausted
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=max(1, round(self._grace_seconds)),
            )
            self._rest = uvicorn.Server(config)
            self._rest_thread = threading.Thread(target=self._rest.run, args=([self._rest_socket],), daemon=True)
            self._rest_thread.start()
        threading.Thread(target=self._watch, name="request-watch", daemon=True).start()
        threading.Thread(target=self._poll, name="model-poller", daemon=True).start()

    def stop(self) -> None:
        """Sets the health status, refuses new requests, and returns when the running requests have been answered.

        After `grace_seconds` running requests are cancelled. A version that is being loaded is awaited as long.
        """
        self.stopping.set()
        self._health.enter_graceful_shutdown()
        end = time.monotonic() + self._grace_seconds
        self._grpc.stop(self._grace_seconds)
        if self.rest_address is not None:
            self._rest.should_exit = True
            self._rest_thread.join()
        self._threads.drain(end - time.monotonic())
        # What remains are answers that are being sent, and health watches, which never end by themselves.
        self._grpc.stop(min(0.2, self._grace_seconds)).wait()
        self.models.loading(end - time.monotonic())
        self.models.close()
        self._stopped.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _watch(self) -> None:
        while not self._stopped.wait(0.05):
            self._threads.run_late()
            for waits in (self._messages, self._unread, self._headers, self._bodies):
                waits.end_late()

    def _poll(self) -> None:
        while not self.stopping.wait(self._poll_seconds):
            try:
                self.models.refresh()
            except (OSError, InputError) as error:  # the folder is being changed; the next poll tries again
                log.warning("could not look for new versions: %s", error)

    def _after_change(self) -> None:
        healthy = {name: bool(versions) for name, versions in self.models.serving().items()}
        healthy |= dict.fromkeys(("", *self._services), all(healthy.values()))
        status = health_pb2.HealthCheckResponse
        for name in healthy:
            self._health.set(name, status.SERVING if healthy[name] else status.NOT_SERVING)


def run(*arguments: Any, **options: Any) -> None:
    """Serves with a `Server` of these arguments until SIGTERM or SIGINT, then drains and returns.

    Prints one line when it is ready. A second signal ends the process at once.
    """
    # glibc keeps a pool of freed memory for each thread; in many pools the weights of old versions would remain.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(-8, 2)  # M_ARENA_MAX of malloc.h; before the threads start
    for output in logging.getLogger().handlers:
        output.addFilter(_log_limit())
    server = Server(*arguments, **options)

    def stop(*_: object) -> None:
        server.stopping.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    # Without the modules in its generations, a garbage collection does not stop all requests for half a second.
    from q2s_tf.server import model_manager  # noqa: F401  (imports TensorFlow)

    gc.collect()
    gc.freeze()
    with server:
        rest = f", REST on http://{server.rest_address}" if server.rest_address else ""
        versions = server.models.serving().items()
        served = ", ".join(f"{name} {' and '.join(map(str, v)) or '(no version)'}" for name, v in versions)
        print(f"serving {served} on {server.address}{rest}", flush=True)
        while not server.stopping.wait(1):
            pass  # Python calls the handler in this thread, which a signal at another thread does not wake
        log.info("stopping: waiting for running requests")
    if server.models.loading(0):
        log.error("the process ends while a version is being loaded")
        logging.shutdown()
        os._exit(0)  # TensorFlow would crash in that thread while the interpreter ends


def _log_limit() -> Callable[[logging.LogRecord], bool]:
    """A filter for ten records a second, so that bad requests do not fill the disk."""
    written = deque([-math.inf] * 10, maxlen=10)

    def admits(record: logging.LogRecord) -> bool:
        if record.created < written[0] + 1.0:
            return False
        written.append(record.created)
        return True

    return admits


@contextmanager
def _binding(address: str, option: str) -> Iterator[None]:
    try:
        yield
    except (OSError, OverflowError, RuntimeError) as error:
        problem = f"cannot listen on {address}: the port is in use or not allowed"
        raise InputError(f"{problem}; give another {option}, or 0") from error
