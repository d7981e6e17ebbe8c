"""Training in several real processes on this machine: the gradients of one, and a clear end when one of them dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_market import TinyMarket
from tiny_presets import make_bert

import q2s_tf
from q2s_tf.config import read_config
from q2s_tf.errors import InputError
from q2s_tf.training import train
from q2s_tf.training.workers import Workers

OVERRIDES = [
    "encoders.query.dropout=0.0",
    "encoders.document.dropout=0.0",
    "head.queries=20",
    "blending.weight=0.5",
    "stage1.batch_size=18",
    "stage1.symmetric=true",
]

ONE_STEP = """
import sys
from pathlib import Path
from q2s_tf.training.workers import Workers
workers = Workers()
import keras
import numpy as np
from q2s_tf.config import read_config
from q2s_tf.tables import open_documents, open_positives
from q2s_tf.text import Tokenizer
from q2s_tf.models import build_towers
from q2s_tf.training.build_examples import build_examples
from q2s_tf.training.learner import Learner
from q2s_tf.training.optimisation import LazyAdam, Optimizer
from q2s_tf.training.step import build_step

class Descent(keras.optimizers.SGD):
    # moves each weight by its gradient
    _all_reduce_sum_gradients = LazyAdam._all_reduce_sum_gradients

run, documents, positives, folder = map(Path, sys.argv[1:5])
stage, overrides = int(sys.argv[5]), sys.argv[6:]
config = read_config(run / "config.toml", overrides)
with workers.strategy.scope():
    towers = build_towers(config, Tokenizer.read(run / "tokenizer.model"))
towers.load_weights(run / "stage1.weights.h5")
catalogue = open_documents(documents, config.tower_inputs("document"), config.vector_inputs())
examples = build_examples(folder / f"examples{workers.index}", towers, catalogue, open_positives(positives))
learner = Learner(towers, workers, examples.labels.count)
learner.head.kernel.assign(np.random.default_rng(1).normal(size=learner.head.kernel.shape))
optimizer = Optimizer(learner.variables, workers, learner.text_variables(), config.stage1, 1e9, 1)
with workers.strategy.scope():
    optimizer.groups = [(Descent(1.0), members) for _, members in optimizer.groups]
    for descent, members in optimizer.groups:
        descent.build(members)
before = [variable.numpy() for variable in learner.variables]
dataset = examples.dataset(config.stage1.batch_size, (1,))
figures = build_step(learner, optimizer, stage, dataset.element_spec)(next(iter(dataset)))
gradients = [old - variable.numpy() for old, variable in zip(before, learner.variables)]
figures = {name: float(value) for name, value in figures.items()}
np.savez(folder / f"worker{workers.index}.npz", *gradients, **figures)
"""


def start(count: int, arguments: list[str], log: Path) -> list[subprocess.Popen]:
    """The same Python program in `count` processes that form a cluster; one process alone is no cluster."""
    ports = []
    for _ in range(count):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    processes = []
    for index in range(count):
        task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, **({"TF_CONFIG": json.dumps(task)} if count > 1 else {})}
        with (log / f"{count}-{index}.log").open("wb") as file:
            command = [sys.executable, *arguments]
            processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
    return processes


def one_step(count: int, stage: int, run: Path, market: TinyMarket, folder: Path) -> list[dict[str, np.ndarray]]:
    """Figures and gradients of one step, from every worker."""
    folder.mkdir()
    files = [str(path) for path in (run, market.documents, market.positives, folder)]
    processes = start(count, ["-c", ONE_STEP, *files, str(stage), *OVERRIDES], folder)
    codes = [process.wait(timeout=400) for process in processes]
    assert codes == [0] * count, "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
    return [dict(np.load(folder / f"worker{index}.npz")) for index in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "stage"), [(2, 1), (3, 1), (2, 2)])
def test_the_gradients_of_several_workers_are_those_of_one(
    count: int, stage: int, run: Path, market: TinyMarket, tmp_path: Path
) -> None:
    (alone,) = one_step(1, stage, run, market, tmp_path / "alone")
    assert {"loss", "blended_loss", "head_loss"} <= set(alone)
    assert sum(np.abs(values).max() > 1e-4 for values in alone.values()) > 20
    for worker in one_step(count, stage, run, market, tmp_path / "workers"):
        assert set(worker) == set(alone)
        for name, values in alone.items():
            np.testing.assert_allclose(worker[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


TRAIN = """
import sys
from pathlib import Path
from q2s_tf import cli
from q2s_tf.config import read_config
from q2s_tf.training import train

def main() -> None:
    config, documents, positives, validation, run = map(Path, sys.argv[1:6])
    train(read_config(config, sys.argv[7:]), documents, positives, validation, run, resume=sys.argv[6] == "resume")

sys.argv, arguments = sys.argv[:1], sys.argv
def command() -> None:
    sys.argv = arguments
    main()
cli.run(command)
"""


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_others_and_the_run_goes_on(market: TinyMarket, tmp_path: Path) -> None:
    epochs = ["stage1.max_epochs=400", "stage1.patience=400", "stage2.unconverged=true"]
    run = tmp_path / "run"
    files = [str(path) for path in (market.lean_config, market.documents, market.positives, market.judgements, run)]
    chief, other = start(2, ["-c", TRAIN, *files, "anew", *epochs], tmp_path)
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 3:
        assert chief.poll() is None, (tmp_path / "2-0.log").read_text()[-3000:]
        time.sleep(0.2)
    other.send_signal(signal.SIGKILL)
    assert chief.wait(timeout=200) == 2, (tmp_path / "2-0.log").read_text()[-3000:]
    assert "worker 0 of 2: another worker stopped" in (tmp_path / "2-0.log").read_text()
    before = len((run / "metrics.jsonl").read_text().splitlines())
    shorter = read_config(market.lean_config, [f"stage1.max_epochs={before + 2}", *epochs[1:]])
    train(shorter, market.documents, market.positives, market.judgements, run, resume=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, before + 3))
    assert q2s_tf.load(run).query.predict({"query": ["red sofa"]})["embedding"].any()


@pytest.mark.slow
def test_workers_that_begin_with_a_preset_train_as_one_process_does(market: TinyMarket, tmp_path: Path) -> None:
    make_bert(tmp_path / "preset")
    text = '{ tower = "document", kind = "text", input = "title", encoder = "own", max_tokens = 8 }'
    own = f'encoders.own={{ preset = "{tmp_path / "preset"}", num_layers = 2, pooling = "mean", dropout = 0.0 }}'
    overrides = [f"channels.title_text={text}", own, "stage1.max_epochs=2", "stage1.batch_size=18"]
    figures, vectors = [], []
    for count in (1, 2):
        run = tmp_path / f"run{count}"
        files = [str(path) for path in (market.lean_config, market.documents, market.positives, market.judgements, run)]
        processes = start(count, ["-c", TRAIN, *files, "anew", *overrides], tmp_path)
        codes = [process.wait(timeout=400) for process in processes]
        assert codes == [0] * count, "\n".join(path.read_text()[-2000:] for path in tmp_path.glob("*.log"))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        figures.append([[line[name] for name in ("loss", "gradient_norm", "validation_roc_auc")] for line in lines])
        titles = [row["title"] for row in market.document_rows]
        vectors.append(q2s_tf.load(run).document.predict({"title": titles})["embedding"])
    np.testing.assert_allclose(figures[1], figures[0], rtol=1e-3)
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-3)


@pytest.mark.parametrize("text", ["{", "[]", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}'])
def test_a_cluster_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match="TF_CONFIG: must be "):
        Workers()
