"""Training as a whole: it learns, it repeats itself, it goes on after a kill, and it leaves nothing of a failure."""

import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from tiny_market import TinyMarket, judged_auc

import q2s_tf
from q2s_tf.config import Config, read_config
from q2s_tf.errors import InputError
from q2s_tf.models import Towers, build_towers
from q2s_tf.text import Tokenizer
from q2s_tf.training import train
from q2s_tf.training.learner import Learner
from q2s_tf.training.optimisation import Optimizer
from q2s_tf.training.workers import Workers

TEXT_OVERRIDES = [
    'channels.query_text={ tower = "query", kind = "text", input = "query", encoder = "query", max_tokens = 8 }',
    "encoders.query={ num_layers = 1, num_heads = 2, hidden_dim = 16, intermediate_dim = 32, dropout = 0.2 }",
]
"""Gives the lean config a text encoder, and with it dropout."""


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def train_lean(market: TinyMarket, run: Path, overrides: list[str], **other: Any) -> Towers:
    config = read_config(market.lean_config, overrides)
    files = {"documents": market.documents, "positives": market.positives, "validation": market.judgements}
    return train(config, **{**files, "run": run, **other})


def weights_of(towers: Towers) -> list[np.ndarray]:
    return [variable.numpy() for variable in towers.trainable_variables]


# --- what a run leaves


def test_a_run_directory_holds_what_the_design_says(run: Path, market: TinyMarket) -> None:
    names = {path.name for path in run.iterdir()}
    files = {"config.toml", "tokenizer.model", "stage1.weights.h5", "stage2.weights.h5", "metrics.jsonl"}
    assert names == files | {"tensorboard", "checkpoints"}
    resolved, given = read_config(run / "config.toml"), read_config(market.config)
    assert resolved.channels["query_country"].values == ("ae", "jp", "us")  # type: ignore[union-attr]
    assert resolved.channels["language"].values == ("ar", "en", "ja", "ru")  # type: ignore[union-attr]
    assert resolved.model_copy(update={"channels": given.channels}) == given, "nothing else is filled in"


def test_metrics_are_lines_of_json_and_the_same_in_tensorboard(run: Path) -> None:
    lines = metrics(run)
    assert [(line["stage"], line["epoch"], line["step"]) for line in lines] == [(1, 1, 11), (2, 1, 11)]
    board: dict[tuple[str, int], float] = {}
    for path in (run / "tensorboard").glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                board[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    for line in lines:
        assert all(math.isfinite(value) for value in line.values())
        assert 0 <= line["batch_recall@1"] <= 1
        for name in ("loss", "validation_roc_auc", "batch_recall@1", "gradient_norm", "seconds", "pairs_per_second"):
            assert board[f"stage{line['stage']}/{name}", line["step"]] == pytest.approx(line[name], rel=1e-5)


def test_the_second_stage_never_ends_below_the_first(run: Path, market: TinyMarket) -> None:
    first, second = (judged_auc(q2s_tf.load(run, stage), market) for stage in (1, 2))
    assert second >= first - 1e-9
    assert first == pytest.approx(metrics(run)[0]["validation_roc_auc"], abs=1e-6)


# --- it learns


@pytest.fixture(scope="module")
def slang(market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Queries in words that no title has: what connects them is in the positives alone."""
    folder = tmp_path_factory.mktemp("slang")
    syllables = ["zu", "ko", "mip", "wex", "dra", "fon", "gly", "hab", "jin", "lur", "nop", "pev", "qua", "rit", "sab"]
    product = {row["document_id"]: row["title"].split()[-1] for row in market.document_rows}
    products = list(dict.fromkeys(product.values()))
    spoken = {document: syllables[products.index(its)] for document, its in product.items()}
    positives = [{**row, "query": spoken[row["document_id"]], "country": "US"} for row in market.positive_rows]
    judgements = []
    for number, document in enumerate(spoken):
        other = list(spoken)[(number + 17) % len(spoken)]
        for judged, relevance in ((document, 2.0), (other, 0.0)):
            row = {"query": spoken[document], "country": "US", "document_id": judged, "relevance": relevance}
            judgements.append(row)
    return {
        "positives": write_rows(folder / "positives.parquet", positives),
        "validation": write_rows(folder / "judgements.parquet", judgements),
    }


def test_training_learns_what_only_the_positives_tell_and_stops_when_it_knows(
    market: TinyMarket, slang: dict[str, Path], tmp_path: Path
) -> None:
    overrides = ["stage1.max_epochs=40", "stage1.patience=2"]
    train_lean(market, tmp_path / "run", overrides, **slang)
    lines = metrics(tmp_path / "run")
    aucs, losses = [line["validation_roc_auc"] for line in lines], [line["loss"] for line in lines]
    assert losses[-1] < 0.5 * losses[0]
    assert max(aucs) > 0.95
    assert len(aucs) < 40, "it stopped by itself"
    assert len(aucs) == 1 + aucs.index(max(aucs)) + 2, "two epochs after the first of the best"
    untrained = ["stage1.max_epochs=1", "stage1.learning_rate=1e-9", "stage1.text_learning_rate=1e-9"]
    train_lean(market, tmp_path / "untrained", untrained, **slang)
    assert metrics(tmp_path / "untrained")[0]["validation_roc_auc"] < 0.7, "the task is not solved before training"


# --- it repeats itself


def test_the_same_seed_gives_the_same_weights(market: TinyMarket, tmp_path: Path) -> None:
    overrides = [*TEXT_OVERRIDES, "stage1.max_epochs=1"]
    first, again = (weights_of(train_lean(market, tmp_path / name, overrides)) for name in ("first", "again"))
    for mine, theirs in zip(first, again, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


KILLED_IN_AN_EPOCH = """
import os, signal, sys
from pathlib import Path
from q2s_tf.config import read_config
from q2s_tf.training import train
from q2s_tf.training.examples import Examples

config, documents, positives, validation, run = map(Path, sys.argv[1:6])
stage, epoch, resume = int(sys.argv[6]), int(sys.argv[7]), sys.argv[8] == "resume"
batches = Examples.batches

def batches_until_the_kill(self, batch_size, seed):
    for number, batch in enumerate(batches(self, batch_size, seed)):
        if seed[1:] == (stage, epoch) and number == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

Examples.batches = batches_until_the_kill
train(read_config(config), documents, positives, validation, run, resume=resume)
"""


def killed(config: Path, market: TinyMarket, run: Path, stage: int, epoch: int, resume: bool) -> None:
    """Trains in another process, which is killed in the middle of an epoch."""
    files = [config, market.documents, market.positives, market.judgements, run]
    arguments = [*map(str, files), str(stage), str(epoch), "resume" if resume else "anew"]
    done = subprocess.run([sys.executable, "-c", KILLED_IN_AN_EPOCH, *arguments], capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:].decode()


def assert_same_run(run: Path, whole: Path) -> None:
    measured = ("stage", "epoch", "step", "loss", "batch_recall@1", "validation_roc_auc", "gradient_norm")
    lines, expected = metrics(run), metrics(whole)
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        assert {name: line[name] for name in measured} == pytest.approx(
            {name: other[name] for name in measured}, rel=1e-3
        )
    for mine, theirs in zip(weights_of(q2s_tf.load(run)), weights_of(q2s_tf.load(whole)), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-3)


def test_a_killed_run_goes_on_to_the_same_end(market: TinyMarket, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    stage2 = "max_epochs = 1, batch_size = 16, unconverged = true"
    text = market.lean_config.read_text(encoding="utf-8").replace("max_epochs = 0", stage2)
    config.write_text(text, encoding="utf-8")
    files = (market.documents, market.positives, market.judgements)
    killed(config, market, tmp_path / "run", stage=1, epoch=3, resume=False)
    assert [line["epoch"] for line in metrics(tmp_path / "run")] == [1, 2]
    train(read_config(config), *files, tmp_path / "run", resume=True)
    train(read_config(config), *files, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_run_with_dropout_killed_in_both_stages_goes_on_to_the_same_end(market: TinyMarket, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    text = market.config.read_text(encoding="utf-8").replace("max_epochs = 1", "max_epochs = 3")
    config.write_text(text, encoding="utf-8")
    files = (market.documents, market.positives, market.judgements)
    killed(config, market, tmp_path / "run", stage=1, epoch=2, resume=False)
    killed(config, market, tmp_path / "run", stage=2, epoch=2, resume=True)
    train(read_config(config), *files, tmp_path / "run", resume=True)
    train(read_config(config), *files, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


# --- what it refuses


def test_resuming_another_config_or_nothing_is_refused(run: Path, market: TinyMarket, tmp_path: Path) -> None:
    files = (market.documents, market.positives, market.judgements)
    with pytest.raises(InputError, match="was trained with another config .differs in seed."):
        train(read_config(market.config, ["seed=6"]), *files, run, resume=True)
    with pytest.raises(InputError, match="not a run directory"):
        train(read_config(market.config), *files, tmp_path / "absent", resume=True)
    assert not (tmp_path / "absent").exists()


def test_resuming_a_finished_run_changes_nothing(run: Path, market: TinyMarket, towers: Towers) -> None:
    before = (run / "metrics.jsonl").read_text()
    files = (market.documents, market.positives, market.judgements)
    again = train(read_config(market.config), *files, run, resume=True)
    assert (run / "metrics.jsonl").read_text() == before
    for mine, theirs in zip(weights_of(again), weights_of(towers), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_run_that_is_there_is_not_touched(market: TinyMarket, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already and is not empty"):
        train_lean(market, tmp_path / "run", [])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def failing_input(market: TinyMarket, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is wrong, as the message says it, and the arguments of `train` that are wrong."""
    documents, positives, judgements = market.document_rows, market.positive_rows, market.judgement_rows
    yield "no such file", {"documents": folder / "absent.parquet"}
    yield "no such file", {"validation": folder / "absent.parquet"}
    yield "may occur once; 'd00'", {"documents": write_rows(folder / "twice.parquet", [*documents, documents[0]])}
    unknown = write_rows(folder / "unknown.parquet", [{**row, "document_id": "x"} for row in positives])
    yield "no row has a query and a document of", {"positives": unknown}
    alike = write_rows(folder / "alike.parquet", [{**row, "relevance": 2.0} for row in judgements])
    yield "need relevant and irrelevant pairs", {"validation": alike}
    elsewhere = write_rows(folder / "elsewhere.parquet", [{**row, "document_id": "x"} for row in judgements])
    yield "no row has a query, a rating and a document", {"validation": elsewhere}
    (folder / "nonsense.model").write_bytes(b"nonsense")
    yield "not a SentencePiece model", {"tokenizer": folder / "nonsense.model"}
    silent = [{**row, "query": "\u200b"} for row in positives]
    untitled = write_rows(folder / "untitled.parquet", [{**row, "title": "\u200b"} for row in documents])
    empty = {"documents": untitled, "positives": write_rows(folder / "silent.parquet", silent)}
    yield "there is no text to train it on", empty


def test_a_failure_leaves_no_run_directory(market: TinyMarket, tmp_path: Path) -> None:
    for message, wrong in failing_input(market, tmp_path):
        with pytest.raises(InputError, match=message):
            train_lean(market, tmp_path / "run", [], **wrong)
        assert not (tmp_path / "run").exists(), message


def test_a_rank_that_no_batch_has_is_refused_before_anything_is_trained(market: TinyMarket, tmp_path: Path) -> None:
    stage2 = "stage2={max_epochs=1, batch_size=10000, negative_rank=5000}"
    with pytest.raises(InputError, match="stage2.negative_rank is 5000, but a batch of .* only .* other documents"):
        train(
            read_config(market.lean_config, [stage2]),
            market.documents,
            market.positives,
            market.judgements,
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_image_vectors_of_another_dimension_are_refused(market: TinyMarket, tmp_path: Path) -> None:
    rows = [{**row, "image_embeddings": [[1.0, 2.0]]} for row in market.document_rows]
    documents = write_rows(tmp_path / "wide.parquet", rows)
    with pytest.raises(InputError, match=r"image_embeddings: row 0 must be a list of vectors of 8 finite numbers; got"):
        train(read_config(market.config), documents, market.positives, market.judgements, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_given_tokenizer_is_the_runs_own(run: Path, market: TinyMarket, tmp_path: Path) -> None:
    overrides = ["stage1.max_epochs=1"]
    train_lean(market, tmp_path / "run", overrides, tokenizer=run / "tokenizer.model")
    assert (tmp_path / "run/tokenizer.model").read_bytes() == (run / "tokenizer.model").read_bytes()
    assert not (tmp_path / "run/stage2.weights.h5").exists(), "a stage of no epochs is not trained"


# --- the optimizer


@pytest.fixture(scope="module")
def fresh(run: Path) -> tuple[Config, Towers]:
    factor = "encoders.document.learning_rate_factor=0.2"
    rates = ["stage1.learning_rate=7e-4", "stage1.text_learning_rate=2e-4", factor]
    config = read_config(run / "config.toml", rates)
    return config, build_towers(config, Tokenizer.read(run / "tokenizer.model"))


def test_text_encoders_learn_at_their_own_rate(fresh: tuple[Config, Towers]) -> None:
    config, towers = fresh
    learner = Learner(towers, Workers())
    optimizer = Optimizer(
        learner.variables, learner.workers, learner.text_variables(), config.stage1, config.clip_norm, decay_steps=100
    )
    document = towers.document.encoder.get_layer("document_text_encoder").trainable_variables
    before = weights_of(towers)
    norm = optimizer.apply([tf.ones(variable.shape) for variable in towers.trainable_variables])
    assert float(norm) == pytest.approx(math.sqrt(sum(weight.size for weight in before)), rel=1e-4), "before clipping"
    # Adam's first step is the rate itself, whatever the size of the gradient.
    seen = set()
    for variable, old in zip(towers.trainable_variables, before, strict=True):
        text = not re.search("_vector/|^fusion/", variable.path)
        rate = (4e-5 if any(variable is inside for inside in document) else 2e-4) if text else 7e-4
        seen.add(rate)
        np.testing.assert_allclose(old - variable.numpy(), rate, rtol=0.01, err_msg=variable.path)
    assert seen == {4e-5, 2e-4, 7e-4}
