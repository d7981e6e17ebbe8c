"""Random requests and damaged saved models: no internal error, no growth of memory, and the next request is answered.

The default suite sends a few; `make test-slow` sends 10,000 over each protocol and publishes 400 damaged versions.
"""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import serving_models
import tensorflow as tf
from server_process import Process, predict_request, wait_until
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

MEBIBYTE = 1 << 20
PROBE_EVERY = 1000
PREDICTION = "/tensorflow.serving.PredictionService/"
MODELS = "/tensorflow.serving.ModelService/"
EXPECTED = {
    "OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "OUT_OF_RANGE", "PERMISSION_DENIED",
}  # fmt: skip
"""The codes of answers to bad requests."""
SIGNATURES: dict[tuple[str, str], dict[str, Any]] = {
    ("query_tower", ""): {"query": ["red sofa"], "country": ["US"]},
    ("document_tower", ""): {
        **{key: ["a", "b"] for key in ("title", "description", "language", "country")},
        "image_embeddings": np.zeros((2, 1, serving_models.IMAGE_DIM), np.float32),
    },
    ("retriever", "retrieve"): {
        **{"query": ["a"], "country": [""], "k": 3, "effort": 1},
        **{"min_score": np.float32(-1), "lexical_weight": np.float32(0)},
    },
    ("retriever", "by_embedding"): {
        "embedding": np.ones((2, serving_models.DIM), np.float32),
        "k": 3,
        "effort": 1,
        "min_score": np.float32(0),
    },
}
TEXTS = ["", "a", "red sofa", "đỏ", "\x00", "\ud83d", "😀" * 50, "../..", "%2e%2e", "a" * 5000, "retrieve", "labels/x"]
NUMBERS: list[Any] = [0, 1, -1, 7, 2**31 - 1, 2**31, -(2**63), 2**63, 10**400, 0.5, 1e39, 1e400, float("nan"), True]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    serving_models.save_all(folder)
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Process]:
    process = Process("--models", str(models), "--rest-port", "0", "--cache-seconds", "60", "--cache-bytes", "1000000")
    yield process
    assert process.stop() == (0, "")


def choose(rng: random.Random, values: Any) -> Any:
    return rng.choice(list(values))


def random_tensor(rng: random.Random, value: Any) -> tensor_pb2.TensorProto:
    """The tensor of a value, in most cases with something wrong."""
    tensor = tf.make_tensor_proto(value)
    for _ in range(rng.randrange(3)):
        match rng.randrange(7):
            case 0:
                tensor.dtype = choose(rng, [0, 1, 3, 7, 9, 19, 101, 12345])
            case 1:
                tensor.tensor_shape.dim.add(size=choose(rng, [-1, 0, 1, 2, 4096, 2**40, 2**62]))
            case 2 if tensor.tensor_shape.dim:
                choose(rng, tensor.tensor_shape.dim).size = choose(rng, [-1, 0, 1, 2, 3, 4097, 2**62])
            case 3:
                tensor.string_val.append(rng.randbytes(rng.randrange(2000)))
            case 4:
                tensor.tensor_content = rng.randbytes(rng.randrange(64))
            case 5:
                tensor.float_val.extend([float("nan"), 1.0][: rng.randrange(3)])
            case 6:
                tensor.tensor_shape.unknown_rank = rng.random() < 0.5
    return tensor


def random_call(rng: random.Random) -> tuple[str, bytes]:
    """A method and a message, close to a valid request."""
    (model, signature), inputs = choose(rng, SIGNATURES.items())
    if rng.random() < 0.1:
        message: Any = choose(
            rng, [get_model_status_pb2.GetModelStatusRequest(), get_model_metadata_pb2.GetModelMetadataRequest()]
        )
        message.model_spec.name = choose(rng, [model, "", "toaster"])
        method = choose(rng, [f"{MODELS}GetModelStatus", f"{PREDICTION}GetModelMetadata", f"{PREDICTION}Classify"])
    else:
        method, message = f"{PREDICTION}Predict", predict_pb2.PredictRequest()
        message.model_spec.name = model if rng.random() < 0.95 else choose(rng, ["", "toaster", "query_tower\n"])
        message.model_spec.signature_name = signature if rng.random() < 0.9 else choose(rng, ["", "nope", "retrieve"])
        for key, value in inputs.items():
            if rng.random() < 0.95:
                message.inputs[key].CopyFrom(random_tensor(rng, value))
        if rng.random() < 0.1:
            message.output_filter.append(choose(rng, ["score", "embedding", "", "nope"]))
        if rng.random() < 0.1:
            message.inputs["price"].CopyFrom(random_tensor(rng, 3))
    if rng.random() < 0.1:
        message.model_spec.version.value = choose(rng, [1, 0, -1, 7, 2**63 - 1])
    content = bytearray(message.SerializeToString())
    if content and rng.random() < 0.15:
        for _ in range(rng.randrange(5)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        if rng.random() < 0.3:
            del content[rng.randrange(len(content)) :]
    return method, bytes(content)


def random_value(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """A JSON value, in most cases other than the given one."""
    match rng.randrange(8):
        case 0:
            return choose(rng, TEXTS)
        case 1:
            return choose(rng, NUMBERS)
        case 2:
            return choose(rng, [None, [], {}, {"b64": "YQ=="}, {"b64": "?"}, {"b64": 3}])
        case 3 if depth < 4:
            return [random_value(rng, value, depth + 1) for _ in range(rng.randrange(4))]
        case 4:
            for _ in range(rng.choice([1, 2, 9, 65, 300])):
                value = [value]
            return value
        case 5 if depth < 4:
            return {choose(rng, TEXTS): random_value(rng, value, depth + 1)}
    return value


def random_post(rng: random.Random) -> tuple[str, bytes]:
    """The path and the body of a Predict request, close to a valid one."""
    (model, signature), inputs = choose(rng, SIGNATURES.items())
    columns = {key: np.asarray(value).tolist() for key, value in inputs.items()}
    columns = {k: v if rng.random() < 0.7 else random_value(rng, v) for k, v in columns.items() if rng.random() < 0.97}
    body: Any = {"signature_name": signature or "serving_default"}
    if rng.random() < 0.5:
        body["inputs"] = columns
    else:
        body["instances"] = [
            {key: value[0] if isinstance(value, list) and value else value for key, value in columns.items()}
        ]
    for key in ("signature_name", "inputs", "instances", "output_filter"):
        if rng.random() < 0.05:
            body[key] = random_value(rng, body.get(key))
    content = bytearray(json.dumps(random_value(rng, body) if rng.random() < 0.03 else body).encode())
    if rng.random() < 0.15:
        for _ in range(rng.randrange(1, 5)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    path = choose(
        rng, ["", "", "", "", "/versions/1", "/versions/" + "9" * 4301, "/labels/x", "/versions/x", "/%F0%9F"]
    )
    return f"/v1/models/{model}{path}:predict", bytes(content)


class Probe:
    """A known request and its answer, and a bound of the memory."""

    def __init__(self, server: Process) -> None:
        self.server = server
        self.expected, self.memory = self.answer(), server.resident_bytes()

    def answer(self) -> list[list[float]]:
        outputs = self.server.prediction.Predict(predict_request(), timeout=30).outputs
        return tf.make_ndarray(outputs["embedding"]).tolist()

    def check(self) -> None:
        assert self.answer() == self.expected
        assert self.server.resident_bytes() - self.memory < 300 * MEBIBYTE


COUNTS = [150, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]


@pytest.mark.parametrize("count", COUNTS)
def test_random_grpc_requests_cause_no_internal_error(server: Process, count: int) -> None:
    rng = random.Random(count)
    probe = Probe(server)
    for number in range(count):
        method, content = random_call(rng)
        try:
            server.channel.unary_unary(method)(content, timeout=30)
            code = "OK"
        except grpc.RpcError as error:
            code = error.code().name
            assert code in EXPECTED, (number, method, content, error.details())
        if number % PROBE_EVERY == 0:
            probe.check()
    probe.check()


@pytest.mark.parametrize("count", COUNTS)
def test_random_rest_requests_cause_no_internal_error(server: Process, count: int) -> None:
    rng = random.Random(count)
    probe = Probe(server)
    with httpx.Client(base_url=server.rest, timeout=30) as client:
        for number in range(count):
            path, content = random_post(rng)
            response = client.post(path, content=content)
            assert response.status_code < 500, (number, path, content, response.text)
            assert response.status_code == 200 or set(response.json()) == {"error"}, (path, content, response.text)
            if number % PROBE_EVERY == 0:
                probe.check()
    probe.check()


def damage(rng: random.Random, version: Path) -> None:
    """Flips bits of a file, cuts it or removes it."""
    path = choose(rng, [path for path in sorted(version.rglob("*")) if path.is_file()])
    content = bytearray(path.read_bytes())
    match rng.randrange(3):
        case 0:
            for _ in range(rng.randrange(1, 9)):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
        case 1:
            path.write_bytes(content[: rng.randrange(len(content))])
        case 2:
            path.unlink()


@pytest.mark.parametrize("count", [4, pytest.param(400, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_damaged_versions_do_not_disturb_other_models(models: Path, tmp_path: Path, count: int) -> None:
    for name in ("query_tower", "retriever"):
        shutil.copytree(models / name, tmp_path / name)
    server = Process("--models", str(tmp_path))
    probe = Probe(server)
    rng = random.Random(count)
    for version in range(2, count + 2):
        hidden, shown = (tmp_path / "retriever" / name for name in (f".{version}", str(version)))
        shutil.copytree(models / "retriever" / "1", hidden)
        damage(rng, hidden)
        hidden.rename(shown)
        wait_until(lambda version=version: server.status("retriever").get(version, (0, ""))[0] in (30, 50))  # type: ignore[misc]
        shutil.rmtree(shown)
        if version % 100 == 0:
            probe.check()
    probe.check()
    assert server.stop() == (0, "")
