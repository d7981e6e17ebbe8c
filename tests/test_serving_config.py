"""What the operator deploys, against TensorFlow Serving's own messages and flags."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from tensorflow_serving.config import model_server_config_pb2

FOLDER = Path(__file__).parents[1] / "serving_config"
SERVABLES = ["document_tower", "query_tower", "retriever"]
# The flags of tensorflow_model_server, from tensorflow_serving/model_servers/main.cc of github.com/tensorflow/serving.
# An unknown flag does not stop that server, so a misspelt one would go unnoticed.
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


def test_the_model_config_names_every_servable_and_its_folder() -> None:
    config = text_format.Parse((FOLDER / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    models = {model.name: model for model in config.model_config_list.config}
    assert sorted(models) == SERVABLES
    for name, model in models.items():
        assert (model.base_path, model.model_platform) == (f"/models/{name}", "tensorflow")
        assert not model.HasField("model_version_policy")  # the default: the newest version


def monitoring_config() -> type:
    """The message of tensorflow_serving/config/monitoring_config.proto, which the Python package leaves out."""
    file = descriptor_pb2.FileDescriptorProto(
        name="monitoring_config.proto", package="tensorflow.serving", syntax="proto3"
    )
    field = descriptor_pb2.FieldDescriptorProto
    prometheus = file.message_type.add(name="PrometheusConfig")
    prometheus.field.add(name="enable", number=1, type=field.TYPE_BOOL, label=field.LABEL_OPTIONAL)
    prometheus.field.add(name="path", number=2, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    file.message_type.add(name="MonitoringConfig").field.add(
        name="prometheus_config",
        number=1,
        type=field.TYPE_MESSAGE,
        type_name=".tensorflow.serving.PrometheusConfig",
        label=field.LABEL_OPTIONAL,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.serving.MonitoringConfig"))


def test_the_monitoring_config_turns_prometheus_on() -> None:
    config = text_format.Parse((FOLDER / "monitoring.config").read_text(), monitoring_config()())
    assert config.prometheus_config.enable
    assert config.prometheus_config.path.startswith("/monitoring/")


@pytest.fixture
def started(tmp_path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The flags and the environment that serve.sh, run from elsewhere, gives to the server on the PATH."""
    server = tmp_path / "tensorflow_model_server"
    server.write_text('#!/bin/sh\nenv > "$OUT.env"\nprintf "%s\\n" "$@" > "$OUT.flags"\n')
    server.chmod(0o755)
    out = tmp_path / "out"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(out)}
    command = [str(FOLDER / "serve.sh"), "--grpc_max_threads=3"]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=30)
    flags = dict(line.removeprefix("--").split("=", 1) for line in out.with_suffix(".flags").read_text().splitlines())
    return flags, dict(line.split("=", 1) for line in out.with_suffix(".env").read_text().splitlines())


def test_the_script_starts_the_server_as_a_small_model_needs_it(started: tuple[dict[str, str], dict[str, str]]) -> None:
    flags, environment = started
    assert flags["tensorflow_intra_op_parallelism"] == flags["tensorflow_inter_op_parallelism"] == "1"
    assert (flags["enable_batching"], flags["enable_model_warmup"]) == ("false", "true")
    assert environment["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert flags["grpc_max_threads"] == "3"  # given by the caller
    for name in ("model_config_file", "monitoring_config_file"):
        assert Path(flags[name]).parent == FOLDER and Path(flags[name]).is_file()


def test_every_flag_is_spelt_as_the_server_spells_it(started: tuple[dict[str, str], dict[str, str]]) -> None:
    named = set(re.findall(r"--([a-z_]+)", (FOLDER / "README.md").read_text()))
    named -= {"rm", "entrypoint", "country", "target", "index"}  # of docker and of the project's own tools
    assert len(named) > 3
    assert set(started[0]) | named <= set(FLAGS.split())
