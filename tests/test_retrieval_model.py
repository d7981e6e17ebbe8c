"""The model that trains both towers: its losses and their gradients, its `fit`, head and gradient blending."""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tiny_market import TEXT_OVERRIDES, TinyMarket

import q2s_tf
from q2s_tf import losses
from q2s_tf.config_files import read_config
from q2s_tf.errors import InputError
from q2s_tf.examples.batches import Examples
from q2s_tf.examples.prepare import build_examples
from q2s_tf.models import build_towers, encode, load_weights, read_tokenizers
from q2s_tf.serving.export import export
from q2s_tf.tables import open_documents, open_positives
from q2s_tf.training import RetrievalModel, train
from q2s_tf.training.callbacks import EpochNumber, StepProgress
from q2s_tf.training.optimizer import LazyAdam
from q2s_tf.training.retrieval_model import classification_head, compile_stage
from q2s_tf.training.workers import Workers

NO_DROPOUT = ["encoders.query.dropout=0.0", "encoders.document.dropout=0.0"]

# --- TensorFlow Recommenders and Keras 3 in one process

KERAS_3_FIRST = """
import tensorflow as tf
import q2s_tf.models
before = tf.keras.version()
from q2s_tf.training.recommenders import tfrs
task = tfrs.tasks.Retrieval(loss=lambda y_true, y_pred, sample_weight: tf.reduce_sum(y_true * y_pred))
loss = tf.function(task)(tf.eye(2), 3 * tf.eye(2), compute_metrics=False, compute_batch_metrics=False)
print(before, tf.keras.version(), float(loss))
"""


def test_training_works_in_a_process_that_has_used_tf_keras() -> None:
    command = [sys.executable, "-c", KERAS_3_FIRST]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after, loss = done.stdout.split()
    assert before == after == keras.__version__
    assert float(loss) == 6


# --- one step


@pytest.fixture(scope="module")
def model(market: TinyMarket, run: Path) -> RetrievalModel:
    """A model with head and gradient blending, without dropout, on the weights of a trained stage 1."""
    weights = ["head.queries=20", "head.weight=0.3", "blending.weight=0.5", "blending.weights.document.images=0.2"]
    config = read_config(run / "config.toml", [*NO_DROPOUT, *weights])
    towers = build_towers(config, read_tokenizers(run, config))
    load_weights(towers, run / "stage1.weights.h5")
    head = classification_head(20, config.dimension)
    head.kernel.assign(np.random.default_rng(4).normal(size=head.kernel.shape))
    return RetrievalModel(towers, head)


@pytest.fixture(scope="module")
def examples(model: RetrievalModel, market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    catalogue = open_documents(market.documents, model.config.tower_inputs("document"), model.config.vector_inputs())
    folder = tmp_path_factory.mktemp("examples")
    return build_examples(folder, model.towers, catalogue, open_positives(market.positives))


@pytest.fixture(scope="module", params=[False, True], ids=["in-batch negatives", "mined negatives"])
def batch(request: pytest.FixtureRequest, examples: Examples) -> dict[str, Any]:
    mined = np.random.default_rng(4).integers(examples.num_documents, size=len(examples))
    return next(iter(examples.dataset(16, (1,), hard_negatives=(lambda: mined) if request.param else None)))


def embed(model: RetrievalModel, side: str, inputs: dict[str, Any], only: list[str] | None = None) -> np.ndarray:
    """Embeddings of preprocessed inputs, of all channels or with every other channel missing."""
    tower = getattr(model.towers, side)
    kept = {name: value if only is None or name in only else tf.zeros_like(value) for name, value in inputs.items()}
    return tower.fuse(*tower.encode_channels(kept, training=False))[0].numpy()


def softmax_loss(query: np.ndarray, document: np.ndarray, batch: dict[str, Any]) -> float:
    """Eq. 2 with scale 20 over the rows and documents that have a vector."""
    scores, allowed = 20 * query @ document.T, batch["score_mask"].numpy()
    rows, weights = [], []
    for row in range(len(scores)):
        if not query[row].any() or not document[row].any():
            continue
        columns = range(scores.shape[1])
        competing = [np.exp(scores[row, c]) for c in columns if allowed[row, c] and document[c].any()]
        rows.append(-np.log(np.exp(scores[row, row]) / sum(competing)))
        weights.append(batch["weight"].numpy()[row])
    return float(np.average(rows, weights=weights))


def test_the_loss_has_every_part_of_its_equation(model: RetrievalModel, batch: dict[str, Any]) -> None:
    whole = {side: embed(model, side, batch[side]) for side in ("query", "document")}
    groups = {"query": [["query_trigrams", "query_text"], ["query_country"]]}
    groups["document"] = [["title_text", "title_trigrams"], ["description_text"], ["images"], ["language"]]
    blended = 0.0
    for side, lists in groups.items():
        for members in lists:
            alone = embed(model, side, batch[side], members)
            blended += (0.2 if members == ["images"] else 0.5) * softmax_loss(**{**whole, side: alone}, batch=batch)
    assert not batch["document"]["images"].numpy().any(axis=(1, 2)).all(), "some documents have no image"
    logits = 20 * whole["document"][:16] @ model.head.kernel.numpy()
    chances = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = batch["labels"].numpy()
    head = np.mean([-np.mean(chances[r, own[own >= 0]]) if (own >= 0).any() else 0 for r, own in enumerate(labels)])
    expected = {
        "retrieval_loss": softmax_loss(**whole, batch=batch),
        "blended_loss": blended,
        "head_loss": 0.3 * head,
    }
    compile_stage(model, stage=1, steps_per_epoch=10)
    parts, embeddings = model.compute_losses(batch)
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(expected, rel=1e-4)
    for side, vectors in embeddings.items():
        np.testing.assert_allclose(vectors, whole[side], atol=1e-5)


def test_negatives_of_stage_2_can_be_those_of_the_searchers_country(
    model: RetrievalModel, batch: dict[str, Any]
) -> None:
    """The loss is eq. 5 over the documents of the batch, or over those of the searcher's country."""
    query, document = (embed(model, side, batch[side]) for side in ("query", "document"))
    generator = np.random.default_rng(5)  # the number 0 is a missing country
    numbers = [generator.integers(0, 3, len(vectors)).astype(np.int32) for vectors in (query, document)]
    batch = batch | {"query_country": tf.constant(numbers[0]), "document_country": tf.constant(numbers[1])}
    assert query.any(axis=1).all() and document.any(axis=1).all()
    cosines = query @ document.T
    expected = {"all": 0.0, "same_country": 0.0}
    for negatives, row in itertools.product(expected, range(16)):
        competing = [
            cosines[row, other]
            for other in range(len(document))
            if batch["score_mask"].numpy()[row, other]
            and other != row
            and (
                negatives == "all" or 0 in (numbers[0][row], numbers[1][other]) or numbers[0][row] == numbers[1][other]
            )
        ]
        if len(competing) > 1:
            hinge = max(0.0, 0.9 - (cosines[row, row] - sorted(competing)[-2]))
            expected[negatives] += hinge * batch["weight"].numpy()[row]
    assert expected["all"] != pytest.approx(expected["same_country"], rel=1e-2)
    config = model.config
    for negatives, value in expected.items():
        stage2 = config.stage2.model_copy(update={"negatives": negatives, "negative_rank": 2, "margin": 0.9})
        model.config = config.model_copy(update={"stage2": stage2})
        try:
            compile_stage(model, stage=2, steps_per_epoch=10)
            parts, _ = model.compute_losses(batch)
        finally:
            model.config = config
        assert float(parts["retrieval_loss"]) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    ("batch", "stage"), [(False, 1), (True, 2)], indirect=["batch"], ids=["stage 1", "stage 2 with mined negatives"]
)
def test_the_gradients_of_a_step_are_those_of_the_sum_of_its_losses(
    stage: int, model: RetrievalModel, batch: dict[str, Any]
) -> None:
    """With blending and head: finite differences along the gradient of a part of the model give its length.

    Stage 1 with in-batch negatives, stage 2 with mined ones.
    """
    compile_stage(model, stage, steps_per_epoch=10)
    total = tf.function(lambda: tf.add_n(list(model.compute_losses(batch)[0].values())), autograph=False)
    variables = model.trainable_variables
    start = [variable.numpy() for variable in variables]
    model.optimizer = keras.optimizers.SGD(1.0)
    model.optimizer.build(variables)
    expected_loss = float(total()) / (float(tf.reduce_sum(batch["weight"])) if stage == 2 else 1)
    for metric in model.metrics:
        metric.reset_state()
    reported = tf.function(model.train_step, autograph=False)(batch)
    assert float(reported["loss"]) == pytest.approx(expected_loss, rel=1e-5), "a mean by weight in both stages"
    parts = ("retrieval_loss", "blended_loss", "head_loss")
    assert sum(float(reported[name]) for name in parts) == pytest.approx(expected_loss, rel=1e-5)
    gradients = [old - variable.numpy() for old, variable in zip(start, variables, strict=True)]
    for variable, old in zip(variables, start, strict=True):
        variable.assign(old)
    for part in ("head", "fusion", "trigrams_vector", "text_encoder", "_vector"):
        inside = [index for index, variable in enumerate(variables) if part in variable.path]
        length = np.sqrt(sum(np.sum(gradients[index] ** 2) for index in inside))
        assert length > 1e-4, part
        values = []
        for nudge in (-2e-3, 2e-3):
            for index in inside:
                variables[index].assign(start[index] + nudge * gradients[index] / length)
            values.append(float(total()))
        for index in inside:
            variables[index].assign(start[index])
        assert (values[1] - values[0]) / 4e-3 == pytest.approx(length, rel=2e-2), part


def test_tables_have_sparse_gradients(model: RetrievalModel, batch: dict[str, Any]) -> None:
    compile_stage(model, stage=1, steps_per_epoch=10)
    with tf.GradientTape() as tape:
        parts, _ = model.compute_losses(batch)
        loss = tf.add_n(list(parts.values()))
    variables = model.trainable_variables
    gradients = tape.gradient(loss, variables)
    tables = [
        gradient
        for variable, gradient in zip(variables, gradients, strict=True)
        if variable.path.endswith(("trigrams_vector/table", "token_table"))
    ]
    assert len(tables) == 4
    assert all(isinstance(gradient, tf.IndexedSlices) for gradient in tables)


# --- fit


@pytest.fixture
def new_model(run: Path, model: RetrievalModel) -> RetrievalModel:
    """A model with the weights of a trained stage 1, with dropout, without head and blending."""
    towers = q2s_tf.load(run, stage=1)
    return RetrievalModel(towers)


def test_it_is_trained_by_compile_and_fit_with_callbacks_of_keras(
    new_model: RetrievalModel, examples: Examples, tmp_path: Path
) -> None:
    new_model.compile(LazyAdam(1e-3, clip_norm=1.0), loss=losses.in_batch_softmax, scale=20)
    dataset = examples.dataset(batch_size=16, seed=(17,)).map(
        lambda batch: {k: batch[k] for k in batch if k != "labels"}
    )
    stopping, board = keras.callbacks.EarlyStopping(monitor="loss"), keras.callbacks.TensorBoard(str(tmp_path))
    history = new_model.fit(dataset, epochs=3, callbacks=[stopping, board], verbose=0)
    assert set(history.history) == {"loss", "batch_recall@1"}
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert list(tmp_path.rglob("events.out.*"))
    cosines = new_model.predict(
        {
            "query": new_model.towers.query.as_inputs(["red sofa", "lamp"]),
            "document": new_model.towers.document.as_inputs(["red sofa", "red sofa"]),
        },
        verbose=0,
    )
    assert cosines.shape == (2,)
    assert cosines[0] > cosines[1]


def test_no_step_reads_a_metric(lean_run: Path, market: TinyMarket, tmp_path: Path) -> None:
    """Reading one would make every step wait for the device; metrics are read once, at the end of an epoch."""

    class Received(keras.callbacks.Callback):
        steps: list[Any]
        epochs: list[Any]

        def __init__(self) -> None:
            super().__init__()
            self.steps, self.epochs = [], []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.steps.append(logs)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.epochs.append(dict(logs))

    received, model = Received(), RetrievalModel(q2s_tf.load(lean_run))
    model.compile(LazyAdam(1e-3), loss=losses.in_batch_softmax, scale=20)
    catalogue = open_documents(market.documents, model.config.tower_inputs("document"), model.config.vector_inputs())
    examples = build_examples(tmp_path / "examples", model.towers, catalogue, open_positives(market.positives))
    dataset = examples.dataset(16, (1,))
    Workers().fit(model, dataset, 2, [EpochNumber(), StepProgress("training", 2), received])
    assert received.steps == [{}] * (2 * len(dataset))
    assert [set(logs) for logs in received.epochs] == [{"loss", "batch_recall@1"}] * 2
    assert all(isinstance(value, float) for logs in received.epochs for value in logs.values())


# --- in a training


def epochs_of(run: Path) -> list[dict[str, Any]]:
    """The epochs of a run after epoch 0 of its stages."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["epoch"]]


def test_head_and_blending_by_channel_are_trained_and_are_no_part_of_the_towers(
    market: TinyMarket, tmp_path: Path
) -> None:
    overrides = ["head.queries=30", "blending.by=channel", "blending.weight=0.3", "stage1.max_epochs=2"]
    config = read_config(market.lean_config, [*overrides, *TEXT_OVERRIDES])
    train(config, market.documents, market.positives, market.judgements, tmp_path / "run")
    first, second = epochs_of(tmp_path / "run")
    assert second["head_loss"] < first["head_loss"]
    assert second["blended_loss"] < first["blended_loss"]
    towers = q2s_tf.load(tmp_path / "run")
    assert towers.encode_queries(["red sofa"]).shape == (1, 16)
    assert not [weight.path for weight in towers.weights if "head" in weight.path]


def test_stage_2_needs_a_stage_1_that_has_converged(market: TinyMarket, tmp_path: Path) -> None:
    files = (market.documents, market.positives, market.judgements, tmp_path / "run")
    requested = ["stage1.max_epochs=1", "stage2.max_epochs=1", "stage2.batch_size=16"]
    with pytest.raises(InputError, match=r"still rising after stage1.max_epochs = 1: --resume with --set stage1"):
        train(read_config(market.lean_config, requested), *files)
    assert not (tmp_path / "run/stage2.weights.h5").exists()
    longer = read_config(market.lean_config, [*requested, "stage1.max_epochs=3", "stage2.unconverged=true"])
    train(longer, *files, resume=True)
    epochs = [(line["stage"], line["epoch"]) for line in epochs_of(tmp_path / "run")]
    assert epochs == [(1, 1), (1, 2), (1, 3), (2, 1)]
    with pytest.raises(InputError, match="its stage 2 has begun"):
        train(read_config(market.lean_config, [*requested, "stage1.max_epochs=9"]), *files, resume=True)


def test_a_blending_weight_must_name_a_group(market: TinyMarket) -> None:
    with pytest.raises(InputError, match=r"title_text is no group of its channels \(groups: title, "):
        read_config(market.config, ["blending.weights.document.title_text=1.0"])


# --- dtype policies


@pytest.fixture
def mixed_float16() -> Iterator[None]:
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.usefixtures("mixed_float16")
def test_it_is_trained_under_a_mixed_policy(run: Path, examples: Examples) -> None:
    """The slow test below trains under `mixed_bfloat16`."""
    config = read_config(run / "config.toml", NO_DROPOUT)
    towers = build_towers(config, read_tokenizers(run, config))
    load_weights(towers, run / "stage1.weights.h5")
    mixed = RetrievalModel(towers)
    assert towers.query.text_encoders["query"].compute_dtype == "float16"
    compile_stage(mixed, stage=1, steps_per_epoch=22)
    losses_of_epochs = mixed.fit(examples.dataset(16, (1,)), epochs=2, verbose=0).history["loss"]
    assert losses_of_epochs[1] < losses_of_epochs[0]
    plain = RetrievalModel(q2s_tf.load(run, stage=1))
    assert all(variable.dtype == "float32" for variable in mixed.trainable_variables)
    assert len(plain.trainable_variables) == len(mixed.trainable_variables)


def test_gradients_are_scaled_and_unscaled_under_float16(run: Path, batch: dict[str, Any]) -> None:
    """Keras wraps the optimizer of a float16 model; the optimizer inside receives the gradients of the loss."""
    config = read_config(run / "config.toml", NO_DROPOUT)
    towers = build_towers(config, read_tokenizers(run, config), dtype="mixed_float16")
    load_weights(towers, run / "stage1.weights.h5")
    half = RetrievalModel(towers, dtype="mixed_float16")
    half.compile(LazyAdam(1e-3), loss=losses.in_batch_softmax, scale=20)
    assert isinstance(half.optimizer, keras.optimizers.LossScaleOptimizer)
    with tf.GradientTape() as tape:
        loss = tf.add_n(list(half.compute_losses(batch)[0].values()))
    gradients = tape.gradient(loss, half.trainable_variables)
    expected = float(tf.linalg.global_norm([tf.convert_to_tensor(gradient) for gradient in gradients]))
    half.train_step(batch)
    moments = [moment.numpy() for moment in half.optimizer.inner_optimizer.first_moments]
    assert float(tf.linalg.global_norm(moments)) == pytest.approx(0.1 * expected, rel=1e-2)


@pytest.mark.slow
def test_a_run_under_a_mixed_policy_is_resumed_and_leaves_float32(market: TinyMarket, tmp_path: Path) -> None:
    files = (market.documents, market.positives, market.judgements, tmp_path / "run")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        train(read_config(market.config, ["stage2.max_epochs=0"]), *files)
        train(read_config(market.config, ["stage2.max_epochs=0", "stage1.max_epochs=3"]), *files, resume=True)
    finally:
        keras.config.set_dtype_policy("float32")
    epochs = epochs_of(tmp_path / "run")
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    towers = q2s_tf.load(tmp_path / "run")
    assert towers.query.text_encoders["query"].compute_dtype == "float32"
    assert np.isfinite(encode(towers.query, ["red sofa"])["embedding"]).all()
    # needs export
    export(tmp_path / "run", market.documents, tmp_path / "models", "exact")
    for path in (tmp_path / "models").rglob("saved_model.pb"):
        (graph,) = saved_model_pb2.SavedModel.FromString(path.read_bytes()).meta_graphs
        nodes = [*graph.graph_def.node, *(node for each in graph.graph_def.library.function for node in each.node_def)]
        assert not [node for node in nodes if any(value.type == tf.bfloat16 for value in node.attr.values())]


def test_a_fit_that_fails_leaves_no_progress_bar(examples: Examples, new_model: RetrievalModel) -> None:
    class Failing(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            assert progress.bar.live.is_started
            raise InputError("the loss is nan")

    compile_stage(new_model, 1, 10)
    progress = StepProgress("training", 1)
    with pytest.raises(InputError, match="the loss is nan"):
        Workers().fit(new_model, examples.dataset(16, (1,)), 1, [EpochNumber(), progress, Failing()])
    assert not progress.bar.live.is_started
