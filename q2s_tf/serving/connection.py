"""gRPC channels to a server: credentials, retries and limits. Imports no TensorFlow, so that it is quick."""

from importlib import resources
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from q2s_tf.errors import InputError

MAX_MESSAGE_BYTES = 64 << 20


def connect(target: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """Make a channel to ``target`` (``host:port``), which connects at the first request; encrypted with credentials.

    If the host has several addresses (``dns:///name:8500`` of a headless Kubernetes service), requests go to them in
    turn. A request is sent at most four times, and again only if the server was UNAVAILABLE. The waits in between
    (about 0.1, 0.2 and 0.4 s) count towards its deadline.
    """
    options = [
        ("grpc.service_config", resources.files(__package__).joinpath("grpc_service_config.json").read_text()),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # By default, gRPC does not repeat a request of more than 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
    ]
    if credentials is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, credentials, options=options)


def check_reachable(target: str, timeout_seconds: float, credentials: grpc.ChannelCredentials | None = None) -> None:
    """Raise `InputError` if no server answers at ``target``, without the seconds that the imports of a client take."""
    with connect(target, credentials) as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return  # it answered; TensorFlow Serving has the health service only with an option
            if credentials is not None:
                raise InputError(f"no server answers over TLS at {target}: {error.details()}") from error
            raise InputError(
                f"no server answers at {target}; start one with: q2s serve --models saved_models, "
                "or give --tls-ca if it answers over TLS only"
            ) from error


def read_credentials(
    ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> grpc.ChannelCredentials:
    """Read credentials for TLS, or for mutual TLS, from PEM files.

    Args:
        ca: Certificate of the authority that signed the server's certificate; None for gRPC's own list.
        certificate: The client's certificate, for a server that verifies its clients.
        key: The client's private key, with ``certificate``.

    Raises:
        InputError: ``certificate`` or ``key`` is given alone, or a file cannot be read or is not a PEM file.
    """
    if (certificate is None) != (key is None):
        raise InputError("a client's certificate and key go together; give both, or neither if the server needs none")
    contents = []
    for path in (ca, key, certificate):
        try:
            content = path.read_bytes() if path else None
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}; give a PEM file") from error
        if content is not None and b"-----BEGIN " not in content:
            raise InputError(f"{path} must be a PEM file, and no line of it begins with -----BEGIN; give another")
        contents.append(content)
    return grpc.ssl_channel_credentials(*contents)
