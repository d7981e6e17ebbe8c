"""The HTTP server under the REST routes."""

import socket
import threading

import uvicorn
from starlette.applications import Starlette

from q2s_tf.errors import InputError


class RestServer:
    """An HTTP server in a thread of its own.

    Attributes:
        address: ``host:port`` as bound.
    """

    def __init__(self, host: str, port: int) -> None:
        """Binds the port (0: a free one) at once.

        Raises:
            InputError: It cannot be bound.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # Named, because asyncio turns Nagle's delay off (40 ms a request) only for what says that it is TCP.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host.strip("[]"), port))
        except OSError as error:
            self._socket.close()
            raise InputError(
                f"cannot listen on {host}:{port}: the port is in use or not allowed; give another --rest-port, or 0"
            ) from error
        self.address = f"{host}:{self._socket.getsockname()[1]}"

    def start(self, app: Starlette, grace_seconds: float) -> None:
        """Answers; when it is told to stop, requests under way have ``grace_seconds``."""
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=max(1, round(grace_seconds)),
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="rest-server", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Takes no new request and returns when those under way have been answered or their time is over."""
        self._server.should_exit = True
        self._thread.join()
