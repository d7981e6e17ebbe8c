"""The limits of the embedded server, and the config files of TensorFlow Serving; read without importing TensorFlow.

``ModelServerConfig`` comes with ``tensorflow-serving-api``. ``SSLConfig`` and ``MonitoringConfig`` do not, so they are
declared here as tensorflow/serving publishes them (``tensorflow_serving/config/*.proto``).
"""

import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf import message_factory, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig

from q2s_tf.errors import InputError

METRICS_PATH = "/monitoring/prometheus/metrics"

_CONFIG_PROTO = """
    name: "q2s_tf/server_config.proto" package: "tensorflow.serving" syntax: "proto3"
    message_type { name: "SSLConfig"
        field { name: "server_key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
        field { name: "server_cert" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL }
        field { name: "custom_ca" number: 3 type: TYPE_STRING label: LABEL_OPTIONAL }
        field { name: "client_verify" number: 4 type: TYPE_BOOL label: LABEL_OPTIONAL } }
    message_type { name: "PrometheusConfig"
        field { name: "enable" number: 1 type: TYPE_BOOL label: LABEL_OPTIONAL }
        field { name: "path" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL } }
    message_type { name: "MonitoringConfig"
        field { name: "prometheus_config" number: 1 type: TYPE_MESSAGE label: LABEL_OPTIONAL
                type_name: ".tensorflow.serving.PrometheusConfig" } }
"""
_MESSAGES: dict[str, Any] = message_factory.GetMessages([text_format.Parse(_CONFIG_PROTO, FileDescriptorProto())])


class RequestLimits(NamedTuple):
    """A request that exceeds one of these limits is refused before its graph runs.

    Attributes:
        max_request_bytes: The largest request that is read, and the largest tensor that it may expand to.
        max_rows: The largest batch.
        max_results: The largest product of rows and ``k``.
        max_seconds: The longest time that a request may wait to run. A graph that runs is not interrupted.
        receive_seconds: The longest time for the headers, and for the body or the message, of a request to arrive.
    """

    max_request_bytes: int = 4 << 20
    max_rows: int = 4096
    max_results: int = 100_000
    max_seconds: float = 10.0
    receive_seconds: float = 5.0


DEFAULT_LIMITS = RequestLimits()


def read_model_configs(path: Path) -> list[ModelConfig]:
    """The models of a ``--model_config_file``.

    Raises:
        InputError: The file cannot be read, `check_model_configs` refuses it, or a ``base_path`` is not a folder.
    """
    configs = check_model_configs(_parse(path, ModelServerConfig))
    for config in configs:
        if not Path(config.base_path).is_dir():
            problem = f"its base_path {config.base_path} is not a folder; mount the exports there, or change the path"
            raise InputError(f'model "{config.name}" of {path}: {problem}')
    return configs


def check_model_configs(config: ModelServerConfig, below: Path | None = None) -> list[ModelConfig]:
    """The models of a config, if this server supports all of it and their folders are ``below`` another.

    Raises:
        InputError: The config has no model; or a model has no name, the name of another model, no ``base_path`` or one
            elsewhere, another platform than ``tensorflow``, or a ``specific`` policy without versions.
    """
    if config.WhichOneof("config") != "model_config_list" or not config.model_config_list.config:
        raise InputError("a model config must be a model_config_list with at least one config; add one")
    configs = list(config.model_config_list.config)
    names = [model.name for model in configs]
    for model in configs:
        name = f'model "{model.name}"'
        for field in ("name", "base_path"):
            if not getattr(model, field):
                raise InputError(f"{field} of {name} is empty; every model needs a name and a base_path")
        platform = model.model_platform or ("tensorflow" if model.model_type == 1 else "")
        if platform != "tensorflow":
            raise InputError(f'model_platform of {name} must be "tensorflow", got "{platform}"')
        if "://" in model.base_path:
            raise InputError(f"base_path of {name} must be a local folder, got {model.base_path}")
        if below is not None and not Path(model.base_path).resolve().is_relative_to(below.resolve()):
            raise InputError(f"base_path of {name} must be below {below}, got {model.base_path}")
        policy = model.model_version_policy
        if policy.WhichOneof("policy_choice") == "specific" and not policy.specific.versions:
            raise InputError(f"the specific policy of {name} lists no versions; add some")
        if names.count(model.name) > 1:
            raise InputError(f"{name} is listed {names.count(model.name)} times; list every model once")
    return configs


def select_versions(model: ModelConfig, versions: Iterable[int]) -> tuple[list[int], int]:
    """Applies the ``model_version_policy`` of a model to the versions on disk.

    Returns:
        The versions that the policy allows, newest first, and how many of them to serve. Without a policy: one.
    """
    policy = model.model_version_policy
    newest_first = sorted(versions, reverse=True)
    if policy.WhichOneof("policy_choice") == "all":
        return newest_first, len(newest_first)
    if policy.WhichOneof("policy_choice") == "specific":
        listed = [version for version in newest_first if version in policy.specific.versions]
        return listed, len(listed)
    return newest_first, policy.latest.num_versions or 1


def read_metrics_path(path: Path) -> str | None:
    """The URL path of the metrics in a ``--monitoring_config_file``, by default `METRICS_PATH`; None if disabled.

    Raises:
        InputError: The file cannot be read, or the path does not begin with a slash.
    """
    config = _parse(path, _MESSAGES["tensorflow.serving.MonitoringConfig"]).prometheus_config
    metrics_path = config.path or METRICS_PATH
    if not metrics_path.startswith("/"):
        raise InputError(f"prometheus_config.path of {path} must begin with /, got {metrics_path}")
    return metrics_path if config.enable else None


def read_server_credentials(path: Path) -> grpc.ServerCredentials:
    """The server's key and certificate from an ``--ssl_config_file``, whose values are PEM text, not file names.

    With ``client_verify`` a client must present a certificate that ``custom_ca`` signed (mutual TLS).

    Raises:
        InputError: The file cannot be read, the key or the certificate is missing, they do not belong together, or
            ``client_verify`` is set without ``custom_ca``.
    """
    config = _parse(path, _MESSAGES["tensorflow.serving.SSLConfig"])
    for name in ("server_key", "server_cert"):
        if not getattr(config, name):
            raise InputError(f"{name} of {path} is empty; give it as PEM text")
    if config.client_verify and not config.custom_ca:
        raise InputError(
            f"client_verify of {path} needs custom_ca, the PEM certificate of the authority that signs the clients'"
        )
    key, certificate, authority = (v.encode() for v in (config.server_key, config.server_cert, config.custom_ca))
    # OpenSSL reports what is wrong with them; gRPC would only report that it cannot listen.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:  # OpenSSL reads files; only the owner can read this one
        file.write(certificate + b"\n" + key)
        file.flush()
        try:
            context.load_cert_chain(file.name, password="")
            if authority:
                context.load_verify_locations(cadata=config.custom_ca)
        except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
            raise InputError(
                f"the key and the certificates of {path} must be PEM, and the key that of the certificate: {error}"
            ) from error
    return grpc.ssl_server_credentials([(key, certificate)], authority or None, config.client_verify)


def _parse(path: Path, message_class: Any) -> Any:
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), message_class())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a text-format {message_class.DESCRIPTOR.full_name}: {error}") from error
