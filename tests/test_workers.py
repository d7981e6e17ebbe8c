"""Training by several processes on this machine: the gradients of one process, and an error when one is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_market import TEXT_OVERRIDES, TinyMarket
from tiny_presets import make_bert

import q2s_tf
from q2s_tf.config_files import read_config
from q2s_tf.errors import InputError
from q2s_tf.models import encode
from q2s_tf.training import train
from q2s_tf.training.workers import Workers

OVERRIDES = [
    "encoders.query.dropout=0.0",
    "encoders.document.dropout=0.0",
    "head.queries=20",
    "blending.weight=0.5",
    "stage1.batch_size=18",
    "stage1.symmetric=true",
    "clip_norm=1e9",
]

ONE_STEP = """
import sys
from pathlib import Path
from q2s_tf.training.workers import Workers
workers = Workers()
import keras
import numpy as np
from q2s_tf.config_files import read_config
from q2s_tf.models import build_towers, load_weights, read_tokenizers
from q2s_tf.tables import open_documents, open_positives
from q2s_tf.training import RetrievalModel
from q2s_tf.examples.prepare import build_examples
from q2s_tf.training.retrieval_model import classification_head, compile_stage

run, documents, positives, folder = map(Path, sys.argv[1:5])
stage, overrides = int(sys.argv[5]), sys.argv[6:]
config = read_config(run / "config.toml", overrides)
with workers.strategy.scope():
    towers = build_towers(config, read_tokenizers(run, config))
load_weights(towers, run / "stage1.weights.h5")
catalogue = open_documents(documents, config.tower_inputs("document"), config.vector_inputs())
part = workers.index, workers.count, workers.barrier
examples = build_examples(folder / "examples", towers, catalogue, open_positives(positives), None, *part)
dataset = examples.dataset(config.stage1.batch_size, (1,)).take(1)
with workers.strategy.scope():
    model = RetrievalModel(towers, classification_head(examples.labels.count, config.dimension))
    compile_stage(model, stage, steps_per_epoch=1)
    model.optimizer.build(model.trainable_variables)
model.head.kernel.assign(np.random.default_rng(1).normal(size=model.head.kernel.shape))
history = keras.callbacks.History()
workers.fit(model, dataset, 1, [history])
# After one step of Adam its first moments are a tenth of the gradients.
gradients = [10 * moment.numpy() for moment in model.optimizer.first_moments]
metrics = {name: values[0] for name, values in history.history.items()}
np.savez(folder / f"worker{workers.index}.npz", *gradients, **metrics)
"""


def start(count: int, arguments: list[str], log: Path, chief_output: int | None = None) -> list[subprocess.Popen]:
    """Starts a Python program in `count` processes that form a cluster, or in one process without a cluster."""
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
            output = file if index or chief_output is None else chief_output
            processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
    return processes


def one_step(count: int, stage: int, run: Path, market: TinyMarket, folder: Path) -> list[dict[str, np.ndarray]]:
    """Metrics and gradients of one step, from every worker."""
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
from q2s_tf.config_files import read_config
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
def test_the_loss_of_a_worker_ends_the_others_and_the_run_is_resumed(market: TinyMarket, tmp_path: Path) -> None:
    epochs = ["stage1.max_epochs=400", "stage1.patience=400", "stage2.unconverged=true", *TEXT_OVERRIDES]
    run = tmp_path / "run"
    files = [str(path) for path in (market.lean_config, market.documents, market.positives, market.judgements, run)]
    chief, other = start(2, ["-c", TRAIN, *files, "anew", *epochs], tmp_path, chief_output=subprocess.PIPE)
    assert chief.stdout is not None
    output = ""
    for line in chief.stdout:
        output += line.decode()
        if "stage 1 epoch 2:" in output and other.poll() is None:
            other.send_signal(signal.SIGKILL)
    assert chief.wait(timeout=200) == 2, output[-3000:]
    assert "worker 0 of 2: another worker stopped" in output
    last = epochs_of(run)[-1]["epoch"]
    shorter = read_config(market.lean_config, [f"stage1.max_epochs={last + 2}", *epochs[1:]])
    train(shorter, market.documents, market.positives, market.judgements, run, resume=True)
    assert [line["epoch"] for line in epochs_of(run)] == list(range(last + 3))
    assert q2s_tf.load(run).encode_queries(["red sofa"]).any()


def epochs_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_workers_train_a_preset_as_one_process_does(market: TinyMarket, tmp_path: Path) -> None:
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
        figures.append([line[name] for line in epochs_of(run) for name in ("loss", "val_roc_auc") if name in line])
        vectors.append(encode(q2s_tf.load(run).document, [row["title"] for row in market.document_rows])["embedding"])
    assert len(figures[0]) == 5
    np.testing.assert_allclose(figures[1], figures[0], rtol=1e-3)
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-3)


@pytest.mark.parametrize("text", ["{", "[]", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}'])
def test_a_tf_config_of_another_kind_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match="TF_CONFIG: must be "):
        Workers()
