"""The losses against their equations in NumPy, with every mask, and through the TFRS task as training builds it."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_market import TinyMarket

from q2s_tf.config import read_config
from q2s_tf.training.losses import (
    hardest_binary_cross_entropy,
    in_batch_softmax,
    margin_rank,
    query_classification,
    symmetric_softmax,
)
from q2s_tf.training.step import retrieval_task

MASKED = float(np.finfo(np.float32).min) / 100
"""What TFRS puts in the place of a masked score."""


def softmax_oracle(scores: np.ndarray, allowed: np.ndarray, weights: np.ndarray) -> float:
    """Eq. 2, written as it reads: each row's documents that are not masked compete."""
    losses = []
    for row in range(len(scores)):
        competing = [np.exp(scores[row, other]) for other in range(len(scores)) if allowed[row, other]]
        losses.append(-np.log(np.exp(scores[row, row]) / sum(competing)))
    return float(np.dot(weights, losses) / weights.sum())


def negative_of(scores: np.ndarray, allowed: np.ndarray, row: int, rank: int) -> float | None:
    """The score of the row's rank-th hardest document that may be a negative; None where there are not so many."""
    negatives = [scores[row, other] for other in range(len(scores)) if other != row and allowed[row, other]]
    return sorted(negatives, reverse=True)[rank - 1] if len(negatives) >= rank else None


def margin_oracle(cosines: np.ndarray, allowed: np.ndarray, weights: np.ndarray, margin: float, rank: int = 1) -> float:
    """Eq. 5, written as it reads; a row without such a negative has no loss."""
    total = 0.0
    for row in range(len(cosines)):
        negative = negative_of(cosines, allowed, row, rank)
        if negative is not None:
            total += weights[row] * max(0.0, -(cosines[row, row] - negative) + margin)
    return total


def cross_entropy_oracle(scores: np.ndarray, allowed: np.ndarray, weights: np.ndarray, rank: int = 1) -> float:
    """Eq. 4 with the right sign: the positive is to be a match, the hard negative is not."""
    total = 0.0
    for row in range(len(scores)):
        loss = -np.log(1 / (1 + np.exp(-scores[row, row])))
        negative = negative_of(scores, allowed, row, rank)
        if negative is not None:
            loss -= np.log(1 - 1 / (1 + np.exp(-negative)))
        total += weights[row] * loss
    return total


def batch(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosines, a mask whose diagonal is True, weights."""
    generator = np.random.default_rng(seed)
    allowed = generator.random((rows, rows)) < 0.7
    np.fill_diagonal(allowed, True)
    return generator.uniform(-1, 1, (rows, rows)), allowed, generator.uniform(0.5, 3, rows)


LOSSES: dict[str, Callable[..., tf.Tensor]] = {
    "softmax": in_batch_softmax,
    "symmetric": symmetric_softmax,
    "margin": partial(margin_rank, margin=0.2),
    "margin_of_third": partial(margin_rank, margin=0.9, negative_rank=3),
    "cross_entropy": hardest_binary_cross_entropy,
}

SEEDS, SIZES = st.integers(0, 2**32 - 1), st.integers(1, 9)


@given(SEEDS, SIZES, st.sampled_from([1.0, 15.0, 20.0]))
@settings(deadline=None, max_examples=40)
def test_in_batch_softmax_is_equation_2(seed: int, rows: int, scale: float) -> None:
    cosines, allowed, weights = batch(seed, rows)
    scores = tf.constant(np.where(allowed, scale * cosines, MASKED), tf.float32)
    labels, float_weights = tf.eye(rows), tf.constant(weights, tf.float32)
    expected = softmax_oracle(scale * cosines, allowed, weights)
    assert float(in_batch_softmax(labels, scores, float_weights)) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    evenly = softmax_oracle(scale * cosines, allowed, np.ones(rows))
    assert float(in_batch_softmax(labels, scores)) == pytest.approx(evenly, rel=1e-4, abs=1e-5)


@given(SEEDS, SIZES, st.sampled_from([0.1, 0.2, 0.8]), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_margin_rank_is_equation_5_summed(seed: int, rows: int, margin: float, rank: int) -> None:
    cosines, allowed, weights = batch(seed, rows)
    scores = tf.constant(np.where(allowed, cosines, MASKED), tf.float32)
    labels, float_weights = tf.eye(rows), tf.constant(weights, tf.float32)
    loss = partial(margin_rank, margin=margin, negative_rank=rank)
    expected = margin_oracle(cosines, allowed, weights, margin, rank)
    assert float(loss(labels, scores, float_weights)) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    expected = margin_oracle(cosines, allowed, np.ones(rows), margin, rank)
    assert float(loss(labels, scores)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(SEEDS, SIZES, st.sampled_from([1.0, 15.0]))
@settings(deadline=None, max_examples=40)
def test_symmetric_softmax_is_equation_3(seed: int, rows: int, scale: float) -> None:
    cosines, allowed, weights = batch(seed, rows)
    scores = tf.constant(np.where(allowed, scale * cosines, MASKED), tf.float32)
    expected = softmax_oracle(scale * cosines, allowed, weights) + softmax_oracle(scale * cosines.T, allowed.T, weights)
    value = float(symmetric_softmax(tf.eye(rows), scores, tf.constant(weights, tf.float32)))
    assert value == pytest.approx(expected / 2, rel=1e-4, abs=1e-5)


@given(SEEDS, SIZES, st.sampled_from([1.0, 15.0]), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_hardest_binary_cross_entropy_is_equation_4(seed: int, rows: int, scale: float, rank: int) -> None:
    cosines, allowed, weights = batch(seed, rows)
    scores = tf.constant(np.where(allowed, scale * cosines, MASKED), tf.float32)
    expected = cross_entropy_oracle(scale * cosines, allowed, weights, rank)
    loss = partial(hardest_binary_cross_entropy, negative_rank=rank)
    value = float(loss(tf.eye(rows), scores, tf.constant(weights, tf.float32)))
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(SEEDS, st.integers(1, 5), st.integers(1, 6), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_query_classification_spreads_its_target_over_the_labels(seed: int, rows: int, queries: int, most: int) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=3, size=(rows, queries))
    labels = np.full((rows, most), -1)
    expected = np.zeros(rows)
    for row in range(rows):
        own = generator.permutation(queries)[: generator.integers(0, min(queries, most) + 1)]
        labels[row, : len(own)] = own
        chances = np.exp(logits[row]) / np.exp(logits[row]).sum()
        expected[row] = -sum(np.log(chances[label]) / len(own) for label in own)
    value = query_classification(tf.constant(logits), tf.constant(labels, tf.int32)).numpy()
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-9)


def test_both_losses_by_hand() -> None:
    cosines = tf.constant([[0.9, 0.8], [0.1, 0.5]])
    rank = float(margin_rank(tf.eye(2), cosines, margin=0.2))
    assert rank == pytest.approx(0.1)  # row 0: 0.2 - (0.9 - 0.8); row 1: 0.5 is 0.4 ahead
    softmax = float(in_batch_softmax(tf.eye(2), cosines))
    assert softmax == pytest.approx((np.log1p(np.exp(-0.1)) + np.log1p(np.exp(-0.4))) / 2)


def test_a_row_whose_every_negative_is_masked_costs_nothing_and_moves_nothing() -> None:
    scores = tf.Variable([[0.3, MASKED, MASKED], [0.2, 0.1, 0.6], [MASKED, MASKED, -0.5]])
    for loss in (LOSSES["softmax"], LOSSES["margin"]):
        with tf.GradientTape() as tape:
            value = loss(tf.eye(3), scores)
        gradient = tape.gradient(value, scores).numpy()
        assert np.isfinite(float(value))
        assert np.isfinite(gradient).all()
        assert not gradient[[0, 2]].any()
        assert gradient[1].any()


def test_weights_of_zero_give_zero_and_not_nan() -> None:
    assert float(in_batch_softmax(tf.eye(3), tf.random.normal([3, 3], seed=1), tf.zeros(3))) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name: str) -> None:
    cosines, allowed, weights = batch(7, 5)
    scores = tf.Variable(np.where(allowed, 3 * cosines, -1e30))

    def loss(values: tf.Tensor) -> tf.Tensor:
        return LOSSES[name](tf.eye(5, dtype=tf.float64), values, tf.constant(weights))

    with tf.GradientTape() as tape:
        value = loss(scores)
    gradient = tape.gradient(value, scores).numpy()
    step = 1e-6
    for row, column in np.argwhere(allowed):
        nudge = np.zeros((5, 5))
        nudge[row, column] = step
        slope = (float(loss(scores + nudge)) - float(loss(scores - nudge))) / (2 * step)
        assert gradient[row, column] == pytest.approx(slope, abs=1e-5)
    assert not gradient[~allowed].any()


def test_the_gradient_of_the_head_equals_finite_differences() -> None:
    labels = tf.constant([[0, 2], [1, -1], [-1, -1]])
    logits = tf.Variable(np.random.default_rng(3).normal(size=(3, 4)))
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(query_classification(logits, labels))
    gradient = tape.gradient(value, logits).numpy()
    for place in np.ndindex(3, 4):
        nudge = np.zeros((3, 4))
        nudge[place] = 1e-6
        above, below = (tf.reduce_sum(query_classification(logits + sign * nudge, labels)) for sign in (1, -1))
        assert gradient[place] == pytest.approx(float(above - below) / 2e-6, abs=1e-6)
    assert not gradient[2].any()


# --- through TFRS, as `training.step` uses it


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("stage", "corrected", "override"),
    [
        (1, False, []),
        (1, True, []),
        (1, True, ["stage1.symmetric=true"]),
        (2, False, []),
        (2, False, ["stage2.negative_rank=3"]),
        (2, False, ["stage2.loss=binary_cross_entropy", "stage2.scale=12"]),
        (2, False, ["stage2.loss=binary_cross_entropy", "stage2.scale=12", "stage2.negative_rank=3"]),
        (2, False, ["stage2.loss=softmax", "stage2.scale=12"]),
    ],
)
def test_the_task_of_a_stage_computes_its_equation(
    market: TinyMarket, stage: int, corrected: bool, override: list[str]
) -> None:
    config = read_config(market.lean_config, ["stage1.scale=17", "stage2.margin=0.15", *override])
    generator = np.random.default_rng(11)
    queries, documents = (unit(generator.normal(size=(6, 4))) for _ in range(2))
    _, allowed, weights = batch(12, 6)
    allowed[2] = np.eye(6, dtype=bool)[2]  # nothing but its own document
    cosines = queries @ documents.T
    probability = generator.uniform(0.01, 0.5, 6)
    if stage == 1:
        # logQ: what is drawn often is a negative too often, and its score is lowered for that.
        scores = 17 * cosines - np.log(probability) * corrected
        expected = softmax_oracle(scores, allowed, weights)
        if override:
            expected = (expected + softmax_oracle(scores.T, allowed.T, weights)) / 2
    elif config.stage2.loss == "softmax":
        expected = softmax_oracle(12 * cosines, allowed, weights)
    elif config.stage2.loss == "binary_cross_entropy":
        expected = cross_entropy_oracle(12 * cosines, allowed, weights, config.stage2.negative_rank)
    else:
        expected = margin_oracle(cosines, allowed, weights, 0.15, config.stage2.negative_rank)
    task = retrieval_task(config, stage)
    value = tf.function(task)(
        tf.constant(queries, tf.float32),
        tf.constant(documents, tf.float32),
        sample_weight=tf.constant(weights, tf.float32),
        candidate_sampling_probability=tf.constant(probability, tf.float32) if corrected else None,
        score_mask=tf.constant(allowed),
        compute_metrics=False,
        compute_batch_metrics=False,
    )
    assert float(value) == pytest.approx(expected, rel=1e-4)
