"""What training adds to the towers: the head, gradient blending, lazy updates, a stage 1 that must converge."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf import saved_model_pb2
from tiny_market import TinyMarket

import q2s_tf
from q2s_tf.config import read_config
from q2s_tf.errors import InputError
from q2s_tf.models import build_towers
from q2s_tf.serving.export import export
from q2s_tf.tables import open_documents, open_positives
from q2s_tf.text import Tokenizer
from q2s_tf.training import train
from q2s_tf.training.build_examples import build_examples
from q2s_tf.training.examples import Examples
from q2s_tf.training.labels import frequent_labels
from q2s_tf.training.learner import Learner, mixed_precision
from q2s_tf.training.optimisation import LazyAdam, Optimizer, merge_rows
from q2s_tf.training.step import build_step
from q2s_tf.training.workers import Workers

NO_DROPOUT = ["encoders.query.dropout=0.0", "encoders.document.dropout=0.0"]


# --- lazy Adam


def lazy_adam_oracle(table: np.ndarray, gradients: list[list[tuple[int, np.ndarray]]], rate: float) -> np.ndarray:
    """Adam written for each row that a step reads, and for no other."""
    table, m, v = table.copy(), np.zeros_like(table), np.zeros_like(table)
    for step, parts in enumerate(gradients, start=1):
        summed: dict[int, np.ndarray] = {}
        for row, gradient in parts:
            summed[row] = summed.get(row, 0) + gradient
        for row, gradient in summed.items():
            m[row] = 0.9 * m[row] + 0.1 * gradient
            v[row] = 0.999 * v[row] + 0.001 * gradient**2
            alpha = rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            table[row] -= alpha * m[row] / (np.sqrt(v[row]) + 1e-7)
    return table


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=15)
def test_lazy_adam_moves_the_rows_that_were_read_and_no_other(seed: int) -> None:
    generator = np.random.default_rng(seed)
    start = generator.normal(size=(7, 3)).astype(np.float32)
    steps = [
        [(int(row), generator.normal(size=3).astype(np.float32)) for row in generator.integers(0, 5, 4)]
        for _ in range(4)
    ]
    table, adam = keras.Variable(start), LazyAdam(0.1)
    adam.build([table])
    for parts in steps:
        slices = tf.IndexedSlices(
            tf.constant([gradient for _, gradient in parts]),
            tf.constant([row for row, _ in parts]),
            tf.constant([7, 3]),
        )
        adam.apply([merge_rows(slices)], [table])
    np.testing.assert_allclose(table.numpy(), lazy_adam_oracle(start, steps, 0.1), rtol=2e-3, atol=1e-5)
    np.testing.assert_array_equal(table.numpy()[5:], start[5:])


def test_lazy_adam_is_adam_where_every_row_is_read() -> None:
    start = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
    tables, adams = (
        [keras.Variable(start) for _ in range(3)],
        [keras.optimizers.Adam(0.1), LazyAdam(0.1), LazyAdam(0.1)],
    )
    for adam, table in zip(adams, tables, strict=True):
        adam.build([table])
    for step in range(3):
        gradient = tf.constant(np.random.default_rng(step + 2).normal(size=(4, 2)).astype(np.float32))
        sparse = tf.IndexedSlices(gradient, tf.range(4), tf.constant([4, 2]))
        for adam, table, given_ in zip(adams, tables, (gradient, gradient, sparse), strict=True):
            adam.apply([given_], [table])
    for table in tables[1:]:
        np.testing.assert_allclose(table.numpy(), tables[0].numpy(), rtol=1e-5, atol=1e-6)


def test_the_tables_of_a_tower_get_sparse_gradients(examples: Examples, learner: Learner) -> None:
    batch = next(iter(examples.dataset(16, (1,))))
    with tf.GradientTape() as tape:
        parts = [learner.fuse(tower, *learner.encode(tower, batch[tower])) for tower in ("query", "document")]
        loss = tf.reduce_sum(parts[0] * parts[1])
    gradients = tape.gradient(loss, learner.variables)
    of_tables = [
        gradient
        for variable, gradient in zip(learner.variables, gradients, strict=True)
        if variable.path.endswith(("/table", "token_embedding/embeddings"))
    ]
    assert len(of_tables) == 6
    assert all(isinstance(gradient, tf.IndexedSlices) for gradient in of_tables)


# --- labels of the head


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=30), st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_labels_are_the_frequent_queries_of_each_document(pairs: list[tuple[int, int]], count: int) -> None:
    group, document = (np.array(column) for column in zip(*pairs, strict=True))
    labels = frequent_labels(group, document, count, num_documents=5)
    seen = {query: sum(1 for each, _ in pairs if each == query) for query in {query for query, _ in pairs}}
    chosen = sorted(seen, key=lambda query: (-seen[query], query))[:count]
    assert labels.count == len(chosen)
    rows = labels.rows(np.arange(5))
    for row in range(5):
        own = {chosen.index(query) for query, its in pairs if its == row and query in chosen}
        assert sorted(rows[row][rows[row] >= 0]) == sorted(own)


# --- beside another Keras

KERAS_3_FIRST = """
import tensorflow as tf
import q2s_tf.evaluation.evaluate
before = tf.keras.version()
from q2s_tf.training.recommenders import tfrs
task = tfrs.tasks.Retrieval(loss=lambda y_true, y_pred, sample_weight: tf.reduce_sum(y_true * y_pred))
loss = tf.function(task)(tf.eye(2), 3 * tf.eye(2), compute_metrics=False, compute_batch_metrics=False)
print(before, tf.keras.version(), float(loss))
"""


def test_training_and_whoever_has_touched_tf_keras_before_share_a_process() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    command = [sys.executable, "-c", KERAS_3_FIRST]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after, loss = done.stdout.split()
    assert before == after == keras.__version__
    assert float(loss) == 6


# --- one step


@pytest.fixture(scope="module")
def learner(market: TinyMarket, run: Path) -> Learner:
    config = read_config(
        run / "config.toml",
        [
            *NO_DROPOUT,
            "head.queries=20",
            "head.weight=0.3",
            "blending.weight=0.5",
            "blending.weights.document.images=0.2",
        ],
    )
    towers = build_towers(config, Tokenizer.read(run / "tokenizer.model"))
    towers.load_weights(run / "stage1.weights.h5")
    return Learner(towers, Workers(), 20)


@pytest.fixture(scope="module")
def examples(learner: Learner, market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    inputs = learner.config.tower_inputs("document")
    catalogue = open_documents(market.documents, inputs, learner.config.vector_inputs())
    folder = tmp_path_factory.mktemp("examples")
    return build_examples(folder, learner.towers, catalogue, open_positives(market.positives))


def only(batch: dict[str, Any], members: list[str]) -> dict[str, Any]:
    """A tower's inputs with every other channel missing."""
    return {name: value if name in members else tf.zeros_like(value) for name, value in batch.items()}


def softmax_loss(query: np.ndarray, document: np.ndarray, batch: dict[str, Any]) -> float:
    """Eq. 2 with scale 20 over the rows and documents that have a vector at all."""
    scores, allowed = 20 * query @ document.T, batch["score_mask"].numpy()
    losses, weights = [], []
    for row in range(len(scores)):
        if not query[row].any() or not document[row].any():
            continue
        competing = [np.exp(scores[row, c]) for c in range(len(scores)) if allowed[row, c] and document[c].any()]
        losses.append(-np.log(np.exp(scores[row, row]) / sum(competing)))
        weights.append(batch["weight"].numpy()[row])
    return float(np.average(losses, weights=weights))


def test_a_step_reports_every_loss_of_its_equation(examples: Examples, learner: Learner) -> None:
    dataset = examples.dataset(16, (1,))
    batch = next(iter(dataset))
    encoders = {"query": learner.towers.query.encoder, "document": learner.towers.document.encoder}
    whole = {tower: encoders[tower](batch[tower])["embedding"].numpy() for tower in encoders}
    expected = 0.0
    groups = {"query": [["query_trigrams", "query_text"], ["query_country"]]}
    groups["document"] = [["title_text", "title_trigrams"], ["description_text"], ["images"], ["language"]]
    for tower, lists in groups.items():
        for members in lists:
            alone = encoders[tower](only(batch[tower], members))["embedding"].numpy()
            expected += (0.2 if members == ["images"] else 0.5) * softmax_loss(**{**whole, tower: alone}, batch=batch)
    assert not all(row.any() for row in batch["document"]["images"].numpy()), "some rows have no image"
    learner.head.kernel.assign(np.random.default_rng(4).normal(size=learner.head.kernel.shape))
    logits = 20 * whole["document"] @ learner.head.kernel.numpy()
    chances = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = batch["labels"].numpy()
    head = np.mean([-np.mean(chances[r, own[own >= 0]]) if (own >= 0).any() else 0 for r, own in enumerate(labels)])
    optimizer = Optimizer(learner.variables, learner.workers, learner.text_variables(), learner.config.stage1, 1.0, 10)
    figures = build_step(learner, optimizer, 1, dataset.element_spec)(batch)
    assert float(figures["retrieval_loss"]) == pytest.approx(softmax_loss(**whole, batch=batch), rel=1e-4)
    assert float(figures["blended_loss"]) == pytest.approx(expected, rel=1e-4)
    assert float(figures["head_loss"]) == pytest.approx(0.3 * head, rel=1e-4)
    parts = [float(figures[name]) for name in ("retrieval_loss", "blended_loss", "head_loss")]
    assert float(figures["loss"]) == pytest.approx(sum(parts), rel=1e-5)


def test_a_document_of_another_country_is_no_negative_in_stage_2_if_so_asked(
    examples: Examples, learner: Learner
) -> None:
    """What a step loses is what eq. 5 says of the batch's own documents and of those of the searcher's country."""
    batch = next(iter(examples.dataset(16, (1,))))
    numbers = np.random.default_rng(5).integers(0, 3, (2, 16)).astype(np.int32)  # 0 is a missing country
    batch |= {"query_country": tf.constant(numbers[0]), "document_country": tf.constant(numbers[1])}
    spec = tf.nest.map_structure(tf.TensorSpec.from_tensor, batch)
    encoders = {"query": learner.towers.query.encoder, "document": learner.towers.document.encoder}
    query, document = (encoders[tower](batch[tower])["embedding"].numpy() for tower in encoders)
    assert query.any(axis=1).all() and document.any(axis=1).all()
    cosines = query @ document.T
    expected = {"all": 0.0, "same_country": 0.0}
    for (negatives, _), row in itertools.product(expected.items(), range(16)):
        competing = [
            cosines[row, other]
            for other in range(16)
            if batch["score_mask"].numpy()[row, other]
            and other != row
            and (negatives == "all" or 0 in numbers[:, [row, other]].diagonal() or numbers[0, row] == numbers[1, other])
        ]
        if len(competing) > 1:
            hinge = max(0.0, 0.9 - (cosines[row, row] - sorted(competing)[-2]))
            expected[negatives] += hinge * batch["weight"].numpy()[row]
    assert expected["all"] != pytest.approx(expected["same_country"], rel=1e-2)
    before = learner.config
    for negatives, value in expected.items():
        stage2 = before.stage2.model_copy(update={"negatives": negatives, "negative_rank": 2, "margin": 0.9})
        learner.config = before.model_copy(update={"stage2": stage2})
        try:
            figures = build_step(learner, Recorder(learner.variables), 2, spec)(batch)  # type: ignore[arg-type]
        finally:
            learner.config = before
        assert float(figures["retrieval_loss"]) == pytest.approx(value, rel=1e-4)


class Recorder:
    """In the place of an optimizer: keeps the gradients, moves nothing."""

    def __init__(self, variables: list[keras.Variable]):
        self.gradients = [tf.Variable(tf.zeros(variable.shape)) for variable in variables]

    def apply(self, gradients: list[Any]) -> tf.Tensor:
        for kept, gradient in zip(self.gradients, gradients, strict=True):
            kept.assign(tf.convert_to_tensor(gradient))
        return tf.linalg.global_norm(gradients)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_gradients_of_a_step_are_those_of_the_sum_of_its_losses(
    stage: int, examples: Examples, learner: Learner
) -> None:
    """Gradient blending and the head included: along every part's gradient, finite differences give its length."""
    learner.head.kernel.assign(np.random.default_rng(4).normal(size=learner.head.kernel.shape))
    dataset = examples.dataset(16, (1,))
    recorder, batch = Recorder(learner.variables), next(iter(dataset))
    step = build_step(learner, recorder, stage, dataset.element_spec)  # type: ignore[arg-type]
    step(batch)
    gradients = [gradient.numpy() for gradient in recorder.gradients]
    for part in ("head", "fusion", "trigrams_vector", "text_encoder", "_vector"):
        inside = [place for place, variable in enumerate(learner.variables) if part in variable.path]
        length = np.sqrt(sum(np.sum(gradients[place] ** 2) for place in inside))
        before = {place: learner.variables[place].numpy() for place in inside}
        losses = []
        for nudge in (-2e-3, 2e-3):
            for place in inside:
                learner.variables[place].assign(before[place] + nudge * gradients[place] / length)
            losses.append(float(step(batch)["loss"]))
        for place in inside:
            learner.variables[place].assign(before[place])
        assert (losses[1] - losses[0]) / 4e-3 == pytest.approx(length, rel=2e-2), part


# --- through a whole training


def test_head_and_blending_by_channel_train_and_leave_plain_towers(market: TinyMarket, tmp_path: Path) -> None:
    overrides = ["head.queries=30", "blending.by=channel", "blending.weight=0.3", "stage1.max_epochs=2"]
    config = read_config(market.config, overrides)
    train(config, market.documents, market.positives, market.judgements, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == [1, 1, 2]
    assert lines[1]["head_loss"] < lines[0]["head_loss"]
    assert lines[1]["blended_loss"] < lines[0]["blended_loss"]
    towers = q2s_tf.load(tmp_path / "run")
    assert towers.query.predict({"query": ["red sofa"]})["embedding"].shape == (1, 16)


def test_stage_2_waits_for_a_stage_1_that_has_converged(market: TinyMarket, tmp_path: Path) -> None:
    files = (market.documents, market.positives, market.judgements, tmp_path / "run")
    asked = ["stage1.max_epochs=1", "stage2.max_epochs=1", "stage2.batch_size=16"]
    with pytest.raises(InputError, match=r"still rising after stage1.max_epochs = 1: --resume with --set stage1"):
        train(read_config(market.lean_config, asked), *files)
    assert not (tmp_path / "run/stage2.weights.h5").exists()
    more = read_config(market.lean_config, [*asked, "stage1.max_epochs=3", "stage2.unconverged=true"])
    train(more, *files, resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [(1, 1), (1, 2), (1, 3), (2, 1)]
    with pytest.raises(InputError, match="its stage 2 has begun"):
        train(read_config(market.lean_config, [*asked, "stage1.max_epochs=9"]), *files, resume=True)


def test_a_blending_weight_must_name_a_group(market: TinyMarket) -> None:
    with pytest.raises(InputError, match=r"title_text is no group of its channels \(groups: title, "):
        read_config(market.config, ["blending.weights.document.title_text=1.0"])


@pytest.mark.slow
def test_mixed_precision_trains_goes_on_and_leaves_float32(market: TinyMarket, tmp_path: Path) -> None:
    files = (market.documents, market.positives, market.judgements, tmp_path / "run")
    asked = ["mixed_precision=true", "stage2.max_epochs=0"]
    train(read_config(market.config, asked), *files)
    train(read_config(market.config, [*asked, "stage1.max_epochs=3"]), *files, resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[-1]["loss"] < lines[0]["loss"]
    export(tmp_path / "run", market.documents, tmp_path / "models", "exact")
    for path in (tmp_path / "models").rglob("saved_model.pb"):
        (graph,) = saved_model_pb2.SavedModel.FromString(path.read_bytes()).meta_graphs
        nodes = [*graph.graph_def.node, *(node for each in graph.graph_def.library.function for node in each.node_def)]
        assert not [node for node in nodes if any(value.type == tf.bfloat16 for value in node.attr.values())]


def test_mixed_precision_is_not_for_a_cpu_unless_it_is_asked_for(market: TinyMarket) -> None:
    assert not mixed_precision(read_config(market.config)), "this machine's tests run without a GPU"
    assert mixed_precision(read_config(market.config, ["mixed_precision=true"]))
