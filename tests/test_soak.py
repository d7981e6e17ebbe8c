"""Versions come and go under load: no failed request, no answer of the wrong version, no growing memory."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from server_process import Process, predict_request, wait_until

from q2s_tf.serving.warmup import write_warmup

VERSIONS = 10
CLIENTS = 4
QUERIES = 50
PLACE = b"v000"
"""What the ids of the first version begin with; in the file of another version its own number is put there."""
MEBIBYTE = 1 << 20


class Catalogue(tf.Module):
    """Says which version it is with every id; 8 MB of weights, so that a version that stays in memory shows."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable(tf.ones([2 * MEBIBYTE]))

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, "query"), tf.TensorSpec([None], tf.string, "country")]
    )
    def __call__(self, query: tf.Tensor, country: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"document_id": PLACE + b"-" + query + country, "score": self.weights[: tf.shape(query)[0]]}


def publish(first: Path, models: Path, version: int) -> None:
    """A copy of the first version with its own number in its ids, there at once."""
    aside = models / f".{version}"
    shutil.copytree(first, aside)
    graph = aside / "saved_model.pb"
    graph.write_bytes(graph.read_bytes().replace(PLACE, b"v%03d" % version))
    aside.rename(models / str(version))


def resident_bytes(process: Process) -> int:
    pages = Path(f"/proc/{process.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


@pytest.mark.parametrize(
    "seconds", [pytest.param(10, id="short"), pytest.param(120, id="long", marks=pytest.mark.slow)]
)
def test_versions_come_and_go_under_load(tmp_path: Path, seconds: int) -> None:
    catalogue = Catalogue()
    first = tmp_path / "first"
    tf.saved_model.save(catalogue, str(first), signatures={"serving_default": catalogue.__call__})
    write_warmup("catalogue", first, {"serving_default": catalogue.__call__})
    models = tmp_path / "models" / "catalogue"
    models.mkdir(parents=True)
    publish(first, models, 1)
    server = Process("--models", str(models.parent), "--cache-seconds", "3600")
    done = threading.Event()

    def ask(client: int) -> list[int]:
        versions = []
        random = np.random.default_rng(client)
        while not done.is_set():
            query = f"query {random.integers(QUERIES)}"  # some have been asked before, some have not
            response = server.prediction.Predict(
                predict_request("catalogue", query=[query], country=["US"]), timeout=20
            )
            version = response.model_spec.version.value
            assert tf.make_ndarray(response.outputs["document_id"]).tolist() == [f"v{version:03d}-{query}US".encode()]
            versions.append(version)
        return versions

    memory = []
    with ThreadPoolExecutor(CLIENTS) as threads:
        answers = [threads.submit(ask, client) for client in range(CLIENTS)]
        try:
            for version in range(2, VERSIONS + 2):
                started = time.monotonic()
                publish(first, models, version)
                wait_until(lambda version=version: server.status("catalogue").get(version, (0,))[0] == 30)
                if version > 3:
                    shutil.rmtree(models / str(version - 2))
                done.wait(seconds / VERSIONS - (time.monotonic() - started))
                memory.append(resident_bytes(server))
        finally:
            done.set()
        seen = [answer.result() for answer in answers]  # raises what a failed request raised
    for versions in seen:
        assert versions == sorted(versions)
    assert {version for versions in seen for version in versions} == set(range(1, VERSIONS + 2))
    assert memory[-1] - memory[2] < 20 * MEBIBYTE, [size // MEBIBYTE for size in memory]  # of 7 versions of 8 MiB
    assert server.stop() == (0, "")
