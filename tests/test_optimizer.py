"""The optimizer: Adam for dense gradients, updates of the rows that were read for sparse ones."""

import itertools
import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from q2s_tf.config_files import read_config
from q2s_tf.models import build_towers, read_tokenizers
from q2s_tf.training import RetrievalModel
from q2s_tf.training.optimizer import LazyAdam, decaying_rate
from q2s_tf.training.retrieval_model import compile_stage


def lazy_adam_oracle(table: np.ndarray, gradients: list[list[tuple[int, np.ndarray]]], rate: float) -> np.ndarray:
    """Adam for each row that a step reads, and for no other row."""
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


def sparse_gradient(rows: list[int], gradients: list[np.ndarray], shape: tuple[int, int]) -> tf.IndexedSlices:
    return tf.IndexedSlices(tf.constant(np.array(gradients, np.float32)), tf.constant(rows), tf.constant(shape))


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=15)
def test_only_the_rows_of_a_sparse_gradient_are_updated(seed: int) -> None:
    generator = np.random.default_rng(seed)
    start = generator.normal(size=(7, 3)).astype(np.float32)
    steps = [
        [(int(row), generator.normal(size=3).astype(np.float32)) for row in generator.integers(0, 5, 4)]
        for _ in range(4)
    ]
    table, adam = keras.Variable(start), LazyAdam(0.1)
    adam.build([table])
    for parts in steps:
        adam.apply([sparse_gradient([row for row, _ in parts], [gradient for _, gradient in parts], (7, 3))], [table])
    np.testing.assert_allclose(table.numpy(), lazy_adam_oracle(start, steps, 0.1), rtol=2e-3, atol=1e-5)
    np.testing.assert_array_equal(table.numpy()[5:], start[5:])


def test_it_equals_adam_where_every_row_has_a_gradient() -> None:
    start = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
    tables = [keras.Variable(start) for _ in range(3)]
    adams = [keras.optimizers.Adam(0.1), LazyAdam(0.1), LazyAdam(0.1)]
    for adam, table in zip(adams, tables, strict=True):
        adam.build([table])
    for step in range(3):
        gradient = np.random.default_rng(step + 2).normal(size=(4, 2)).astype(np.float32)
        sparse = sparse_gradient([0, 1, 2, 3], list(gradient), (4, 2))
        for adam, table, received in zip(
            adams, tables, (tf.constant(gradient), tf.constant(gradient), sparse), strict=True
        ):
            adam.apply([received], [table])
    for table in tables[1:]:
        np.testing.assert_allclose(table.numpy(), tables[0].numpy(), rtol=1e-5, atol=1e-6)


def test_the_global_norm_of_all_gradients_is_clipped() -> None:
    """Repeated rows count with their sum; the moments show what the update has received."""
    table, bias = keras.Variable(np.zeros((3, 2), np.float32)), keras.Variable(np.zeros(2, np.float32))
    adam = LazyAdam(0.1, clip_norm=1.0)
    adam.build([table, bias])
    adam.apply(
        [sparse_gradient([1, 1], [np.array([1.0, 2.0]), np.array([2.0, 2.0])], (3, 2)), tf.zeros(2)], [table, bias]
    )
    np.testing.assert_allclose(adam.first_moments[0].numpy()[1], [0.1 * 3 / 5, 0.1 * 4 / 5], rtol=1e-5)
    adam = LazyAdam(0.1, clip_norm=100.0)
    adam.build([bias])
    adam.apply([tf.constant([3.0, 4.0])], [bias])
    np.testing.assert_allclose(adam.first_moments[0].numpy(), [0.3, 0.4], rtol=1e-5)


def test_its_config_makes_the_same_optimizer() -> None:
    rate = decaying_rate(0.01, warmup_steps=2, decay_steps=10)
    adam = LazyAdam(rate, beta_1=0.8, epsilon=1e-6, clip_norm=0.5, learning_rate_factors={"table": 0.25})
    again = keras.optimizers.deserialize(keras.optimizers.serialize(adam))
    assert isinstance(again, LazyAdam)
    assert again.get_config() == adam.get_config()
    assert (again.beta_1, again.clip_norm, again.learning_rate_factors) == (0.8, 0.5, {"table": 0.25})


def test_its_state_is_saved_with_the_weights_of_a_model(tmp_path: Path) -> None:
    def small_model() -> keras.Model:
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((), dtype="int32"), keras.layers.Embedding(9, 4), keras.layers.Dense(1)])
        model.compile(LazyAdam(0.05), loss="mse", jit_compile=False)
        model.optimizer.build(model.trainable_variables)
        return model

    rows, targets = np.array([1, 2, 2, 5], np.int32), np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    whole, first, second = small_model(), small_model(), small_model()
    whole.fit(rows, targets, epochs=4, shuffle=False, verbose=0)
    first.fit(rows, targets, epochs=2, shuffle=False, verbose=0)
    first.save_weights(tmp_path / "half.weights.h5")
    second.load_weights(tmp_path / "half.weights.h5")
    assert int(second.optimizer.iterations) == 2
    second.fit(rows, targets, epochs=2, shuffle=False, verbose=0)
    for expected, value in zip(whole.weights, second.weights, strict=True):
        np.testing.assert_allclose(value.numpy(), expected.numpy(), rtol=1e-6, atol=1e-7)


def test_the_rate_rises_and_falls_to_a_tenth() -> None:
    rate = decaying_rate(0.01, warmup_steps=4, decay_steps=20)
    values = [float(rate(step)) for step in range(30)]
    np.testing.assert_allclose(values[:5], np.linspace(0, 0.01, 5), atol=1e-8)
    assert all(later < earlier for earlier, later in itertools.pairwise(values[4:21]))
    np.testing.assert_allclose(values[20:], 0.001, rtol=1e-5)
    assert float(decaying_rate(0.01, 0, 20)(0)) == pytest.approx(0.01)


def test_text_encoders_have_their_own_learning_rate(run: Path) -> None:
    factor = "encoders.document.learning_rate_factor=0.2"
    rates = ["stage1.learning_rate=7e-4", "stage1.text_learning_rate=2e-4", factor]
    config = read_config(run / "config.toml", rates)
    towers = build_towers(config, read_tokenizers(run, config))
    model = RetrievalModel(towers)
    compile_stage(model, stage=1, steps_per_epoch=100)
    expected = {}
    for tower, rate in ((towers.query, 2e-4), (towers.document, 4e-5)):
        (encoder,) = tower.text_encoders.values()
        expected |= {variable.path: rate for variable in encoder.trainable_variables}
    variables = model.trainable_variables
    before = [variable.numpy() for variable in variables]
    model.optimizer.build(variables)
    model.optimizer.apply([tf.ones(variable.shape) for variable in variables], variables)
    # The first step of Adam is the rate, for a gradient of any size.
    used = set()
    for variable, old in zip(variables, before, strict=True):
        rate = expected.get(variable.path, 7e-4)
        used.add(rate)
        np.testing.assert_allclose(old - variable.numpy(), rate, rtol=0.01, err_msg=variable.path)
    assert used == {4e-5, 2e-4, 7e-4}
    clipped = math.sqrt(sum(old.size for old in before))
    np.testing.assert_allclose(model.optimizer.first_moments[0].numpy(), 0.1 / clipped, rtol=1e-3)
