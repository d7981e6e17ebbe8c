"""The limits of the embedded server, and the config files of TensorFlow Serving; read without importing TensorFlow.

``ModelServerConfig`` comes with ``tensorflow-serving-api``. ``SSLConfig`` does not, so its fields are declared here.
"""

import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf import proto_builder, text_format
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig

from q2s_tf.errors import InputError

_SSL_FIELDS = dict.fromkeys(("server_key", "server_cert", "custom_ca"), FieldDescriptorProto.TYPE_STRING)
_SSL_FIELDS["client_verify"] = FieldDescriptorProto.TYPE_BOOL
_SSLConfig: Any = proto_builder.MakeSimpleProtoClass(_SSL_FIELDS, "tensorflow.serving.SSLConfig")


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


def read_model_configs(path: Path) -> list[ModelConfig]:
    """The models of a ``--model_config_file``.

    Raises:
        InputError: The file cannot be read or lists no model; or a model has no name, the name of another model, a
            ``base_path`` that is not a folder, another platform than ``tensorflow``, or a ``specific`` policy without
            versions.
    """
    models = list(_parse(path, ModelServerConfig).model_config_list.config)
    if not models:
        raise InputError(f"{path} must be a model_config_list with at least one config; add one")
    names = [model.name for model in models]
    for model in models:
        name, policy = f'model "{model.name}" of {path}', model.model_version_policy
        if not model.name:
            raise InputError(f"name of {name} is empty; every model needs one")
        if names.count(model.name) > 1:
            raise InputError(f"{name} is listed {names.count(model.name)} times; list every model once")
        if model.model_platform != "tensorflow":
            raise InputError(f'model_platform of {name} must be "tensorflow", got "{model.model_platform}"')
        if not model.base_path or not Path(model.base_path).is_dir():
            problem = f'base_path of {name} must be a local folder, got "{model.base_path}"'
            raise InputError(f"{problem}; mount the exports there, or change the path")
        if policy.HasField("specific") and not policy.specific.versions:
            raise InputError(f"the specific policy of {name} lists no versions; add some")
    return models


def select_versions(model: ModelConfig, versions: Iterable[int]) -> tuple[list[int], int]:
    """Applies the ``model_version_policy`` of a model to the versions on disk.

    Returns:
        The versions that the policy allows, newest first, and how many of them to serve. Without a policy: one.
    """
    policy = model.model_version_policy
    newest_first = sorted(versions, reverse=True)
    if policy.HasField("specific"):
        newest_first = [version for version in newest_first if version in policy.specific.versions]
    count = len(newest_first) if policy.HasField("specific") or policy.HasField("all") else policy.latest.num_versions
    return newest_first, count or 1


def read_server_credentials(path: Path) -> grpc.ServerCredentials:
    """The server's key and certificate from an ``--ssl_config_file``, whose values are PEM text, not file names.

    With ``client_verify`` a client must present a certificate that ``custom_ca`` signed (mutual TLS).

    Raises:
        InputError: The file cannot be read, the key, the certificate or, with ``client_verify``, ``custom_ca`` is
            missing, or they do not belong together.
    """
    config = _parse(path, _SSLConfig)
    for name in ("server_key", "server_cert", *(["custom_ca"] if config.client_verify else [])):
        if not getattr(config, name):
            raise InputError(f"{name} of {path} is empty; give it as PEM text")
    key, certificate, authority = config.server_key.encode(), config.server_cert.encode(), config.custom_ca.encode()
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
            rule = "must be PEM, and the key that of the certificate"
            raise InputError(f"the key and the certificates of {path} {rule}: {error}") from error
    return grpc.ssl_server_credentials([(key, certificate)], authority or None, config.client_verify)


def _parse(path: Path, message_class: Any) -> Any:
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), message_class())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a text-format {message_class.DESCRIPTOR.full_name}: {error}") from error
