"""The deployment files, compared with TensorFlow Serving's messages, flags and routes, and with the tools."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from tensorflow_serving.config import model_server_config_pb2

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "serving_config"
SERVABLES = ["document_tower", "query_tower", "retriever"]
# The flags of tensorflow_model_server, from tensorflow_serving/model_servers/main.cc of github.com/tensorflow/serving
# at 2.20.0. That server ignores an unknown flag, so a misspelt one would not be noticed.
FLAGS = """
allow_version_labels_for_unavailable_models batching_parameters_file enable_batching
enable_grpc_healthcheck_service enable_model_warmup enable_per_model_batching_parameters enable_profiler
enable_serialization_as_tensor_content enable_signature_method_name_check file_system_poll_wait_seconds
flush_filesystem_caches grpc_channel_arguments grpc_max_threads grpc_socket_path load_retry_interval_micros
max_num_load_retries mixed_precision model_base_path model_config_file model_config_file_poll_wait_seconds
model_name monitoring_config_file num_load_threads num_request_iterations_for_warmup
num_tflite_interpreters_per_pool num_tflite_pools num_unload_threads per_process_gpu_memory_fraction
platform_config_file port prefer_tflite_model remove_unused_fields_from_bundle_metagraph
rest_api_enable_cors_support rest_api_num_threads rest_api_port rest_api_timeout_in_ms saved_model_tags
skip_initialize_tpu ssl_config_file tensorflow_inter_op_parallelism tensorflow_intra_op_parallelism
tensorflow_session_config_file tensorflow_session_parallelism thread_pool_factory_config_file
use_alts_credentials version xla_cpu_compilation_enabled xla_gpu_compilation_enabled
"""
# Its metrics by model, from tensorflow_serving/servables/tensorflow/util.cc; the Prometheus route replaces / by :.
METRICS = {
    ":tensorflow:serving:request_latency": {"model_name", "API", "entrypoint", "le"},
    ":tensorflow:serving:request_count": {"model_name", "status"},
    # Of cc/saved_model/metrics.cc of TensorFlow and warmup of tensorflow_serving/servables/tensorflow/util.cc.
    ":tensorflow:cc:saved_model:load_attempt": {"model_path", "status"},
    ":tensorflow:serving:model_warmup_latency": {"model_path", "status"},
}
# kPathRegex of http_rest_api_util.cc for GET.
STATUS_ROUTE = r"/v1/models(?:/([^/:]+))?(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?(?:\/(metadata))?"


def models_of(name: str, servables: list[str] = SERVABLES) -> dict[str, Any]:
    config = text_format.Parse((FOLDER / name).read_text(), model_server_config_pb2.ModelServerConfig())
    models = {model.name: model for model in config.model_config_list.config}
    assert sorted(models) == servables
    for model in models.values():
        assert (model.base_path, model.model_platform) == (f"/models/{model.name}", "tensorflow")
    return models


def test_the_newest_version_of_every_servable_is_served() -> None:
    for model in models_of("models.config").values():
        assert model.model_version_policy.latest.num_versions == 1 and not model.version_labels


def test_the_query_tower_alone_is_served_in_front_of_milvus() -> None:
    (model,) = models_of("models.query_tower.config", ["query_tower"]).values()
    assert model.model_version_policy.latest.num_versions == 2
    objects = {
        item["kind"]: item
        for file in (FOLDER / "kubernetes/milvus").glob("*.yaml")
        for item in yaml.safe_load_all(file.read_text())
    }
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    deployment, *_ = yaml.safe_load_all((FOLDER / "kubernetes/serving.yaml").read_text())
    (whole,) = deployment["spec"]["template"]["spec"]["containers"]
    for key in ("image", "command", "ports", "volumeMounts", "livenessProbe", "lifecycle", "securityContext"):
        assert container[key] == whole[key]
    for probe in ("startupProbe", "readinessProbe"):
        assert_fails_without_a_version(container[probe]["httpGet"]["path"])
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels.items() >= objects["Service"]["spec"]["selector"].items()
    assert objects["Milvus"]["spec"]["mode"] == "cluster"


def test_labels_name_loaded_versions() -> None:
    for model in models_of("models.canary.config").values():
        assert set(model.version_labels) == {"stable", "canary"}
        assert set(model.version_labels.values()) == set(model.model_version_policy.specific.versions)


def message_class(package_file: str, messages: dict[str, dict[str, Any]]) -> Any:
    """The last message of a .proto file of tensorflow_serving/config that the Python package does not have."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=package_file, package="tensorflow.serving", syntax="proto3")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for number, (key, kind) in enumerate(fields.items(), start=1):
            added = message.field.add(name=key, number=number, label=field.LABEL_OPTIONAL)
            if isinstance(kind, str):
                added.type, added.type_name = field.TYPE_MESSAGE, f".tensorflow.serving.{kind}"
            else:
                added.type = {bool: field.TYPE_BOOL, bytes: field.TYPE_STRING}[kind]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))


SSL_CONFIG = {"SSLConfig": {"server_key": bytes, "server_cert": bytes, "custom_ca": bytes, "client_verify": bool}}
MONITORING_CONFIG = {
    "PrometheusConfig": {"enable": bool, "path": bytes},
    "MonitoringConfig": {"prometheus_config": "PrometheusConfig"},
}


def test_the_monitoring_config_enables_prometheus() -> None:
    message = message_class("monitoring_config.proto", MONITORING_CONFIG)()
    config = text_format.Parse((FOLDER / "monitoring.config").read_text(), message)
    assert config.prometheus_config.enable
    assert config.prometheus_config.path == "/monitoring/prometheus/metrics"


def test_the_tls_example_is_complete() -> None:
    config = text_format.Parse((FOLDER / "ssl.config.example").read_text(), message_class("ssl.proto", SSL_CONFIG)())
    for part, kind in (("server_key", "PRIVATE KEY"), ("server_cert", "CERTIFICATE"), ("custom_ca", "CERTIFICATE")):
        first, *_, last = getattr(config, part).splitlines()
        assert (first, last) == (f"-----BEGIN {kind}-----", f"-----END {kind}-----")
    assert config.client_verify


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_the_script_creates_valid_certificates(tmp_path: Path) -> None:
    script = str(FOLDER / "make_test_certificates.sh")
    subprocess.run([script, "keys", "q2s.example"], check=True, capture_output=True, cwd=tmp_path, timeout=60)
    keys = tmp_path / "keys"
    config = text_format.Parse((keys / "ssl.config").read_text(), message_class("ssl.proto", SSL_CONFIG)())
    assert config.client_verify
    for part, file in (("server_key", "server.key"), ("server_cert", "server.pem"), ("custom_ca", "ca.pem")):
        assert getattr(config, part) == (keys / file).read_text()
    verify = ["openssl", "verify", "-CAfile", "ca.pem", "-verify_hostname", "q2s.example", "server.pem", "client.pem"]
    subprocess.run(verify, check=True, capture_output=True, cwd=keys, timeout=60)
    assert {path.stat().st_mode & 0o077 for path in keys.iterdir()} == {0}


@pytest.fixture
def started(tmp_path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The flags and the environment of the server when serve.sh is run in another folder."""
    server = tmp_path / "tensorflow_model_server"
    server.write_text('#!/bin/sh\nenv > "$OUT.env"\nprintf "%s\\n" "$@" > "$OUT.flags"\n')
    server.chmod(0o755)
    out = tmp_path / "out"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(out)}
    command = [str(FOLDER / "serve.sh"), "--grpc_max_threads=3"]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=30)
    flags = dict(line.removeprefix("--").split("=", 1) for line in out.with_suffix(".flags").read_text().splitlines())
    return flags, dict(line.split("=", 1) for line in out.with_suffix(".env").read_text().splitlines())


def test_the_script_starts_the_server_for_a_small_model(started: tuple[dict[str, str], dict[str, str]]) -> None:
    flags, environment = started
    assert (flags["tensorflow_intra_op_parallelism"], flags["tensorflow_inter_op_parallelism"]) == ("1", "-1")
    assert (flags["enable_batching"], flags["enable_model_warmup"]) == ("false", "true")
    assert environment["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert flags["grpc_max_threads"] == "3"  # from the command line
    for name in ("model_config_file", "monitoring_config_file"):
        assert Path(flags[name]).parent == FOLDER and Path(flags[name]).is_file()


def test_a_corrupt_version_does_not_block_other_loads(started: tuple[dict[str, str], dict[str, str]]) -> None:
    flags, _ = started
    assert int(flags["num_load_threads"]) > 1 and flags["max_num_load_retries"] == "1"
    assert int(flags["load_retry_interval_micros"]) <= 1_000_000


def test_the_proxy_forwards_only_what_clients_need() -> None:
    text = (FOLDER / "nginx.conf").read_text()
    methods = re.findall(r"location = /(\S+) \{ grpc_pass grpc_server; \}", text)
    assert methods == [
        "tensorflow.serving.PredictionService/Predict",
        "tensorflow.serving.PredictionService/GetModelMetadata",
        "tensorflow.serving.ModelService/GetModelStatus",
        "grpc.health.v1.Health/Check",
    ]
    for setting in ("client_max_body_size 64k;", "client_header_timeout 5s;", "client_body_timeout 5s;"):
        assert setting in text
    assert {"127.0.0.1:8500", "127.0.0.1:8501"} == set(re.findall(r"server (\S+:\d+);", text))  # the ports of serve.sh


def test_labels_work_from_the_start_and_can_be_moved(
    started: tuple[dict[str, str], dict[str, str]],
) -> None:
    assert started[0]["allow_version_labels_for_unavailable_models"] == "true"
    assert int(started[0]["model_config_file_poll_wait_seconds"]) > 0


def test_all_flags_are_flags_of_the_server(started: tuple[dict[str, str], dict[str, str]]) -> None:
    pages = [FOLDER / "README.md", FOLDER / "serve.sh", FOLDER / "ssl.config.example", ROOT / "docs" / "operating.md"]
    named = {flag for page in pages for flag in re.findall(r"--([a-z]+(?:_[a-z]+)+)", page.read_text())}
    assert {"ssl_config_file", "model_config_file"} <= named
    assert set(started[0]) | named <= set(FLAGS.split())


# --- containers


def test_compose_mounts_the_exports_read_only_into_the_stock_image() -> None:
    service = yaml.safe_load((FOLDER / "docker-compose.yml").read_text())["services"]["serving"]
    mounts = dict(reversed(volume.removesuffix(":ro").split(":")) for volume in service["volumes"])
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    assert (FOLDER / mounts["/models"]).resolve() == ROOT / "saved_models"
    (script,) = service["entrypoint"]
    assert (FOLDER / mounts["/serving_config"] / Path(script).name).resolve() == FOLDER / "serve.sh"
    assert service["image"] == stock_image()
    (route,) = re.findall(r"GET (\S+) HTTP", " ".join(service["healthcheck"]["test"]))
    assert_fails_without_a_version(route)


def assert_fails_without_a_version(route: str) -> None:
    """The status route is 200 also if no version is served; that of the metadata is 404 then."""
    match = re.fullmatch(STATUS_ROUTE, route)
    assert match and match[4] == "metadata"


def stock_image() -> str:
    """The image for the TensorFlow version of the exports."""
    (version,) = re.findall(r"^tensorflow==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return f"tensorflow/serving:{version}"


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    """The Kubernetes objects by kind."""
    files = sorted((FOLDER / "kubernetes").glob("*.yaml"))
    return {item["kind"]: item for file in files for item in yaml.safe_load_all(file.read_text())}


def test_pods_mount_the_config_and_the_models_for_the_script(
    objects: dict[str, dict[str, Any]],
) -> None:
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == {"/models", "/serving_config"} and all(mount["readOnly"] for mount in mounts.values())
    assert container["command"] == ["sh", "/serving_config/serve.sh"] and container["image"] == stock_image()
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claim = volumes[mounts["/models"]["name"]]["persistentVolumeClaim"]["claimName"]
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]
    config = volumes[mounts["/serving_config"]["name"]]["configMap"]["name"]
    (command,) = re.findall(r"kubectl create configmap .*", (FOLDER / "kubernetes" / "serving.yaml").read_text())
    assert config in command.split()
    files = set(re.findall(r"--from-file=(\S+)", command))
    assert files == {"models.config", "monitoring.config", "serve.sh"} and all(
        (FOLDER / name).exists() for name in files
    )


def test_a_pod_is_ready_when_its_models_are(objects: dict[str, dict[str, Any]]) -> None:
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    for probe in ("startupProbe", "readinessProbe"):
        get = container[probe]["httpGet"]
        assert get["port"] == "rest"
        assert_fails_without_a_version(get["path"])
    assert container["livenessProbe"]["tcpSocket"]["port"] == "grpc"
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}


def test_a_rollout_keeps_replicas_until_the_next_is_ready(objects: dict[str, dict[str, Any]]) -> None:
    deployment = objects["Deployment"]["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    grace = deployment["template"]["spec"]["terminationGracePeriodSeconds"]
    (container,) = deployment["template"]["spec"]["containers"]
    assert int(container["lifecycle"]["preStop"]["exec"]["command"][1]) < grace
    assert objects["PodDisruptionBudget"]["spec"]["minAvailable"] < deployment["replicas"]


def test_objects_refer_to_each_other(objects: dict[str, dict[str, Any]]) -> None:
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    scaled = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("Deployment", objects["Deployment"]["metadata"]["name"])


def test_the_scann_image_has_the_version_of_the_stock_image() -> None:
    lines = (FOLDER / "Dockerfile.scann").read_text().splitlines()
    (version,) = [line.removeprefix("ARG SERVING=") for line in lines if line.startswith("ARG SERVING=")]
    assert f"tensorflow/serving:{version}" == stock_image()
    stages = [line for line in lines if line.startswith("FROM ")]
    assert stages == ["FROM tensorflow/serving:${SERVING}-devel AS build", "FROM tensorflow/serving:${SERVING}"]


# --- metrics and commands


def test_alerts_use_existing_metrics() -> None:
    from q2s_tf.server import server_metrics as metrics

    known = {**METRICS, **{name: set() for name in re.findall(r"`(q2s_[a-z_]+)`", metrics.__doc__ or "")}}
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    assert sorted({rule["alert"] for group in groups for rule in group["rules"]}) == [
        "RetrieverFails", "RetrieverSlow", "VersionRefused",
    ]  # fmt: skip
    for expression in (rule["expr"] for group in groups for rule in group["rules"]):
        used = re.findall(r"(:tensorflow:[a-z_:]+|q2s_[a-z_]+)(?:\{([^}]*)\})?", expression)
        assert used
        for series, labels in used:
            name = series if series in known else re.sub("_(bucket|count)$", "", series)
            assert name in known, series
            if name in METRICS:
                assert {re.split("[=!]", label)[0].strip() for label in labels.split(",")} <= METRICS[name]
                assert "latency_bucket" not in series or 'API=~"[Pp]redict"' in labels  # not the probes


def commands(page: str) -> list[tuple[str, set[str]]]:
    """The tools in the code of a page, with the options of each call."""
    code = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).replace("\\\n", " ")
    calls = re.findall(r"^(?:python )?tools/(\w+\.py)([^#&|\n]*)", code, re.MULTILINE)
    return [(tool, set(re.findall(r"--[a-z][a-z-]*", arguments))) for tool, arguments in calls]


def test_all_options_in_the_documentation_exist() -> None:
    options: dict[str, set[str]] = {}
    for page in (ROOT / "docs" / "operating.md", ROOT / "docs" / "scaling.md", FOLDER / "README.md"):
        for tool, used in commands(page.read_text()):
            options.setdefault(tool, set()).update(used)
    assert set(options) == {
        "capacity.py", "embed.py", "export.py", "publish.py", "query.py", "serve.py", "update_index.py",
    }  # fmt: skip
    for tool, used in options.items():
        command = [sys.executable, str(ROOT / "tools" / tool), "--help"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        shown = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=60).stdout
        assert used <= set(re.findall(r"--[a-z][a-z-]*", shown)), tool
