"""The variants that exist for benchmarks: fusion by concatenation, and stage 2 with the loss of stage 1."""

import importlib
from collections.abc import Iterator
from math import erf
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_market import TinyMarket, filled_config, market_tokenizer

from q2s_tf.layers import AttentionFusion
from q2s_tf.models import build_towers

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def comparisons() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("comparisons")


def oracle(channels: np.ndarray, present: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """One row: the mean of the present channels, and W₂ gelu(W₁ Φ + b₁)."""
    if not present.any():
        return np.zeros(channels.shape[1])
    first, bias, second = weights
    hidden = np.array([x * (1 + erf(x / 2**0.5)) / 2 for x in (channels * present[:, None]).ravel() @ first + bias])
    return channels[present].mean(axis=0) + hidden @ second


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 5), st.integers(1, 7))
@settings(deadline=None, max_examples=30)
def test_concat_fusion_is_its_equation(
    comparisons: ModuleType, seed: int, batch: int, channels: int, dimension: int
) -> None:
    generator = np.random.default_rng(seed)
    phi = generator.normal(size=(batch, channels, dimension)).astype(np.float32)
    present = generator.random((batch, channels)) < 0.7
    layer = comparisons.ConcatFusion()
    layer.build(phi.shape)
    weights = [generator.normal(size=weight.shape).astype(np.float32) for weight in layer.get_weights()]
    layer.set_weights(weights)
    fused, shares = layer(phi, present)
    expected = [oracle(row.astype(np.float64), mask, weights) for row, mask in zip(phi, present, strict=True)]
    np.testing.assert_allclose(fused, expected, atol=1e-3)
    np.testing.assert_allclose(shares, [mask / max(mask.sum(), 1) for mask in present], atol=1e-6)


def test_concat_fusion_starts_as_the_mean(comparisons: ModuleType) -> None:
    phi = tf.constant(np.random.default_rng(1).normal(size=(4, 3, 5)).astype(np.float32))
    fused, _ = comparisons.ConcatFusion()(phi, tf.constant([[True, True, False]] * 4))
    np.testing.assert_allclose(fused, np.mean(phi[:, :2], axis=1), atol=1e-6)


def test_towers_have_the_fusion_of_the_comparison_inside_it_only(comparisons: ModuleType, market: TinyMarket) -> None:
    config, model = filled_config(market), market_tokenizer(market)
    tokenizers = dict.fromkeys(config.encoders, model)
    with comparisons.comparison({"concat"}):
        assert isinstance(build_towers(config, tokenizers).query.fusion, comparisons.ConcatFusion)
    assert isinstance(build_towers(config, tokenizers).query.fusion, AttentionFusion)


def test_the_control_of_stage_2_has_the_loss_of_stage_1(comparisons: ModuleType, market: TinyMarket) -> None:
    module = importlib.import_module("q2s_tf.training.train")
    config, model = filled_config(market), market_tokenizer(market)
    towers = build_towers(config, dict.fromkeys(config.encoders, model))
    query, document = (tf.math.l2_normalize(tf.random.normal([6, 16], seed=seed), axis=1) for seed in (1, 2))
    batch = {"weight": tf.ones(6), "score_mask": tf.ones([6, 6], tf.bool)}

    def loss(stage: int, techniques: set[str]) -> float:
        with comparisons.comparison(techniques):
            trained = module.RetrievalModel(towers)
            module.compile_stage(trained, stage, 10)
            return float(trained.retrieval_loss(batch, query, document))

    assert loss(2, {"continued"}) == pytest.approx(loss(1, set()))
    assert loss(2, set()) != pytest.approx(loss(1, set()))
