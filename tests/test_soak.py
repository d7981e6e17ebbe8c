"""New versions under load: no request fails, no answer is from the wrong version, and memory does not grow."""

import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from server_process import Process, predict_request

from q2s_tf.serving.warmup import write_warmup

CLIENTS = 4
QUERIES = 50
ANSWERS = 50
"""The answers that each client receives from a version before the next one is published."""
PREFIX = b"v000"
"""A prefix of the ids of the first version; the files of another version have its number in this place."""
MEBIBYTE = 1 << 20


class VersionedModel(tf.Module):
    """Returns ids that begin with the version; has 8 MiB of weights, to detect a version that stays in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable(tf.ones([2 * MEBIBYTE]))

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, "query"), tf.TensorSpec([None], tf.string, "country")]
    )
    def __call__(self, query: tf.Tensor, country: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"document_id": PREFIX + b"-" + query + country, "score": self.weights[: tf.shape(query)[0]]}


def publish(first: Path, models: Path, version: int) -> None:
    """Copies the first version with another prefix; the copy appears at once."""
    temporary = models / f".{version}"
    shutil.copytree(first, temporary)
    graph = temporary / "saved_model.pb"
    graph.write_bytes(graph.read_bytes().replace(PREFIX, b"v%03d" % version))
    temporary.rename(models / str(version))


@pytest.mark.parametrize("versions", [11, pytest.param(100, marks=pytest.mark.slow)])
def test_versions_are_replaced_under_load(tmp_path: Path, versions: int) -> None:
    model = VersionedModel()
    first = tmp_path / "first"
    tf.saved_model.save(model, str(first), signatures={"serving_default": model.__call__})
    write_warmup("catalogue", first, {"serving_default": model.__call__})
    models = tmp_path / "models" / "catalogue"
    models.mkdir(parents=True)
    publish(first, models, 1)
    server = Process("--models", str(models.parent), "--cache-seconds", "3600")
    done = threading.Event()
    answered = threading.Condition()
    counts: Counter[tuple[int, int]] = Counter()  # answers by client and version

    def query(client: int) -> list[int]:
        received = []
        random = np.random.default_rng(client)
        while not done.is_set():
            text = f"query {random.integers(QUERIES)}"  # some are in the cache, some are not
            request = predict_request("catalogue", query=[text], country=["US"])
            response = server.prediction.Predict(request, timeout=60)
            version = response.model_spec.version.value
            assert tf.make_ndarray(response.outputs["document_id"]).tolist() == [f"v{version:03d}-{text}US".encode()]
            received.append(version)
            with answered:
                counts[client, version] += 1
                answered.notify()
        return received

    memory = []
    with ThreadPoolExecutor(CLIENTS) as threads:
        clients = [threads.submit(query, client) for client in range(CLIENTS)]

        def is_answered(version: int) -> bool:
            """Whether all clients have their answers of a version, or one has failed."""
            enough = all(counts[client, version] >= ANSWERS for client in range(CLIENTS))
            return enough or any(client.done() for client in clients)

        try:
            for version in range(1, versions + 1):
                if version > 1:
                    publish(first, models, version)
                with answered:
                    assert answered.wait_for(lambda version=version: is_answered(version), timeout=120)
                if version > 3:
                    shutil.rmtree(models / str(version - 2))
                memory.append(server.resident_bytes())
        finally:
            done.set()
        received = [client.result() for client in clients]  # raises what a failed request raised
    for numbers in received:
        assert numbers == sorted(numbers)
        assert set(numbers) == set(range(1, versions + 1))
    # Of seven versions or more with 8 MiB each.
    assert memory[-1] - memory[3] < 20 * MEBIBYTE, [size // MEBIBYTE for size in memory]
    assert server.stop() == (0, "")
