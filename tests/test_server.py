"""The embedded server as a process of its own on a real port, asked with TensorFlow Serving's own stubs."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import serving_models
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from q2s_tf.serving.servable import Servable

ROOT = Path(__file__).parents[1]
STATE = get_model_status_pb2.ModelVersionStatus.State
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "serve.py"), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}


class Process:
    """A server process and stubs to ask it."""

    def __init__(self, models: Path) -> None:
        self.process = subprocess.Popen(
            command("--models", str(models), "--port", "0", "--poll-seconds", "0.1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(),
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        assert self.line, "the server ended before it was ready"
        self.channel = grpc.insecure_channel(self.line.split()[-1])
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def status(self, model: str) -> dict[int, tuple[int, str]]:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        answer = self.models.GetModelStatus(request)
        return {status.version: (status.state, status.status.error_message) for status in answer.model_version_status}

    def healthy(self, service: str = "") -> int:
        return self.health.Check(health_pb2.HealthCheckRequest(service=service)).status

    def stop(self) -> tuple[int, str]:
        """The exit status after SIGTERM, and what else came on standard output."""
        self.channel.close()
        self.process.send_signal(signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=30)
        return self.process.returncode, rest


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.02)


def predict_request(model: str = "query_tower", signature: str = "", **inputs: Any) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for key, value in (inputs or {"query": ["red sofa"], "country": ["US"]}).items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    serving_models.save_all(folder)
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Process]:
    process = Process(models)
    yield process
    assert process.stop() == (0, "")


def embedding(server: Process, query: str, country: str) -> np.ndarray:
    request = predict_request(query=[query], country=[country])
    return tf.make_ndarray(server.prediction.Predict(request).outputs["embedding"])[0]


def test_says_in_one_line_what_it_serves_and_where(server: Process) -> None:
    assert re.fullmatch(r"serving document_tower 1, query_tower 1, retriever 1 on 127\.0\.0\.1:\d+\n", server.line)


def test_answers_as_the_model_does_outside_of_the_server(server: Process, models: Path) -> None:
    inputs: dict[str, Any] = {"query": ["red sofa", "", "ghế đỏ"], "country": ["US", "", "VN"]}
    expected = tf.saved_model.load(str(models / "query_tower" / "1")).signatures["serving_default"](
        **{key: tf.constant(value) for key, value in inputs.items()}
    )
    response = server.prediction.Predict(predict_request(**inputs))
    assert set(response.outputs) == {"embedding", "channel_weights"}
    for key, tensor in expected.items():
        np.testing.assert_allclose(tf.make_ndarray(response.outputs[key]), tensor.numpy(), atol=1e-6)
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("query_tower", 1, "serving_default")


@pytest.mark.parametrize("signature", ["retrieve", "by_embedding"])
def test_k_and_the_least_score_are_given_with_the_request(server: Process, signature: str) -> None:
    vector = embedding(server, "lamp", "FR")
    ranked = serving_models.scores(vector)
    least = (ranked[2][1] + ranked[3][1]) / 2
    what: dict[str, Any] = (
        {"query": ["lamp"], "country": ["FR"]} if signature == "retrieve" else {"embedding": vector[None]}
    )
    options = {"k": 5, "effort": 3, "min_score": np.float32(least)}
    outputs = server.prediction.Predict(predict_request("retriever", signature, **what, **options)).outputs
    expected = [name.encode() for name, _ in ranked[:3]] + [b"", b""]
    assert tf.make_ndarray(outputs["document_id"]).tolist() == [expected]
    np.testing.assert_allclose(tf.make_ndarray(outputs["score"])[0], [s for _, s in ranked[:3]] + [-1, -1], atol=1e-5)


def test_an_empty_batch_gives_an_empty_answer(server: Process) -> None:
    request = predict_request(query=np.zeros(0, object), country=np.zeros(0, object))
    outputs = server.prediction.Predict(request).outputs
    assert tf.make_ndarray(outputs["embedding"]).shape == (0, serving_models.DIM)


def test_the_output_filter_is_honoured(server: Process) -> None:
    request = predict_request()
    request.output_filter.append("channel_weights")
    assert set(server.prediction.Predict(request).outputs) == {"channel_weights"}


def bad(code: str, fragment: str, request: predict_pb2.PredictRequest, **spec: Any) -> object:
    for key, value in spec.items():
        if key == "version":
            request.model_spec.version.value = value
        elif key == "output_filter":
            request.output_filter.append(value)
        else:
            setattr(request.model_spec, key, value)
    return pytest.param(request, code, fragment, id=fragment[:40])


US: dict[str, Any] = {"country": ["US"]}
BAD = [
    bad("INVALID_ARGUMENT", "name is empty", predict_request(""), name=""),
    bad("NOT_FOUND", 'no model "toaster"', predict_request("toaster")),
    bad("NOT_FOUND", "no version 7 loaded; version 1 is served", predict_request(), version=7),
    bad("NOT_FOUND", 'no version label "canary"', predict_request(), version_label="canary"),
    bad("NOT_FOUND", 'no signature "nope"; it has serving_default', predict_request(signature="nope")),
    bad("NOT_FOUND", 'no signature "__saved_model_init_op"', predict_request(signature="__saved_model_init_op")),
    bad("INVALID_ARGUMENT", 'no output "scores"', predict_request(), output_filter="scores"),
    bad("INVALID_ARGUMENT", 'input "country" (string [?]) is missing', predict_request(query=["a"])),
    bad("INVALID_ARGUMENT", 'input "price" is unknown', predict_request(query=["a"], price=[1], **US)),
    bad("INVALID_ARGUMENT", 'input "query" must be string [?], and int32 [1] came', predict_request(query=[3], **US)),
    bad("INVALID_ARGUMENT", 'input "query" must be string [?], and string [] came', predict_request(query="a", **US)),
    bad("INVALID_ARGUMENT", "string [1, 1] came", predict_request(query=[["a"]], **US)),
    bad(
        "INVALID_ARGUMENT",
        'input "embedding" must be float32 [?, 8], and float32 [1, 9] came',
        predict_request("retriever", "by_embedding", embedding=np.ones((1, 9), "f"), k=1, effort=1, min_score=0.0),
    ),
    bad(
        "INVALID_ARGUMENT",
        'input "k" must be int32 [], and int64 [] came',
        predict_request("retriever", "retrieve", query=["a"], k=np.int64(3), effort=1, min_score=0.0, **US),
    ),
    bad(
        "INVALID_ARGUMENT",
        'signature "retrieve"',  # the graph itself refuses it
        predict_request("retriever", "retrieve", query=["a"], k=-3, effort=1, min_score=0.0, **US),
    ),
]


@pytest.mark.parametrize(("request_", "code", "fragment"), BAD)
def test_bad_requests_are_refused_by_name_and_the_server_goes_on(
    server: Process, request_: predict_pb2.PredictRequest, code: str, fragment: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.prediction.Predict(request_)
    assert (caught.value.code().name, "\n" in caught.value.details()) == (code, False)
    assert fragment in caught.value.details()
    assert server.prediction.Predict(predict_request()).model_spec.version.value == 1


def test_malformed_tensors_are_refused(server: Process) -> None:
    request = predict_request()
    request.inputs["query"].string_val.append(b"one too many")
    with pytest.raises(grpc.RpcError, match=r'input "query": .* holds 1 values, and 2 came') as caught:
        server.prediction.Predict(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_metadata_is_what_the_export_wrote(server: Process, models: Path) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "retriever"
    response = server.prediction.GetModelMetadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    saved = saved_model_pb2.SavedModel.FromString((models / "retriever" / "1" / "saved_model.pb").read_bytes())
    assert dict(signatures.signature_def) == dict(saved.meta_graphs[0].signature_def)
    assert (response.model_spec.name, response.model_spec.version.value) == ("retriever", 1)


@pytest.mark.parametrize("fields", [[], ["weights"]])
def test_metadata_has_the_signatures_only(server: Process, fields: list[str]) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = "retriever"
    with pytest.raises(grpc.RpcError) as caught:
        server.prediction.GetModelMetadata(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_what_is_not_served_says_so(server: Process) -> None:
    calls = [
        (server.prediction.Classify, classification_pb2.ClassificationRequest()),
        (server.prediction.Regress, regression_pb2.RegressionRequest()),
        (server.prediction.MultiInference, inference_pb2.MultiInferenceRequest()),
        (server.models.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest()),
    ]
    for method, request in calls:
        with pytest.raises(grpc.RpcError) as caught:
            method(request)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "is not served here" in caught.value.details()


def test_status_and_health_of_a_server_that_is_well(server: Process) -> None:
    assert server.status("query_tower") == {1: (STATE.AVAILABLE, "")}
    for service in ("", "tensorflow.serving.PredictionService", "query_tower", "retriever"):
        assert server.healthy(service) == SERVING
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "query_tower"
    request.model_spec.version.value = 7
    for what, call in {
        "status of an unknown version": lambda: server.models.GetModelStatus(request),
        "status of an unknown model": lambda: server.status("toaster"),
        "health of an unknown service": lambda: server.healthy("toaster"),
    }.items():
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND, what


def put(source: Path, target: Path) -> None:
    """A whole version appears at once, as an export writes it."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.copytree(source, temporary)
    temporary.rename(target)


def test_a_new_version_takes_over_without_a_failed_request(models: Path, tmp_path: Path) -> None:
    """Under load, version 2 takes over; broken versions do not; a copy that is completed later does."""
    served = tmp_path / "models"
    shutil.copytree(models / "query_tower", served / "query_tower")
    serving_models.save_query_tower(tmp_path / "second", turn=1)
    second = tmp_path / "second"
    server = Process(served)
    first_vector = embedding(server, "red sofa", "US")
    vectors = {1: first_vector, 2: np.roll(first_vector, 1)}
    done = threading.Event()

    seen: set[int] = set()

    def ask() -> list[int]:
        versions = []
        while not done.is_set():
            response = server.prediction.Predict(predict_request())
            version = response.model_spec.version.value
            np.testing.assert_allclose(tf.make_ndarray(response.outputs["embedding"])[0], vectors[min(version, 2)])
            versions.append(version)
            seen.add(version)
        return versions

    def state(version: int) -> tuple[int, str]:
        return server.status("query_tower").get(version, (0, ""))

    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(ask) for _ in range(2)]
        try:
            wait_until(lambda: 1 in seen)
            put(second, served / "query_tower" / "2")
            wait_until(lambda: state(2)[0] == STATE.AVAILABLE)
            assert state(1)[0] == STATE.END

            (served / "query_tower" / "4").mkdir()  # a copy that has just begun
            put(second, served / "query_tower" / "3")
            wait_until(lambda: state(4)[0] == STATE.END)
            assert "saved_model.pb" in state(4)[1]
            wait_until(lambda: state(3)[0] == STATE.AVAILABLE)

            serving_models.write_warmup(second, {"query": ["a"], "region": ["US"]})  # fails its own warm-up
            put(second, served / "query_tower" / "5")
            wait_until(lambda: state(5)[0] == STATE.END)
            assert 'input "country" (string [?]) is missing' in state(5)[1]
            assert state(3)[0] == STATE.AVAILABLE and server.healthy("query_tower") == SERVING

            shutil.rmtree(second / "assets.extra")
            shutil.copytree(second, served / "query_tower" / "4", dirs_exist_ok=True)  # the copy is completed
            wait_until(lambda: 4 in seen)
        finally:
            done.set()
        for answer in answers:
            versions = answer.result()  # raises what a failed request raised
            assert versions == sorted(versions)
    assert seen == {1, 2, 3, 4}
    assert server.stop() == (0, "")


def test_a_model_without_a_loadable_version_says_so_until_it_has_one(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "retriever", tmp_path / "retriever")
    (tmp_path / "query_tower" / "1").mkdir(parents=True)
    (tmp_path / "query_tower" / "1" / "saved_model.pb").write_bytes(b"no saved model")
    (tmp_path / "notes").mkdir()
    server = Process(tmp_path)
    assert server.line.startswith("serving query_tower (no version), retriever 1 on ")
    assert server.status("query_tower")[1][0] == STATE.END
    assert server.status("query_tower")[1][1]
    assert [server.healthy(name) for name in ("", "query_tower", "retriever")] == [NOT_SERVING, NOT_SERVING, SERVING]
    with pytest.raises(grpc.RpcError, match="has no version loaded") as caught:
        server.prediction.Predict(predict_request())
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    put(models / "query_tower" / "1", tmp_path / "query_tower" / "2")
    wait_until(lambda: server.healthy() == SERVING)
    assert server.prediction.Predict(predict_request()).model_spec.version.value == 2
    assert server.stop() == (0, "")


def test_a_package_that_a_model_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved_model_pb2.SavedModel()
    model.meta_graphs.add().meta_info_def.stripped_op_list.op.add(name="Scann>ScannSearchBatched")
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    monkeypatch.setitem(sys.modules, "scann", None)  # as if it were not installed
    with pytest.raises(ImportError, match="pip install scann"):
        Servable("retriever", 1, tmp_path)


class Counter(tf.Module):
    """Counts to ``n`` one by one, so that a test can choose how long a request takes."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)])
    def __call__(self, n: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"counted": tf.while_loop(lambda i: i < n, lambda i: (i + 1,), [tf.constant(0)])[0]}


def test_requests_under_way_are_answered_before_the_server_ends(tmp_path: Path) -> None:
    counter = Counter()
    tf.saved_model.save(counter, str(tmp_path / "counter" / "1"), signatures={"serving_default": counter.__call__})
    server = Process(tmp_path)
    slow = server.prediction.Predict.future(predict_request("counter", n=200_000))
    server.prediction.Predict(predict_request("counter", n=1))  # sent after the slow one: that one is under way
    server.process.send_signal(signal.SIGINT)
    assert tf.make_ndarray(slow.result(timeout=30).outputs["counted"]) == 200_000
    assert server.process.wait(timeout=30) == 0
    server.stop()


def run(*arguments: str) -> tuple[int, str, str]:
    result = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(), timeout=60)
    return result.returncode, result.stdout, result.stderr


def test_bad_input_is_one_line_and_exit_status_2(models: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = {
            "does not exist": ["--models", str(tmp_path / "nowhere")],
            "holds no <model>/<version>/": ["--models", str(tmp_path)],
            f"cannot listen on 127.0.0.1:{port}": ["--models", str(models), "--port", port],
            "port must be 0 to 65535": ["--models", str(models), "--port", "70000"],
            "poll_seconds must be above 0": ["--models", str(models), "--port", "0", "--poll-seconds", "0"],
            "--models": [],
        }
        for fragment, arguments in cases.items():
            status, output, errors = run(*arguments)
            assert (status, output, errors.count("\n")) == (2, "", 1), errors
            assert errors.startswith("error: ") and fragment in errors
