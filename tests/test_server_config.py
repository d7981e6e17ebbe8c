"""The config files of TensorFlow Serving, and TLS with real certificates."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import serving_models
from google.protobuf import text_format
from server_process import Process, predict_request, refusal, run
from tensorflow_serving.apis import model_management_pb2, prediction_service_pb2_grpc
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig

from q2s_tf.errors import InputError
from q2s_tf.server.server import Server
from q2s_tf.server.server_config import read_model_configs, read_server_credentials, select_versions

SERVING_CONFIG = Path(__file__).parents[1] / "serving_config"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1, 2 and 4 of a query tower in `tower/`."""
    folder = tmp_path_factory.mktemp("models")
    serving_models.save_query_tower(folder / "tower" / "1")
    for copy in ("2", "4"):
        shutil.copytree(folder / "tower" / "1", folder / "tower" / copy)
    return folder


def config(folder: Path, *models: str) -> str:
    """A model config in text format; each model is `name: further fields`, with the base path `folder/name`."""
    text = ""
    for name, _, rest in (model.partition(":") for model in models):
        text += f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" {rest} }} '
    return f"model_config_list {{ {text}}}"


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    file = tmp_path_factory.mktemp("config") / "models.config"
    labels = 'version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 4 }'
    file.write_text(
        config(folder, f"tower: model_version_policy {{ specific {{ versions: 1 versions: 4 }} }} {labels}")
    )
    process = Process("--model-config-file", str(file))
    yield process
    assert process.stop() == (0, "")


def version(server: Process, model: str = "tower", **spec: object) -> int:
    """The version that answers."""
    request = predict_request(model)
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    return server.prediction.Predict(request).model_spec.version.value


def test_versions_are_selected_by_number_and_by_label(server: Process) -> None:
    assert server.line.startswith("serving tower 1 and 4 on ")
    assert version(server) == 4
    assert [version(server, version=number) for number in (1, 4)] == [1, 4]
    assert [version(server, label=label) for label in ("stable", "canary")] == [1, 4]
    assert refusal(lambda: version(server, version=2)) == (
        "NOT_FOUND",
        'model "tower" has no version 2 loaded; served versions: 1, 4',
    )
    assert refusal(lambda: version(server, label="beta")) == (
        "INVALID_ARGUMENT",
        'model "tower" has no version label "beta"; its labels: canary, stable',
    )


def test_models_cannot_be_reloaded_over_the_network(server: Process) -> None:
    request = model_management_pb2.ReloadConfigRequest()
    assert refusal(lambda: server.models.HandleReloadConfigRequest(request))[0] == "UNIMPLEMENTED"


TENSORFLOW = 'model_platform: "tensorflow"'


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "must be a model_config_list with at least one config"),
        (['base_path: "/"'], 'name of model "" of .* is empty'),
        ([f'name: "a" {TENSORFLOW}'], 'base_path of model "a" of .* must be a local folder, got ""'),
        ([f'name: "a" base_path: "s3://m" {TENSORFLOW}'], 'must be a local folder, got "s3://m"; mount the exports'),
        ([f'name: "a" base_path: "/nowhere" {TENSORFLOW}'], 'must be a local folder, got "/nowhere"'),
        (['name: "a" base_path: "/" model_platform: "torch"'], 'must be "tensorflow", got "torch"'),
        (['name: "a" base_path: "/"'], 'model_platform of model "a" of .* must be "tensorflow", got ""'),
        ([f'name: "a" base_path: "/" {TENSORFLOW}'] * 2, 'model "a" of .* is listed 2 times'),
        (
            [f'name: "a" base_path: "/" {TENSORFLOW} model_version_policy {{ specific {{ }} }}'],
            'the specific policy of model "a" of .* lists no versions',
        ),
    ],
)
def test_a_model_config_that_is_not_supported_is_refused(tmp_path: Path, models: list[str], message: str) -> None:
    file = tmp_path / "models.config"
    file.write_text(f"model_config_list {{ {' '.join(f'config {{ {model} }}' for model in models)} }}")
    with pytest.raises(InputError, match=message):
        read_model_configs(file)


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", [7]),
        ("latest { }", [7]),
        ("latest { num_versions: 2 }", [7, 3]),
        ("latest { num_versions: 9 }", [7, 3, 1]),
        ("all { }", [7, 3, 1]),
        ("specific { versions: 1 versions: 7 versions: 8 }", [7, 1]),
    ],
)
def test_a_policy_selects_versions(policy: str, served: list[int]) -> None:
    model = text_format.Parse(f"model_version_policy {{ {policy} }}" if policy else "", ModelConfig())
    allowed, count = select_versions(model, [3, 7, 1])
    assert allowed[:count] == served


def test_the_config_files_of_serving_config_are_valid(tmp_path: Path) -> None:
    text = (SERVING_CONFIG / "models.config").read_text()
    for name in ("query_tower", "document_tower", "retriever"):
        (tmp_path / name).mkdir()
    file = tmp_path / "models.config"
    file.write_text(text.replace("/models/", f"{tmp_path}/"))
    assert {model.name for model in read_model_configs(file)} == {"query_tower", "document_tower", "retriever"}


def test_bad_config_files_are_one_line_and_exit_status_2(tmp_path: Path) -> None:
    """The errors come before TensorFlow is imported."""
    files = {name: tmp_path / name for name in ("typo", "nowhere", "half")}
    files["typo"].write_text("model_config_list { config { nme: 'a' } }")
    files["nowhere"].write_text(config(tmp_path, "nowhere"))
    files["half"].write_text("server_key: 'key'")
    good = tmp_path / "good"
    (tmp_path / "model" / "1").mkdir(parents=True)
    good.write_text(config(tmp_path, "model"))
    cases = {
        'has no field named "nme"': ["--model-config-file", str(files["typo"])],
        'nowhere"; mount the exports there': ["--model-config-file", str(files["nowhere"])],
        "server_cert of": ["--ssl-config-file", str(files["half"])],
        "No such file": ["--ssl-config-file", str(tmp_path / "absent")],
    }
    for fragment, arguments in cases.items():
        if "--model-config-file" not in arguments:
            arguments = ["--model-config-file", str(good), *arguments]
        status, output, errors = run(*arguments)
        assert (status, output, errors.count("\n")) == (2, "", 1), errors
        assert errors.startswith("error: ") and fragment in errors


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys and certificates: an authority, a server `localhost` and a client signed by it, and an unknown client."""
    folder = tmp_path_factory.mktemp("pem")
    new = "openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    commands = [
        f"{new} -x509 -keyout ca.key -out ca.crt -subj /CN=authority -days 2",
        f"{new} -x509 -keyout unknown.key -out unknown.crt -subj /CN=unknown -days 2",
    ]
    for name in ("server", "client"):
        commands.append(f"{new} -keyout {name}.key -out {name}.csr -subj /CN=localhost")
        commands.append(
            f"openssl x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out {name}.crt "
            "-extfile names"
        )
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    for line in commands:
        subprocess.run(line.split(), cwd=folder, check=True, capture_output=True)
    return {file.name: file.read_text() for file in folder.iterdir()}


def ssl_config(file: Path, **values: object) -> Path:
    """An SSLConfig: PEM text with escaped line ends."""
    lines = [
        f'{key}: "{value.replace(chr(10), chr(92) + "n")}"' if isinstance(value, str) else f"{key}: true"
        for key, value in values.items()
    ]
    file.write_text("\n".join(lines))
    return file


def test_mutual_tls_refuses_unknown_clients(folder: Path, tmp_path: Path, pem: dict[str, str]) -> None:
    file = ssl_config(
        tmp_path / "ssl.config",
        server_key=pem["server.key"],
        server_cert=pem["server.crt"],
        custom_ca=pem["ca.crt"],
        client_verify=True,
    )
    known = grpc.ssl_channel_credentials(*(pem[name].encode() for name in ("ca.crt", "client.key", "client.crt")))
    unknown = {
        "no certificate": grpc.ssl_channel_credentials(pem["ca.crt"].encode()),
        "certificate of another authority": grpc.ssl_channel_credentials(
            *(pem[name].encode() for name in ("ca.crt", "unknown.key", "unknown.crt"))
        ),
        "no TLS": None,
    }
    server = Process("--models", str(folder), "--ssl-config-file", str(file), credentials=known)
    assert version(server) == 4
    for credentials in unknown.values():
        server.channel.close()
        server.connect(credentials)
        assert refusal(lambda: version(server))[0] == "UNAVAILABLE"
    assert server.stop() == (0, "")


def test_tls_without_client_certificates(folder: Path, tmp_path: Path, pem: dict[str, str]) -> None:
    file = ssl_config(tmp_path / "ssl.config", server_key=pem["server.key"], server_cert=pem["server.crt"])
    with Server(folder, port=0, credentials=read_server_credentials(file)) as server:
        address = server.address.replace("127.0.0.1", "localhost")
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(pem["ca.crt"].encode())) as channel:
            response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(predict_request("tower"))
    assert response.model_spec.version.value == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"server_key": "server.key", "server_cert": "unknown.crt"}, "the key that of the certificate: .*MISMATCH"),
        ({"server_key": "names", "server_cert": "server.crt"}, "must be PEM"),
        ({"server_key": "server.key"}, "server_cert of .* is empty"),
        ({"server_key": "server.key", "server_cert": "server.crt", "client_verify": True}, "custom_ca of .* is empty"),
        ({"server_key": "server.key", "server_cert": "server.crt", "custom_ca": "names"}, "must be PEM"),
    ],
)
def test_an_invalid_tls_config_is_refused(
    tmp_path: Path, pem: dict[str, str], values: dict[str, object], message: str
) -> None:
    texts = {key: pem[value] if isinstance(value, str) else value for key, value in values.items()}
    with pytest.raises(InputError, match=message):
        read_server_credentials(ssl_config(tmp_path / "ssl.config", **texts))
