"""The config files that TensorFlow Serving takes, in its own text format; read without TensorFlow.

``ModelServerConfig`` comes with ``tensorflow-serving-api``; ``SSLConfig`` and ``MonitoringConfig`` do not, and are
declared here as tensorflow/serving publishes them (``tensorflow_serving/config/*.proto``).

Differences from TensorFlow Serving: a relative ``base_path`` is taken from the working directory (there it is refused),
one on a remote file system is refused, and so is a ``specific`` policy without versions. ``logging_config`` is ignored.
"""

import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig

from q2s_tf.errors import InputError

METRICS_PATH = "/monitoring/prometheus/metrics"

AnyMessage = TypeVar("AnyMessage", bound=Message)

_Field = descriptor_pb2.FieldDescriptorProto


def read_model_configs(path: Path) -> list[ModelConfig]:
    """The models of a ``--model_config_file``.

    Raises:
        InputError: The file cannot be read, or `check_model_configs` refuses it, or one of its folders is not there.
    """
    configs = check_model_configs(_parse(path, ModelServerConfig()))
    for config in configs:
        if not Path(config.base_path).is_dir():
            raise InputError(
                f'model "{config.name}" of {path}: its base_path {config.base_path} is no folder; '
                "mount the exports there, or change the path"
            )
    return configs


def check_model_configs(config: ModelServerConfig) -> list[ModelConfig]:
    """The models of a config that this server can serve as it says.

    Raises:
        InputError: It has no model, one without name or base_path or with those of another, one of another platform
            than ``tensorflow`` or on a remote file system, or a ``specific`` policy without versions.
    """
    if config.WhichOneof("config") != "model_config_list" or not config.model_config_list.config:
        raise InputError("a model config must be a model_config_list with at least one config; add one")
    configs = list(config.model_config_list.config)
    for model in configs:
        _check(model)
    names = [model.name for model in configs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f'model "{name}" is there {names.count(name)} times; name every model once')
    return configs


def wanted_versions(model: ModelConfig, versions: Iterable[int]) -> tuple[list[int], int]:
    """What the ``model_version_policy`` of a model says of the versions on disk.

    Returns:
        The versions it allows, newest first, and how many of them are to be served. Without a policy: the newest one.
    """
    policy = model.model_version_policy
    newest_first = sorted(versions, reverse=True)
    if policy.WhichOneof("policy_choice") == "all":
        return newest_first, len(newest_first)
    if policy.WhichOneof("policy_choice") == "specific":
        named = [version for version in newest_first if version in policy.specific.versions]
        return named, len(named)
    return newest_first, policy.latest.num_versions or 1


def read_metrics_path(path: Path) -> str | None:
    """Where a ``--monitoring_config_file`` wants the metrics, `METRICS_PATH` if it does not say; None for nowhere.

    Raises:
        InputError: The file cannot be read, or the path does not begin with a slash.
    """
    config: Any = _parse(path, _monitoring_config()())
    where = config.prometheus_config.path or METRICS_PATH
    if not where.startswith("/"):
        raise InputError(f"prometheus_config.path of {path} must begin with /, got {where}")
    return where if config.prometheus_config.enable else None


def read_server_credentials(path: Path) -> grpc.ServerCredentials:
    """The server's key and certificate from an ``--ssl_config_file``, whose values are PEM text, not file names.

    With ``client_verify`` a client must show a certificate that ``custom_ca`` signed (mutual TLS).

    Raises:
        InputError: The file cannot be read, key and certificate are missing or do not belong together, or there is no
            ``custom_ca`` to verify clients with.
    """
    config: Any = _parse(path, _ssl_config()())
    for name in ("server_key", "server_cert"):
        if not getattr(config, name):
            raise InputError(f"{name} of {path} is empty; give it as PEM text")
    if config.client_verify and not config.custom_ca:
        raise InputError(
            f"client_verify of {path} needs custom_ca, the PEM text of who signs the clients' certificates"
        )
    key, certificate, authority = (v.encode() for v in (config.server_key, config.server_cert, config.custom_ca))
    _check_pair(path, key, certificate, authority)
    return grpc.ssl_server_credentials([(key, certificate)], authority or None, config.client_verify)


def _check_pair(path: Path, key: bytes, certificate: bytes, authority: bytes) -> None:
    """Has OpenSSL read them: of all that can be wrong with them, gRPC would only say that it cannot listen."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as both:  # OpenSSL reads files; this one is readable by its owner only
        both.write(certificate + b"\n" + key)
        both.flush()
        try:
            context.load_cert_chain(both.name, password="")
            if authority:
                context.load_verify_locations(cadata=authority.decode())
        except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
            raise InputError(
                f"the key and the certificates of {path} must be PEM, and the key the certificate's own: {error}"
            ) from error


def _check(model: ModelConfig) -> None:
    for field in ("name", "base_path"):
        if not getattr(model, field):
            raise InputError(f'{field} of model "{model.name}" is empty; every model needs a name and a base_path')
    platform = model.model_platform or ("tensorflow" if model.model_type == 1 else "")
    if platform != "tensorflow":
        raise InputError(f'model_platform of model "{model.name}" must be "tensorflow", got "{platform}"')
    if "://" in model.base_path:
        raise InputError(f'base_path of model "{model.name}" must be a folder of this machine, got {model.base_path}')
    policy = model.model_version_policy
    if policy.WhichOneof("policy_choice") == "specific" and not policy.specific.versions:
        raise InputError(f'the specific policy of model "{model.name}" names no versions; add some')


def _parse(path: Path, message: AnyMessage) -> AnyMessage:
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), message)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no text-format {message.DESCRIPTOR.full_name}: {error}") from error


def _ssl_config() -> type[Message]:
    text = _Field.TYPE_STRING
    fields = {"server_key": text, "server_cert": text, "custom_ca": text, "client_verify": _Field.TYPE_BOOL}
    return _message_classes({"SSLConfig": fields})["SSLConfig"]


def _monitoring_config() -> type[Message]:
    classes = _message_classes(
        {
            "PrometheusConfig": {"enable": _Field.TYPE_BOOL, "path": _Field.TYPE_STRING},
            "MonitoringConfig": {"prometheus_config": ".tensorflow.serving.PrometheusConfig"},
        }
    )
    return classes["MonitoringConfig"]


def _message_classes(messages: dict[str, dict[str, Any]]) -> dict[str, type[Message]]:
    """Classes of proto3 messages: fields, numbered from 1, by name with their scalar type or the name of a message."""
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="tensorflow.serving", syntax="proto3")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), start=1):
            declared = message.field.add(name=field, number=number, label=_Field.LABEL_OPTIONAL)
            if isinstance(kind, str):
                declared.type, declared.type_name = _Field.TYPE_MESSAGE, kind
            else:
                declared.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))
        for name in messages
    }
