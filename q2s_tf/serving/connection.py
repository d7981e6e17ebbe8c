"""The way to a server: credentials, retries and limits of a gRPC channel. Without TensorFlow, so that it is quick."""

import json
from pathlib import Path

import grpc

from q2s_tf.errors import InputError

MAX_MESSAGE_BYTES = 64 << 20
MAX_ATTEMPTS = 4
_SERVICE_CONFIG = {
    # In turn, where a name stands for several servers: dns:///name:8500 of a headless Kubernetes service.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [
                {"service": "tensorflow.serving.PredictionService"},
                {"service": "tensorflow.serving.ModelService"},
            ],
            "retryPolicy": {
                "maxAttempts": MAX_ATTEMPTS,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}


def connect(target: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """A channel to ``target`` (``host:port``), connected at the first request; encrypted if there are credentials.

    Where the host has several addresses, requests go to them in turn.

    A request is sent at most `MAX_ATTEMPTS` times, and again only if the server was UNAVAILABLE; the waits between
    (about 0.1, 0.2 and 0.4 s) are part of its deadline.
    """
    options = [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # gRPC keeps what it may have to send again, by default no more than 256 KiB of it.
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
    ]
    if credentials is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, credentials, options=options)


def read_credentials(
    ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> grpc.ChannelCredentials:
    """Credentials for TLS, or for mutual TLS, from PEM files.

    Args:
        ca: Who signed the server's certificate; None for the authorities that gRPC knows.
        certificate: The client's own, for a server that verifies its clients.
        key: The client's private key, with ``certificate``.

    Raises:
        InputError: ``certificate`` or ``key`` came alone, or a file cannot be read or is no PEM file.
    """
    if (certificate is None) != (key is None):
        raise InputError("a client's certificate and key go together; give both, or neither where the server asks none")
    return grpc.ssl_channel_credentials(*(_read_pem(path) for path in (ca, key, certificate)))


def _read_pem(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give a PEM file") from error
    if b"-----BEGIN " not in content:
        raise InputError(f"{path} must be a PEM file, and it has no line that begins with -----BEGIN; give another")
    return content
