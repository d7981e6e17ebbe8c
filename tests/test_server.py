"""The embedded server in a separate process on a real port, with requests from TensorFlow Serving's own stubs."""

import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import serving_models
import tensorflow as tf
from grpc_health.v1 import health_pb2
from server_process import Process, predict_request, run, wait_until
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from q2s_tf.errors import InputError
from q2s_tf.server.model_manager import ModelManager
from q2s_tf.server.request_handler import RequestHandler
from q2s_tf.server.request_waits import MAX_RUNNING
from q2s_tf.server.servable import Servable
from q2s_tf.server.server import Server
from q2s_tf.server.server_config import RequestLimits
from q2s_tf.serving.folders import versions_in
from q2s_tf.serving.serving_error import ServingError

STATE = get_model_status_pb2.ModelVersionStatus.State
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    serving_models.save_all(folder)
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Process]:
    process = Process("--models", str(models))
    yield process
    assert process.stop() == (0, "")


def embedding(server: Process, query: str, country: str) -> np.ndarray:
    request = predict_request(query=[query], country=[country])
    return tf.make_ndarray(server.prediction.Predict(request).outputs["embedding"])[0]


def test_one_line_names_the_models_and_the_address(server: Process) -> None:
    assert re.fullmatch(r"serving document_tower 1, query_tower 1, retriever 1 on 127\.0\.0\.1:\d+\n", server.line)


def test_outputs_equal_those_of_the_saved_model(server: Process, models: Path) -> None:
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
def test_k_and_the_minimum_score_are_inputs(server: Process, signature: str) -> None:
    vector = embedding(server, "lamp", "FR")
    ranked = serving_models.scores(vector)
    min_score = (ranked[2][1] + ranked[3][1]) / 2
    inputs: dict[str, Any] = (
        {"query": ["lamp"], "country": ["FR"], "lexical_weight": 0.0}
        if signature == "retrieve"
        else {"embedding": vector[None]}
    )
    options = {"k": 5, "effort": 3, "min_score": np.float32(min_score)}
    outputs = server.prediction.Predict(predict_request("retriever", signature, **inputs, **options)).outputs
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
RETRIEVE: dict[str, Any] = {"query": ["a"], "lexical_weight": 0.0, **US}
BAD = [
    bad(
        "INVALID_ARGUMENT",
        'all inputs must have the same number of rows: "country" has 1, "query" has 2',
        predict_request(query=["a", "b"], **US),
    ),
    bad(
        "INVALID_ARGUMENT",
        "a batch may have at most 4096 rows, got 4097",
        predict_request(query=["a"] * 4097, country=["US"] * 4097),
    ),
    bad("INVALID_ARGUMENT", "name is empty", predict_request(""), name=""),
    bad("NOT_FOUND", 'no model "toaster"', predict_request("toaster")),
    bad("NOT_FOUND", "no version 7 loaded; served versions: 1", predict_request(), version=7),
    bad("INVALID_ARGUMENT", 'no version label "canary"; its labels: none', predict_request(), version_label="canary"),
    bad("NOT_FOUND", 'no signature "nope"; it has serving_default', predict_request(signature="nope")),
    bad("NOT_FOUND", 'no signature "__saved_model_init_op"', predict_request(signature="__saved_model_init_op")),
    bad("INVALID_ARGUMENT", 'no output "scores"', predict_request(), output_filter="scores"),
    bad("INVALID_ARGUMENT", 'input "country" (string [?]) is missing', predict_request(query=["a"])),
    bad("INVALID_ARGUMENT", 'input "price" is unknown', predict_request(query=["a"], price=[1], **US)),
    bad("INVALID_ARGUMENT", 'input "query" must be string [?], got int32 [1]', predict_request(query=[3], **US)),
    bad("INVALID_ARGUMENT", 'input "query" must be string [?], got string []', predict_request(query="a", **US)),
    bad("INVALID_ARGUMENT", "got string [1, 1]", predict_request(query=[["a"]], **US)),
    bad(
        "INVALID_ARGUMENT",
        'input "embedding" must be float32 [?, 8], got float32 [1, 9]',
        predict_request("retriever", "by_embedding", embedding=np.ones((1, 9), "f"), k=1, effort=1, min_score=0.0),
    ),
    bad(
        "INVALID_ARGUMENT",
        'input "k" must be int32 [], got int64 []',
        predict_request("retriever", "retrieve", k=np.int64(3), effort=1, min_score=0.0, **RETRIEVE),
    ),
    bad(
        "INVALID_ARGUMENT",
        'input "embedding" must be finite',
        predict_request(
            "retriever", "by_embedding", embedding=np.full((1, 8), np.nan, "f"), k=1, effort=1, min_score=0.0
        ),
    ),
    bad(
        "INVALID_ARGUMENT",
        'input "min_score" must be finite',
        predict_request("retriever", "retrieve", k=1, effort=1, min_score=np.nan, **RETRIEVE),
    ),
    bad(
        "INVALID_ARGUMENT",
        'signature "retrieve"',  # an error of the graph
        predict_request("retriever", "retrieve", k=-3, effort=1, min_score=0.0, **RETRIEVE),
    ),
]


@pytest.mark.parametrize(("request_", "code", "fragment"), BAD)
def test_invalid_requests_are_refused_and_the_server_continues(
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
    with pytest.raises(grpc.RpcError, match=r'input "query": .* has 1 values, got 2') as caught:
        server.prediction.Predict(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_metadata_has_the_signatures_of_the_export(server: Process, models: Path) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "retriever"
    response = server.prediction.GetModelMetadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    saved = saved_model_pb2.SavedModel.FromString((models / "retriever" / "1" / "saved_model.pb").read_bytes())
    assert dict(signatures.signature_def) == dict(saved.meta_graphs[0].signature_def)
    assert (response.model_spec.name, response.model_spec.version.value) == ("retriever", 1)


@pytest.mark.parametrize("fields", [[], ["weights"]])
def test_other_metadata_is_refused(server: Process, fields: list[str]) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = "retriever"
    with pytest.raises(grpc.RpcError) as caught:
        server.prediction.GetModelMetadata(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_other_prediction_methods_are_unimplemented(server: Process) -> None:
    calls = [
        (server.prediction.Classify, classification_pb2.ClassificationRequest()),
        (server.prediction.Regress, regression_pb2.RegressionRequest()),
        (server.prediction.MultiInference, inference_pb2.MultiInferenceRequest()),
    ]
    for method, request in calls:
        with pytest.raises(grpc.RpcError) as caught:
            method(request)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "is not supported; use Predict" in caught.value.details()


def test_status_and_health(server: Process) -> None:
    assert server.status("query_tower") == {1: (STATE.AVAILABLE, "")}
    for service in ("", "tensorflow.serving.PredictionService", "query_tower", "retriever"):
        assert server.healthy(service) == SERVING
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "query_tower"
    request.model_spec.version.value = 7
    for name, call in {
        "status of an unknown version": lambda: server.models.GetModelStatus(request),
        "status of an unknown model": lambda: server.status("toaster"),
        "health of an unknown service": lambda: server.healthy("toaster"),
    }.items():
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND, name


def put(source: Path, target: Path) -> None:
    """Copies a version so that it appears at once, as from an export."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.copytree(source, temporary)
    temporary.rename(target)


def test_a_new_version_takes_over_without_a_failed_request(models: Path, tmp_path: Path) -> None:
    """Under load: version 2 is served, broken versions are not, and a copy is served when it is complete."""
    served = tmp_path / "models"
    shutil.copytree(models / "query_tower", served / "query_tower")
    serving_models.save_query_tower(tmp_path / "second", turn=1)
    second = tmp_path / "second"
    server = Process("--models", str(served))
    first_vector = embedding(server, "red sofa", "US")
    vectors = {1: first_vector, 2: np.roll(first_vector, 1)}
    done = threading.Event()
    answered = threading.Condition()
    seen: set[int] = set()

    def query() -> list[int]:
        versions = []
        while not done.is_set():
            response = server.prediction.Predict(predict_request())
            version = response.model_spec.version.value
            np.testing.assert_allclose(tf.make_ndarray(response.outputs["embedding"])[0], vectors[min(version, 2)])
            versions.append(version)
            with answered:
                seen.add(version)
                answered.notify()
        return versions

    def wait_for_answer(version: int) -> None:
        with answered:
            assert answered.wait_for(lambda: version in seen, timeout=120)

    def state(version: int) -> tuple[int, str]:
        return server.status("query_tower").get(version, (0, ""))

    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(query) for _ in range(2)]
        try:
            wait_for_answer(1)
            put(second, served / "query_tower" / "2")
            wait_for_answer(2)
            wait_until(lambda: state(1)[0] == STATE.END)

            (served / "query_tower" / "4").mkdir()  # an incomplete copy
            put(second, served / "query_tower" / "3")
            wait_until(lambda: state(4)[0] == STATE.END)
            assert "saved_model.pb" in state(4)[1]
            wait_for_answer(3)

            serving_models.write_warmup(second, {"query": ["a"], "region": ["US"]})  # its warm-up fails
            put(second, served / "query_tower" / "5")
            wait_until(lambda: state(5)[0] == STATE.END)
            assert 'input "country" (string [?]) is missing' in state(5)[1]
            assert state(3)[0] == STATE.AVAILABLE and server.healthy("query_tower") == SERVING

            shutil.rmtree(second / "assets.extra")
            shutil.copytree(second, served / "query_tower" / "4", dirs_exist_ok=True)  # the copy is complete now
            wait_for_answer(4)
        finally:
            done.set()
        for answer in answers:
            versions = answer.result()  # raises what a failed request raised
            assert versions == sorted(versions)
    assert seen == {1, 2, 3, 4}
    assert server.stop() == (0, "")


def test_a_model_is_unhealthy_until_a_version_can_be_loaded(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "retriever", tmp_path / "retriever")
    (tmp_path / "query_tower" / "1").mkdir(parents=True)
    (tmp_path / "query_tower" / "1" / "saved_model.pb").write_bytes(b"no saved model")
    (tmp_path / "notes").mkdir()
    server = Process("--models", str(tmp_path))
    assert server.line.startswith("serving query_tower (no version), retriever 1 on ")
    assert server.status("query_tower")[1][0] == STATE.END
    assert server.status("query_tower")[1][1]
    assert [server.healthy(name) for name in ("", "query_tower", "retriever")] == [NOT_SERVING, NOT_SERVING, SERVING]
    with pytest.raises(grpc.RpcError, match="has no version loaded") as caught:
        server.prediction.Predict(predict_request())
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    put(models / "query_tower" / "1", tmp_path / "query_tower" / "2")
    server.wait_until_healthy()
    assert server.prediction.Predict(predict_request()).model_spec.version.value == 2
    assert server.stop() == (0, "")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved_model_pb2.SavedModel()
    model.meta_graphs.add().meta_info_def.stripped_op_list.op.add(name="Scann>ScannSearchBatched")
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    monkeypatch.setitem(sys.modules, "scann", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"pip install 'q2s_tf\[scann\]'"):
        Servable("retriever", 1, tmp_path)


def load(models: ModelManager) -> None:
    """Loads what is on disk."""
    models.refresh()
    assert not models.loading(seconds=60)


@pytest.mark.parametrize("damage", ["truncated", "missing", "warm-up"])
def test_a_corrupt_version_is_refused_and_the_old_one_stays(
    models: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("query_tower", "retriever"):
        shutil.copytree(models / name, tmp_path / name)
    changes: list[dict[str, list[int]]] = []
    served = ModelManager(tmp_path, lambda: changes.append(served.serving()))
    load(served)
    for name in ("query_tower", "retriever"):
        shutil.copytree(models / name / "1", tmp_path / name / "2")
    version = tmp_path / "query_tower" / "2"
    (variables,) = version.glob("variables/variables.data-*")
    if damage == "truncated":
        variables.write_bytes(variables.read_bytes()[:-100])
    elif damage == "missing":
        variables.unlink()
    else:
        serving_models.write_warmup(version, {"query": ["a", "b"], "country": ["US"]})
    load(served)
    assert served.serving() == {"query_tower": [1], "retriever": [2]}
    spec = model_pb2.ModelSpec(name="query_tower")
    error = served.statuses(spec)[0].status.error_message
    assert error
    response = served.find(spec).predict(predict_request())
    assert response.model_spec.version.value == 1
    monkeypatch.setattr("q2s_tf.server.model_manager.Servable", None)  # a second attempt would change the error
    load(served)
    assert served.statuses(spec)[0].status.error_message == error
    assert changes[-1] == {"query_tower": [1], "retriever": [2]}


def test_an_unreadable_folder_does_not_affect_other_models(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models / "query_tower", tmp_path / "a")
    shutil.copytree(models / "query_tower", tmp_path / "b")
    served = ModelManager(tmp_path)
    load(served)
    shutil.copytree(models / "query_tower" / "1", tmp_path / "b" / "2")

    def stale(model: Path) -> dict[int, Path]:
        if model.name == "a":
            raise OSError("Stale file handle")
        return versions_in(model)

    monkeypatch.setattr("q2s_tf.server.model_manager.versions_in", stale)
    load(served)
    assert served.serving() == {"a": [1], "b": [2]}


class Counter(tf.Module):
    """Counts to ``n`` in steps of one, so a test can choose the duration of a request."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)])
    def __call__(self, n: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"counted": tf.while_loop(lambda i: i < n, lambda i: (i + 1,), [tf.constant(0)])[0]}


@pytest.fixture(scope="module")
def counters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("counters")
    counter = Counter()
    tf.saved_model.save(counter, str(folder / "counter" / "1"), signatures={"serving_default": counter.__call__})
    return folder


def test_running_requests_are_answered_before_the_server_exits(counters: Path) -> None:
    """The health service reports NOT_SERVING first."""
    server = Process("--models", str(counters))
    health = server.health.Watch(health_pb2.HealthCheckRequest())
    assert next(health).status == SERVING
    slow = server.prediction.Predict.future(predict_request("counter", n=20_000))
    server.prediction.Predict(predict_request("counter", n=1))  # answered: so the slow one has arrived
    server.process.send_signal(signal.SIGTERM)
    assert next(health).status == NOT_SERVING
    assert tf.make_ndarray(slow.result(timeout=30).outputs["counted"]) == 20_000
    assert server.process.wait(timeout=30) == 0
    server.stop()


def stub(server: Server) -> prediction_service_pb2_grpc.PredictionServiceStub:
    return prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(server.address))


def test_an_endless_request_is_cancelled_after_the_grace_period(counters: Path) -> None:
    """Its thread must end, otherwise the process could not exit."""
    with Server(counters, port=0, grace_seconds=0.2) as server:
        endless = stub(server).Predict.future(predict_request("counter", n=2**31 - 1))
        stub(server).Predict(predict_request("counter", n=1))
    assert endless.exception(timeout=30) is not None
    for thread in threading.enumerate():
        if thread.name.startswith("request"):
            thread.join(30)
            assert not thread.is_alive()


def test_a_request_that_waited_too_long_is_not_run() -> None:
    handler = RequestHandler(ModelManager([]), RequestLimits(max_seconds=0.01))
    with ExitStack() as running, pytest.raises(ServingError, match="could not run within 0.01 s") as caught:
        for _ in range(MAX_RUNNING):
            running.enter_context(handler.turn("GRPC"))
        with handler.turn("GRPC"):
            raise AssertionError("the request runs")
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_request_whose_deadline_has_passed_is_not_run() -> None:
    handler = RequestHandler(ModelManager([]), RequestLimits())
    with (
        pytest.raises(ServingError, match="could not run within 0 s") as caught,
        handler.turn("GRPC", remaining_seconds=0.0),
    ):
        raise AssertionError("the request runs")
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_bad_input_is_one_line_and_exit_status_2(models: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = {
            "does not exist": ["--models", str(tmp_path / "nowhere")],
            "holds no <model>/<version>/": ["--models", str(tmp_path)],
            f"cannot listen on 127.0.0.1:{port}": ["--models", str(models), "--port", port],
            "'--port': Input should be less than or equal to 65535": ["--models", str(models), "--port", "70000"],
            "'--poll-seconds': Input should be": ["--models", str(models), "--port", "0", "--poll-seconds", "0"],
            "give either --models, a folder, or --model-config-file, a file": [],
            f"cannot listen on 127.0.0.1:{port}: the port is in use or not allowed; give another --rest-port": [
                *("--models", str(models), "--port", "0", "--rest-port", port)
            ],
            "'--max-rows': Input should be greater than or equal to 1": ["--models", str(models), "--max-rows", "0"],
        }
        for fragment, arguments in cases.items():
            status, output, errors = run(*arguments)
            assert (status, output, errors.count("\n")) == (2, "", 1), errors
            assert errors.startswith("error: ") and fragment in errors
