"""TensorFlow Serving's REST routes, compared with the responses over gRPC, and the metrics."""

import base64
import json
import math
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import serving_models
import tensorflow as tf
from server_process import Process, predict_request
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import model_pb2, predict_pb2

from q2s_tf.server import json_tensors
from q2s_tf.server.model_manager import ModelManager
from q2s_tf.server.request_handler import ENTRY_BYTES, RequestHandler
from q2s_tf.server.servable import InputSpec
from q2s_tf.server.server_config import RequestLimits
from q2s_tf.serving import tensor_proto

MAX_BYTES = 20_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The three servables, the query tower with a label, an answer cache and a low limit."""
    folder = tmp_path_factory.mktemp("models")
    serving_models.save_all(folder)
    text = "".join(
        f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" {rest} }} '
        for name, rest in {
            "query_tower": 'version_labels { key: "stable" value: 1 }',
            "document_tower": "",
            "retriever": "",
        }.items()
    )
    config = folder / "models.config"
    config.write_text(f"model_config_list {{ {text} }}")
    process = Process(
        *("--model-config-file", str(config), "--rest-port", "0"),
        *("--cache-seconds", "3600", "--max-request-bytes", str(MAX_BYTES), "--max-rows", "8"),
    )
    yield process
    assert process.stop() == (0, "")


@pytest.fixture(scope="module")
def http(server: Process) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.rest) as client:
        yield client


def predict(http: httpx.Client, body: dict[str, Any], path: str = "query_tower") -> Any:
    response = http.post(f"/v1/models/{path}:predict", json=body)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json"), response.text
    return response.json()


def over_grpc(server: Process, request: predict_pb2.PredictRequest) -> dict[str, np.ndarray]:
    return {key: tf.make_ndarray(tensor) for key, tensor in server.prediction.Predict(request).outputs.items()}


def test_the_ready_line_has_the_address_of_rest(server: Process) -> None:
    assert re.search(r" on 127\.0\.0\.1:\d+, REST on http://127\.0\.0\.1:\d+\n", server.line)


@pytest.mark.parametrize("path", ["query_tower", "query_tower/versions/1", "query_tower/labels/stable"])
def test_row_and_columnar_responses_equal_those_over_grpc(server: Process, http: httpx.Client, path: str) -> None:
    columns: dict[str, Any] = {"query": ["red sofa", "ghế đỏ"], "country": ["US", "VN"]}
    expected = over_grpc(server, predict_request(**columns))
    rows = [{"query": "red sofa", "country": "US"}, {"query": "ghế đỏ", "country": "VN"}]
    predictions = predict(http, {"instances": rows}, path)["predictions"]
    outputs = predict(http, {"signature_name": "serving_default", "inputs": columns}, path)["outputs"]
    assert set(outputs) == set(expected) and [set(row) for row in predictions] == [set(expected)] * 2
    for key, array in expected.items():
        assert np.array_equal(np.array(outputs[key], array.dtype), array)  # to the last bit
        assert np.array_equal(np.array([row[key] for row in predictions], array.dtype), array)


def test_columnar_requests_can_have_scalars(server: Process, http: httpx.Client) -> None:
    numbers = {"k": 3, "effort": 1, "min_score": -1, "lexical_weight": 0}
    columns: dict[str, Any] = {"query": ["lamp"], "country": ["FR"], **numbers}
    outputs = predict(http, {"signature_name": "retrieve", "inputs": columns}, "retriever")["outputs"]
    vector = over_grpc(server, predict_request(query=["lamp"], country=["FR"]))["embedding"][0]
    best = serving_models.scores(vector)[:3]
    assert outputs["document_id"] == [[name for name, _ in best]]
    np.testing.assert_allclose(outputs["score"], [[score for _, score in best]], atol=1e-6)


def test_a_single_output_has_no_name(server: Process, http: httpx.Client) -> None:
    expected = over_grpc(server, predict_request())["embedding"]
    filtered = {"output_filter": ["embedding"]}
    row = {"query": "red sofa", "country": "US"}
    answer = predict(http, {"instances": [row], **filtered})
    assert np.array_equal(np.array(answer["predictions"], np.float32), expected)
    answer = predict(http, {"inputs": {key: [value] for key, value in row.items()}, **filtered})
    assert np.array_equal(np.array(answer["outputs"], np.float32), expected)


def test_bytes_are_base64(server: Process, http: httpx.Client) -> None:
    expected = over_grpc(server, predict_request(query=[b"\xff\x00sofa"], country=["US"]))
    row = {"query": {"b64": base64.b64encode(b"\xff\x00sofa").decode()}, "country": "US"}
    (answer,) = predict(http, {"instances": [row]})["predictions"]
    assert np.array_equal(np.float32(answer["embedding"]), expected["embedding"][0])


def test_status_and_metadata_are_the_messages_as_json(http: httpx.Client) -> None:
    for path in ("", "/versions/1", "/labels/stable"):
        assert http.get(f"/v1/models/query_tower{path}").json() == {
            "model_version_status": [
                {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
            ]
        }
        metadata = http.get(f"/v1/models/query_tower{path}/metadata").json()
        assert metadata["model_spec"] == {"name": "query_tower", "signature_name": "", "version": "1"}
        signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert signature["method_name"] == "tensorflow/serving/predict"
        assert signature["inputs"]["query"]["dtype"] == "DT_STRING"
        assert signature["inputs"]["query"]["tensor_shape"] == {
            "dim": [{"size": "-1", "name": ""}],
            "unknown_rank": False,
        }


ROW = {"query": "a", "country": "US"}
COLUMNS = {"query": ["a"], "country": ["US"], "k": 1, "effort": 1, "min_score": 0, "lexical_weight": 0}
VECTOR = {"embedding": [[1.0] * serving_models.DIM], "k": 1, "effort": 1, "min_score": 0}
BAD: list[tuple[str, Any, int, str]] = [
    ("toaster:predict", {"instances": [ROW]}, 404, 'no model "toaster"'),
    ("query_tower/versions/7:predict", {"instances": [ROW]}, 404, "no version 7 loaded"),
    (f"query_tower/versions/{1 << 63}:predict", {"instances": [ROW]}, 400, "larger than an int64"),
    ("query_tower/labels/beta:predict", {"instances": [ROW]}, 400, 'no version label "beta"; its labels: stable'),
    ("query_tower:predict", {"instances": [ROW], "signature_name": "nope"}, 404, 'no signature "nope"'),
    ("query_tower:predict", {"instances": [ROW], "signature_name": 1}, 400, "signature_name must be a string"),
    ("query_tower:predict", {"instances": [ROW], "output_filter": ["x"]}, 400, 'no output "x"'),
    ("query_tower:predict", b"{", 400, "the body is not JSON"),
    ("query_tower:predict", b"[" * 10_000, 400, "the body is not JSON"),
    ("query_tower:predict", [], 400, "the body must be a JSON object, got a list"),
    ("query_tower:predict", {}, 400, 'either "instances" or "inputs"'),
    ("query_tower:predict", {"instances": [ROW], "inputs": {}}, 400, 'either "instances" or "inputs"'),
    ("query_tower:predict", {"instances": []}, 400, '"instances" must be a list with at least one item'),
    ("query_tower:predict", {"instances": ["a"]}, 400, "the signature has several inputs; name them: country, query"),
    ("query_tower:predict", {"instances": [ROW, {"query": "a"}]}, 400, '"instances"[1] must be an object with country'),
    ("query_tower:predict", {"instances": [{**ROW, "query": 3}]}, 400, 'input "query" must be string [?], got 3'),
    ("query_tower:predict", {"instances": [{**ROW, "query": {"b64": "?"}}]}, 400, "is neither text nor base64"),
    ("query_tower:predict", b'{"instances": [{"query": "\\ud83d", "country": ""}]}', 400, "is neither text nor base64"),
    ("query_tower:predict", {"inputs": {"query": ["a", "b"], "country": ["US"]}}, 400, "the same number of rows"),
    ("query_tower:predict", {"inputs": {"query": [["a"], "b"], "country": ["US"]}}, 400, "must have the same length"),
    ("query_tower:predict", {"inputs": {"query": ["a"], "price": [1]}}, 400, 'input "price" is unknown'),
    ("query_tower:predict", {"instances": [ROW] * 9}, 400, "at most 8 rows, got 9"),
    ("query_tower:predict", {"instances": [{**ROW, "query": "a" * MAX_BYTES}]}, 413, f"at most {MAX_BYTES} bytes"),
    (
        "retriever:predict",
        {"signature_name": "retrieve", "inputs": {**COLUMNS, "k": 1.5}},
        400,
        "int32 [], got 1.5",
    ),
    ("retriever:predict", {"signature_name": "retrieve", "inputs": {**COLUMNS, "k": True}}, 400, "got true"),
    (
        "retriever:predict",
        {"signature_name": "retrieve", "inputs": {**COLUMNS, "k": 1 << 31}},
        400,
        "too large for int32",
    ),
    (
        "retriever:predict",
        {"signature_name": "retrieve", "inputs": {**COLUMNS, "min_score": 1e39}},
        400,
        "too large for float32",
    ),
    *(
        ("retriever:predict", {"signature_name": name, "inputs": inputs}, 400, message)
        for name, inputs, message in (
            ("retrieve", {**COLUMNS, "min_score": math.nan}, 'input "min_score" must be finite'),
            ("by_embedding", {**VECTOR, "embedding": [[math.nan] * 8]}, 'input "embedding" must be finite'),
            ("by_embedding", {**VECTOR, "embedding": [[math.inf] * 8]}, 'input "embedding" must be finite'),
            ("by_embedding", {**VECTOR, "min_score": math.nan}, 'input "min_score" must be finite'),
            ("\ud83d", COLUMNS, "surrogates not allowed"),
            ("retrieve", {**COLUMNS, "\ud83d": 1}, "surrogates not allowed"),
            ("retrieve", {**COLUMNS, "query": ["\ud83d"]}, "is neither text nor base64"),
        )
    ),
    ("query_tower:predict", b'{"inputs": ' + b"[" * 65 + b"1" + b"]" * 65 + b"}", 400, "name them: country, query"),
    (
        "query_tower:predict",
        b'{"inputs": {"country": ["a"], "query": ' + b"[" * 65 + b"1" + b"]" * 65 + b"}}",
        400,
        "got more than 8 levels of lists",
    ),
    (f"query_tower/versions/{'9' * 4301}:predict", {"instances": [ROW]}, 400, "larger than an int64"),
    ("query_tower:predict", b'{"inputs": ' + b"9" * 4301 + b"}", 400, "4300 digits"),
    ("query_tower:classify", {}, 501, "Classify is not supported"),
    ("query_tower:train", {}, 400, "Malformed request: POST /v1/models/query_tower:train"),
]


@pytest.mark.parametrize(("path", "body", "status", "fragment"), BAD, ids=[bad[3][:40] for bad in BAD])
def test_errors_of_requests_are_json(http: httpx.Client, path: str, body: Any, status: int, fragment: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = http.post(f"/v1/models/{path}", content=content)
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert fragment in response.json()["error"] and "\n" not in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "fragment"),
    [
        ("GET", "/v1/models/toaster", 404, 'no model "toaster"'),
        ("GET", "/v1/models/query_tower/versions/7", 404, "has no version 7"),
        ("GET", "/v1/models/query_tower/weights", 400, "Malformed request: GET"),
        ("PUT", "/v1/models/query_tower", 400, "Malformed request: PUT"),
        ("GET", "/toaster", 404, "no route /toaster"),
    ],
)
def test_errors_of_paths_are_json(http: httpx.Client, method: str, path: str, status: int, fragment: str) -> None:
    response = http.request(method, path)
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert fragment in response.json()["error"]


def samples(http: httpx.Client, name: str) -> dict[str, float]:
    """The samples of a metric by their labels."""
    response = http.get("/monitoring/prometheus/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        labels: float(value)
        for labels, value in re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", response.text, re.MULTILINE)
    }


def test_requests_are_counted_by_model_signature_entrypoint_and_code(server: Process, http: httpx.Client) -> None:
    def count(entrypoint: str, code: str, model: str = "query_tower", signature: str = "serving_default") -> float:
        labels = f'code="{code}",entrypoint="{entrypoint}",model="{model}",signature="{signature}"'
        return samples(http, "q2s_request_seconds_count").get(labels, 0.0)

    kinds = [("GRPC", "OK"), ("REST", "OK"), ("REST", "INVALID_ARGUMENT"), ("REST", "NOT_FOUND", "", "")]
    before = [count(*kind) for kind in kinds]
    for _ in range(3):
        server.prediction.Predict(predict_request())
    predict(http, {"instances": [ROW]})
    http.post("/v1/models/query_tower:predict", content=b"{")
    http.post("/v1/models/random-name:predict", json={"instances": [ROW]})
    assert [count(*kind) - was for kind, was in zip(kinds, before, strict=True)] == [3, 1, 1, 1]
    assert "random-name" not in http.get("/monitoring/prometheus/metrics").text


def test_the_histogram_resolves_a_tenth_of_a_millisecond(http: httpx.Client) -> None:
    predict(http, {"instances": [ROW]})
    bounds = {
        float(bound) for bound in re.findall(r'le="([\d.]+)"', str(list(samples(http, "q2s_request_seconds_bucket"))))
    }
    assert {0.0001, 0.0014, 0.0015, 0.0016, 10.0} <= bounds


def test_versions_and_the_cache_are_counted(server: Process, http: httpx.Client) -> None:
    assert samples(http, "q2s_version_loaded")['model="query_tower",version="1"'] == 1
    assert samples(http, "process_resident_memory_bytes")[""] > 1e6
    hit, miss = 'model="query_tower",result="hit"', 'model="query_tower",result="miss"'
    before = samples(http, "q2s_cache_requests_total")
    request = predict_request(query=["sent twice"], country=["US"])
    first, second = (server.prediction.Predict(request) for _ in range(2))
    assert first == second
    after = samples(http, "q2s_cache_requests_total")
    assert (after[hit] - before.get(hit, 0), after[miss] - before.get(miss, 0)) == (1, 1)


class CountedServable:
    """Stands for a loaded version: counts its answers, of 1,000 bytes unless the request has another size."""

    name = "query_tower"

    def __init__(self) -> None:
        self.loading = object()
        self.answers: list[str] = []

    def predict(self, request: predict_pb2.PredictRequest, _: object) -> SimpleNamespace:
        self.answers.append(request.model_spec.signature_name)
        size = int(request.model_spec.version_label or 1_000)
        return SimpleNamespace(SerializeToString=lambda: b"x" * size)


def test_cached_answers_are_bounded_by_time_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    models = ModelManager([])
    version = CountedServable()
    monkeypatch.setattr(models, "find", lambda spec: version)
    size = 1_000 + ENTRY_BYTES
    handler = RequestHandler(models, RequestLimits(), 3600, 3 * size)

    def computed(*names: str, label: str = "") -> list[str]:
        """The requests among these that are computed, not cached."""
        version.answers.clear()
        for name in names:
            spec = model_pb2.ModelSpec(signature_name=name, version_label=label)
            handler.predict(predict_pb2.PredictRequest(model_spec=spec))
        return version.answers

    assert computed("a", "b", "c", "b") == ["a", "b", "c"]
    assert computed("d", "b", "a") == ["d", "a"]  # "a", the least recently used, was evicted
    assert computed("huge", label=str(4 * size)) == ["huge"] and computed("d", "b") == []  # nothing is evicted for it
    version = CountedServable()
    assert computed("b") == ["b"]  # another loading of the version
    handler = RequestHandler(models, RequestLimits(), 1e-9, 3 * size)
    assert computed("b", "b") == ["b", "b"]  # the first answer has expired


def filled(body: str, **inputs: InputSpec) -> tuple[predict_pb2.PredictRequest, bool]:
    """The message that a body becomes for a signature with these inputs, and whether it is in row format."""
    return json_tensors.read(
        bytearray(body.encode()), model_pb2.ModelSpec(), lambda name: SimpleNamespace(inputs=inputs)
    )


def test_floats_have_only_the_digits_that_they_need() -> None:
    response = predict_pb2.PredictResponse()
    values = np.array([0.1, 1 / 3, -0.0, 1e-30, np.nan, np.inf, -np.inf], np.float32)
    response.outputs["x"].CopyFrom(tensor_proto.encode(values))
    body = json_tensors.render(response, rows=False).decode()
    assert body == '{"outputs": [0.1, 0.33333334, -0.0, 1e-30, NaN, Infinity, -Infinity]}'
    message, _ = filled(body.replace("outputs", "inputs"), x=InputSpec("x", types_pb2.DT_FLOAT, (None,)))
    np.testing.assert_array_equal(tensor_proto.decode(message.inputs["x"]), values)


@pytest.mark.parametrize(
    ("body", "row_format"),
    [
        ('{"instances": ["a", {"b64": "Yg=="}]}', True),
        ('{"inputs": ["a", "b"]}', False),
        ('{"inputs": {"query": ["a", "b"]}}', False),
    ],
)
def test_the_only_input_needs_no_name(body: str, row_format: bool) -> None:
    message, rows = filled(body, query=InputSpec("query", types_pb2.DT_STRING, (None,)))
    assert tensor_proto.decode(message.inputs["query"]).tolist() == [b"a", b"b"]
    assert rows == row_format


def test_outputs_that_are_not_text_are_written_as_bytes() -> None:
    response = predict_pb2.PredictResponse()
    response.outputs["id"].CopyFrom(tensor_proto.encode(np.array([b"a", b"\xff"], object)))
    response.outputs["raw_bytes"].CopyFrom(tensor_proto.encode(np.array([b"a", b"b"], object)))
    predictions = json.loads(json_tensors.render(response, rows=True))["predictions"]
    assert predictions == [
        {"id": "a", "raw_bytes": {"b64": "YQ=="}},
        {"id": {"b64": "/w=="}, "raw_bytes": {"b64": "Yg=="}},
    ]
