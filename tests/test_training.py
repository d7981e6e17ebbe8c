"""Training as a whole: what it learns, repeats, resumes after a kill, refuses, and leaves behind."""

import dataclasses
import importlib
import json
import math
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import preloaded
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from tiny_market import TinyMarket, judged_auc

import q2s_tf
from q2s_tf.config_files import read_config
from q2s_tf.errors import InputError
from q2s_tf.files import exclusive
from q2s_tf.models import Towers, build_towers, read_tokenizers
from q2s_tf.tables import Table
from q2s_tf.training import train
from q2s_tf.training.callbacks import EpochBackups, StepProgress


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
    logs = {"stage1.csv", "stage2.csv", "tensorboard", "checkpoints", "training.lock"}
    assert names == files | logs
    resolved, given = read_config(run / "config.toml"), read_config(market.config)
    assert resolved.channels["query_country"].values == ("ae", "jp", "us")  # type: ignore[union-attr]
    assert resolved.channels["language"].values == ("ar", "en", "ja", "ru")  # type: ignore[union-attr]
    assert resolved.model_copy(update={"channels": given.channels}) == given, "nothing else is filled in"


def test_metrics_are_lines_of_json_and_the_same_in_tensorboard_and_csv(run: Path) -> None:
    lines = metrics(run)
    assert [(line["stage"], line["epoch"], line["step"]) for line in lines] == [
        (1, 0, 0),
        (1, 1, 11),
        (2, 0, 0),
        (2, 1, 11),
    ]
    assert lines[2]["val_roc_auc"] == pytest.approx(max(line["val_roc_auc"] for line in lines[:2]), abs=1e-9)
    for line in lines[1::2]:
        folder = run / "tensorboard" / f"stage{line['stage']}"
        board = {name: value for part in ("train", "validation") for name, value in scalars(folder / part).items()}
        header, values = (run / f"stage{line['stage']}.csv").read_text().splitlines()
        row = dict(zip(header.split(","), values.split(","), strict=True))
        assert all(math.isfinite(value) for value in line.values())
        assert 0 <= line["batch_recall@1"] <= 1
        assert {"loss", "val_roc_auc", "batch_recall@1", "seconds", "pairs_per_second"} <= set(line)
        for name in set(line) - {"stage", "epoch", "step"}:
            assert float(row[name]) == pytest.approx(line[name], rel=1e-5)
            assert board[f"epoch_{name.removeprefix('val_')}"] == pytest.approx(line[name], rel=1e-5)


def scalars(folder: Path) -> dict[str, float]:
    """The scalars of a TensorBoard log by tag."""
    values = {}
    for path in folder.glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            values |= {value.tag: float(tf.make_ndarray(value.tensor)) for value in event.summary.value}
    return values


def test_each_stage_leaves_its_best_weights_and_the_second_is_never_worse(run: Path, market: TinyMarket) -> None:
    first, second = (judged_auc(q2s_tf.load(run, stage), market) for stage in (1, 2))
    assert second >= first - 1e-9
    by_stage = [[line["val_roc_auc"] for line in metrics(run) if line["stage"] == stage] for stage in (1, 2)]
    assert [first, second] == pytest.approx([max(values) for values in by_stage], abs=1e-6)


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


def test_training_learns_the_positives_and_stops_with_the_best_weights(
    market: TinyMarket, slang: dict[str, Path], tmp_path: Path
) -> None:
    towers = train_lean(market, tmp_path / "run", ["stage1.max_epochs=40", "stage1.patience=2"], **slang)
    lines = metrics(tmp_path / "run")
    aucs, losses = [line["val_roc_auc"] for line in lines], [line["loss"] for line in lines[1:]]
    assert losses[-1] < 0.5 * losses[0]
    assert aucs[0] < 0.7, "the task is not solved before training"
    assert max(aucs) > 0.95
    assert len(aucs) < 41, "it has stopped early"
    assert len(aucs) == 1 + aucs.index(max(aucs)) + 2, "two epochs after the first of the best"
    judged = dataclasses.replace(market, judgement_rows=pq.read_table(slang["validation"]).to_pylist())
    assert judged_auc(towers, judged) == pytest.approx(max(aucs), abs=1e-6)
    assert judged_auc(q2s_tf.load(tmp_path / "run"), judged) == pytest.approx(max(aucs), abs=1e-6)


def test_epoch_0_can_be_the_best_one(market: TinyMarket, tmp_path: Path) -> None:
    """Titles answer the queries of this market by their 3-grams alone; training cannot exceed a ROC AUC of 1."""
    towers = train_lean(market, tmp_path / "run", ["stage1.patience=1"])
    assert [line["epoch"] for line in metrics(tmp_path / "run")] == [0, 1]
    config = read_config(tmp_path / "run/config.toml")
    fresh = build_towers(config, read_tokenizers(tmp_path / "run", config))
    for trained, initial in zip(weights_of(towers), weights_of(fresh), strict=True):
        np.testing.assert_array_equal(trained, initial)


def test_the_catalogue_is_read_twice(market: TinyMarket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    batches = Table.batches

    def counted(table: Table, *arguments: Any) -> Iterator[pa.RecordBatch]:
        reads.append(table.kind)
        yield from batches(table, *arguments)

    monkeypatch.setattr(Table, "batches", counted)
    pseudo = ["pseudo_queries.per_document=1", "head.queries=5", "stage2.max_epochs=1", "stage2.unconverged=true"]
    train_lean(market, tmp_path / "run", ["stage1.max_epochs=1", *pseudo])
    assert reads.count("documents") <= 2
    assert reads.count("positives") <= 2


# --- it repeats itself


KILLED = """
import os, sys
from pathlib import Path
from q2s_tf.config_files import read_config
from q2s_tf.training import train
from q2s_tf.training.callbacks import EpochBackups
from q2s_tf.examples.batches import Examples

config, documents, positives, validation, run = map(Path, sys.argv[1:6])
moment, stage, epoch, resume = sys.argv[6], int(sys.argv[7]), int(sys.argv[8]), sys.argv[9] == "resume"
batches, write_backup = Examples.batches, EpochBackups.on_epoch_end

def batches_until_the_kill(self, batch_size, seed, hard_negatives):
    for number, batch in enumerate(batches(self, batch_size, seed, hard_negatives)):
        if (moment, *seed[1:]) == ("batch", stage, epoch) and number == 8:
            os._exit(77)
        yield batch

def no_backup_at_the_kill(self, number, logs=None):
    if (moment, self.folder.name, number + 1) == ("backup", f"stage{stage}", epoch):
        os._exit(77)
    write_backup(self, number, logs)

Examples.batches, EpochBackups.on_epoch_end = batches_until_the_kill, no_backup_at_the_kill
train(read_config(config), documents, positives, validation, run, resume=resume)
"""
"""Ends without cleaning up, in the middle of an epoch or after the metrics and the best weights of one are written."""


def train_until_killed(config: Path, files: dict[str, Path], run: Path, *moment: Any, resume: bool) -> None:
    """Trains in another process, which ends in an epoch: `moment` is "batch" or "backup", the stage and the epoch."""
    paths = [config, files["documents"], files["positives"], files["validation"], run]
    arguments = [*map(str, paths), *map(str, moment), "resume" if resume else "anew"]
    done = preloaded.run(["-c", KILLED, *arguments], timeout=500)
    assert done.returncode == 77, done.stderr[-3000:]


def interrupt_in_epoch_2(progress: StepProgress, batch: int, logs: Any = None) -> None:
    """Ctrl-C, in the middle of the second epoch of a stage."""
    if progress.bar.tasks[0].completed == progress.params["steps"] and batch == 5:
        raise KeyboardInterrupt


def test_a_run_with_dropout_and_head_that_is_interrupted_in_both_stages_has_the_weights_of_one_that_is_not(
    market: TinyMarket, slang: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    encoder = "{ num_layers = 1, num_heads = 2, hidden_dim = 16, intermediate_dim = 32, dropout = 0.2 }"
    channel = '{ tower = "query", kind = "text", input = "query", encoder = "query", max_tokens = 8 }'
    text = market.lean_config.read_text(encoding="utf-8")
    text = text.replace("max_epochs = 4", "max_epochs = 2")
    text = text.replace("max_epochs = 0", "max_epochs = 2, batch_size = 16, unconverged = true")
    text += f"channels.query_text = {channel}\nencoders.query = {encoder}\nhead.queries = 10\n"
    config.write_text(text, encoding="utf-8")
    files = {"documents": market.documents, **slang}
    train_until_killed(config, files, tmp_path / "run", "backup", 1, 1, resume=False)
    assert [line["epoch"] for line in metrics(tmp_path / "run")] == [0, 1]
    assert metrics(tmp_path / "run")[1]["val_roc_auc"] > metrics(tmp_path / "run")[0]["val_roc_auc"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StepProgress, "on_train_batch_end", interrupt_in_epoch_2)
        train(read_config(config), run=tmp_path / "run", resume=True, **files)
    assert [line["epoch"] for line in metrics(tmp_path / "run")] == [0, 1]
    train_until_killed(config, files, tmp_path / "run", "batch", 2, 2, resume=True)
    assert [line["epoch"] for line in metrics(tmp_path / "run")] == [0, 1, 2, 0, 1]
    resumed = train(read_config(config), run=tmp_path / "run", resume=True, **files)
    uninterrupted = train(read_config(config), run=tmp_path / "whole", **files)
    lines, expected = (
        [{name: value for name, value in line.items() if "second" not in name} for line in metrics(tmp_path / name)]
        for name in ("run", "whole")
    )
    assert len(lines) == len(expected) == 6
    for line, other in zip(lines, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-5)
    for mine, theirs in zip(weights_of(resumed), weights_of(uninterrupted), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    for stage in (1, 2):
        for mine, theirs in zip(
            *(weights_of(q2s_tf.load(tmp_path / name, stage)) for name in ("run", "whole")), strict=True
        ):
            np.testing.assert_allclose(mine, theirs, atol=1e-6)
        rows = [(tmp_path / name / f"stage{stage}.csv").read_text().splitlines() for name in ("run", "whole")]
        assert [row.split(",")[0] for row in rows[0]] == [row.split(",")[0] for row in rows[1]] == ["epoch", "0", "1"]


def test_an_interruption_leaves_a_run_to_resume_or_none(
    market: TinyMarket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    for name, kept in (("fill_encoders", False), ("read_validation", True)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(importlib.import_module("q2s_tf.training.train"), name, interrupt)
            train_lean(market, tmp_path / "run", ["stage1.max_epochs=1"])
        assert (tmp_path / "run").exists() == kept, name
    train_lean(market, tmp_path / "run", ["stage1.max_epochs=1"], resume=True)
    assert (tmp_path / "run/stage1.weights.h5").is_file()


def test_a_full_disk_is_one_error_and_leaves_the_epochs_before(
    market: TinyMarket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, unlimited, written = tmp_path / "run", resource.RLIM_INFINITY, EpochBackups.on_epoch_end

    def write_on_a_full_disk(backups: EpochBackups, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited))
        written(backups, epoch, logs)

    monkeypatch.setattr(EpochBackups, "on_epoch_end", write_on_a_full_disk)
    try:
        with pytest.raises(InputError, match="run: cannot be written: File too large: make room") as refused:
            train_lean(market, run, ["stage1.max_epochs=3", "stage1.patience=9"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
    assert "\n" not in str(refused.value)
    assert [path.name for path in (run / "checkpoints/stage1").iterdir()] == ["1.weights.h5"]
    monkeypatch.undo()
    train_lean(market, run, ["stage1.max_epochs=3", "stage1.patience=9"], resume=True)
    assert [line["epoch"] for line in metrics(run)] == [0, 1, 2, 3]
    (run / "checkpoints/stage1/3.weights.h5").unlink()
    with pytest.raises(InputError, match="the last backup of stage 1 is missing"):
        train_lean(market, run, ["stage1.max_epochs=3", "stage1.patience=9"], resume=True)


# --- one training in a run directory


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_two_trainings_of_one_run_exclude_each_other(market: TinyMarket, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_lean(market, run, ["stage1.max_epochs=1"])
    with exclusive(run / "training.lock", "held"):
        before = contents(run)
        with pytest.raises(InputError, match="another process trains in it"):
            train_lean(market, run, ["stage1.max_epochs=2"], resume=True)
        with pytest.raises(InputError, match="exists and is not empty"):
            train_lean(market, run, ["stage1.max_epochs=1"])
        assert contents(run) == before
    train_lean(market, run, ["stage1.max_epochs=2"], resume=True)


def test_of_two_trainings_that_start_together_the_first_is_undisturbed(
    market: TinyMarket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one has found no run directory when the first one creates it."""
    run = tmp_path / "run"
    train_module = importlib.import_module("q2s_tf.training.train")
    second: list[InputError] = []
    prepare: Callable[..., None] = train_module._prepare_run
    refuse = train_module.refuse_existing

    def start_the_second(*arguments: Any) -> None:
        monkeypatch.setattr(train_module, "refuse_existing", lambda run: None)
        (run / "mine.txt").write_text("mine")
        with pytest.raises(InputError, match="another process trains in it") as refused:
            train_lean(market, run, ["stage1.max_epochs=1"])
        second.append(refused.value)
        monkeypatch.setattr(train_module, "refuse_existing", refuse)
        monkeypatch.setattr(train_module, "_prepare_run", prepare)
        prepare(*arguments)

    monkeypatch.setattr(train_module, "_prepare_run", start_the_second)
    train_lean(market, run, ["stage1.max_epochs=1"])
    assert len(second) == 1
    assert (run / "mine.txt").read_text() == "mine"
    assert (run / "stage1.weights.h5").is_file()


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


def test_a_folder_that_is_not_empty_is_not_touched(market: TinyMarket, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty"):
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
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=message):
        train_lean(market, tmp_path / "run", [], **wrong)
    assert not list((tmp_path / "run").iterdir()), "an empty folder is kept"


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
    with pytest.raises(
        InputError,
        match=r"^documents .*: row 1, document_id 'd00', column image_embeddings must be a list of vectors of 8 finite",
    ):
        train(read_config(market.config), documents, market.positives, market.judgements, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_given_tokenizer_is_used(run: Path, market: TinyMarket, tmp_path: Path) -> None:
    overrides = ["stage1.max_epochs=1"]
    train_lean(market, tmp_path / "run", overrides, tokenizer=run / "tokenizer.model")
    assert (tmp_path / "run/tokenizer.model").read_bytes() == (run / "tokenizer.model").read_bytes()
    assert not (tmp_path / "run/stage2.weights.h5").exists(), "a stage of no epochs is not trained"
