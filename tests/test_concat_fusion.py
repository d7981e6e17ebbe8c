"""Fusion by concatenation: against NumPy, with missing channels, and told apart from attention where weights show."""

from math import erf
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_market import TinyMarket

from q2s_tf.config import save_config
from q2s_tf.errors import InputError
from q2s_tf.evaluation.evaluate import evaluate
from q2s_tf.layers import ConcatFusion
from q2s_tf.models import Towers, build_towers, load, save_weights
from q2s_tf.report.explain import explain
from q2s_tf.report.report import write_report
from q2s_tf.text import Tokenizer


def oracle(channels: np.ndarray, present: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """One row: the mean of what is there, and W₂ gelu(W₁ Φ + b₁)."""
    if not present.any():
        return np.zeros(channels.shape[1])
    first, bias, second = weights
    inner = np.concatenate([phi if there else 0 * phi for phi, there in zip(channels, present, strict=True)])
    hidden = np.array([x * (1 + erf(x / 2**0.5)) / 2 for x in inner @ first + bias])
    return channels[present].mean(axis=0) + hidden @ second


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 5), st.integers(1, 7))
@settings(deadline=None, max_examples=30)
def test_it_is_its_equation(seed: int, batch: int, channels: int, dimension: int) -> None:
    generator = np.random.default_rng(seed)
    phi = generator.normal(size=(batch, channels, dimension)).astype(np.float32)
    present = generator.random((batch, channels)) < 0.7
    layer = ConcatFusion()
    layer.build(phi.shape, present.shape)
    weights = [generator.normal(size=each.shape).astype(np.float32) for each in layer.get_weights()]
    layer.set_weights(weights)
    fused, shares = layer(phi, present)
    expected = [oracle(row.astype(np.float64), there, weights) for row, there in zip(phi, present, strict=True)]
    np.testing.assert_allclose(fused, expected, atol=1e-3)
    np.testing.assert_allclose(shares, [there / max(there.sum(), 1) for there in present], atol=1e-6)
    other = np.where(present[..., None], phi, 1e6).astype(np.float32)
    np.testing.assert_array_equal(layer(other, present)[0], fused, "what a missing channel holds changes nothing")


def test_it_starts_as_the_mean_and_both_layers_learn() -> None:
    phi = tf.constant(np.random.default_rng(1).normal(size=(4, 3, 5)).astype(np.float32))
    present = tf.constant([[True, True, False]] * 4)
    layer = ConcatFusion()
    np.testing.assert_allclose(layer(phi, present)[0], np.mean(phi[:, :2], axis=1), atol=1e-6)
    layer.projection.kernel.assign(np.eye(5))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(phi, present)[0] ** 2)
    assert all(np.abs(tf.convert_to_tensor(each)).sum() > 0 for each in tape.gradient(loss, layer.trainable_variables))


@pytest.fixture(scope="module")
def concatenated(run: Path, towers: Towers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with this fusion, whose second layer says something."""
    folder = tmp_path_factory.mktemp("runs") / "concatenated"
    folder.mkdir()
    config = towers.config.model_copy(update={"fusion": "concat_mlp"})
    save_config(config, folder / "config.toml")
    tokenizer = Tokenizer.read(run / "tokenizer.model")
    (folder / "tokenizer.model").write_bytes((run / "tokenizer.model").read_bytes())
    made = build_towers(config, tokenizer)
    for tower in (made.query, made.document):
        kernel = tower.encoder.get_layer("fusion").projection.kernel
        kernel.assign(np.random.default_rng(2).normal(size=kernel.shape))
    save_weights(made, folder / "stage1.weights.h5")
    return folder


def test_towers_have_it_by_the_config(concatenated: Path, towers: Towers) -> None:
    rows = {"query": ["red sofa", "sofa", ""], "country": ["US", None, None]}
    answer = load(concatenated).query.predict(rows)
    np.testing.assert_allclose(np.linalg.norm(answer["embedding"], axis=1), [1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(answer["channel_weights"], [[1 / 3] * 3, [1 / 2, 0, 1 / 2], [0, 0, 0]], atol=1e-6)
    assert not np.allclose(answer["embedding"], towers.query.predict(rows)["embedding"], atol=0.05)


def test_no_score_is_taken_apart_by_weights_that_are_not_there(concatenated: Path, market: TinyMarket) -> None:
    with pytest.raises(InputError, match="run .*concatenated: .* fusion = 'attention'; got 'concat_mlp'"):
        explain(concatenated, market.documents, "red sofa", "US", "d00")


def test_the_report_shows_importance_and_no_weights(concatenated: Path, market: TinyMarket, tmp_path: Path) -> None:
    page = write_report(evaluate(concatenated, market.documents, market.judgements, tmp_path), tmp_path)
    for text in (page.read_text(), (tmp_path / "report.md").read_text()):
        assert "fusion weight" not in text.lower()
        assert "the fusion has no channel weights" in text
    assert "(<code>concat_mlp</code>) has no channel weights" in page.read_text()
    assert "Importance in the query tower" in page.read_text()
