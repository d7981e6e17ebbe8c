"""The losses against their equations in NumPy: every mask, weight and reduction, gradients and extremes."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_market import TinyMarket

from q2s_tf.config_files import read_config
from q2s_tf.losses import (
    binary_cross_entropy,
    cosine_distillation,
    gradient_blending,
    in_batch_softmax,
    margin_rank,
    query_classification,
    symmetric_softmax,
)

Oracle = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From float64 scores `[batch, batch]` and their mask to the loss of each row."""

LARGEST = float(np.finfo(np.float32).max)


# --- oracles: one row at a time, only the entries that the mask leaves


def softmax_oracle(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Eq. 2."""
    losses = []
    for row, used in zip(range(len(scores)), mask, strict=True):
        candidates = scores[row][used | (np.arange(len(scores)) == row)]
        largest = candidates.max()
        losses.append(largest + np.log(np.exp(candidates - largest).sum()) - scores[row, row])
    return np.array(losses)


def symmetric_oracle(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Eq. 3."""
    return (softmax_oracle(scores, mask) + softmax_oracle(scores.T, mask.T)) / 2


def negative_of(scores: np.ndarray, mask: np.ndarray, row: int, rank: int) -> float | None:
    """The `rank`-th highest score of a negative of the row; None if the row has fewer negatives."""
    negatives = [scores[row, other] for other in range(len(scores)) if other != row and mask[row, other]]
    return sorted(negatives, reverse=True)[rank - 1] if len(negatives) >= rank else None


def margin_oracle(scores: np.ndarray, mask: np.ndarray, margin: float, rank: int) -> np.ndarray:
    """Eq. 5; a row without such a negative has no loss."""
    losses = np.zeros(len(scores))
    for row in range(len(scores)):
        negative = negative_of(scores, mask, row, rank)
        if negative is not None:
            losses[row] = max(0.0, -(scores[row, row] - negative) + margin)
    return losses


def cross_entropy_oracle(scores: np.ndarray, mask: np.ndarray, rank: int) -> np.ndarray:
    """Eq. 4 with a rising loss for a rising score of the negative."""
    losses = []
    for row in range(len(scores)):
        loss = -np.log(1 / (1 + np.exp(-scores[row, row])))
        negative = negative_of(scores, mask, row, rank)
        if negative is not None:
            loss -= np.log(1 - 1 / (1 + np.exp(-negative)))
        losses.append(loss)
    return np.array(losses)


def reduced(losses: np.ndarray, weights: np.ndarray | None, reduction: str) -> Any:
    weights = np.ones(len(losses)) if weights is None else weights
    if reduction == "none":
        return weights * losses
    if reduction == "sum":
        return float(weights @ losses)
    return float(weights @ losses / weights.sum()) if weights.sum() else 0.0


LOSSES: dict[str, tuple[Callable[..., Any], Oracle]] = {
    "softmax": (in_batch_softmax, softmax_oracle),
    "symmetric": (symmetric_softmax, symmetric_oracle),
    "cross_entropy": (binary_cross_entropy, partial(cross_entropy_oracle, rank=1)),
    "cross_entropy_of_second": (
        partial(binary_cross_entropy, negative_rank=2),
        partial(cross_entropy_oracle, rank=2),
    ),
    "margin": (partial(margin_rank, margin=0.2), partial(margin_oracle, margin=0.2, rank=1)),
    "margin_of_third": (
        partial(margin_rank, margin=0.9, negative_rank=3),
        partial(margin_oracle, margin=0.9, rank=3),
    ),
}
EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)
SEEDS, SIZES = st.integers(0, 2**32 - 1), st.integers(1, 9)
REDUCTIONS = st.sampled_from(["mean", "sum", "none"])


def random_batch(seed: int, rows: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, a mask with False on parts of its diagonal too, and weights of which some are 0."""
    generator = np.random.default_rng(seed)
    weights = generator.uniform(0.5, 3, rows) * (generator.random(rows) < 0.8)
    return scale * generator.uniform(-1, 1, (rows, rows)), generator.random((rows, rows)) < 0.7, weights


@EVERY_LOSS
@given(SEEDS, SIZES, st.sampled_from([1.0, 20.0]), st.booleans(), st.booleans(), REDUCTIONS)
@settings(deadline=None, max_examples=40)
def test_a_loss_is_its_equation(
    name: str, seed: int, rows: int, scale: float, masked: bool, weighted: bool, reduction: str
) -> None:
    loss, oracle = LOSSES[name]
    scores, mask, weights = random_batch(seed, rows, scale)
    options: dict[str, Any] = {"mask": tf.constant(mask)} if masked else {}
    if weighted:
        options["sample_weight"] = tf.constant(weights, tf.float32)
    value = loss(tf.constant(scores, tf.float32), reduction=reduction, **options)
    expected = oracle(scores, mask if masked else np.ones_like(mask))
    np.testing.assert_allclose(value, reduced(expected, weights if weighted else None, reduction), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("loss", "reduction"),
    [
        (in_batch_softmax, "mean"),
        (symmetric_softmax, "mean"),
        (binary_cross_entropy, "sum"),
        (partial(margin_rank, margin=0.2), "sum"),
    ],
)
def test_the_default_reduction_is_that_of_the_equation(loss: Callable[..., Any], reduction: str) -> None:
    scores = tf.constant(random_batch(1, 4)[0], tf.float32)
    assert float(loss(scores)) == float(loss(scores, reduction=reduction))


@EVERY_LOSS
def test_a_masked_entry_is_left_out(name: str) -> None:
    """A document that is masked in every row but its own does not change the losses of the other rows."""
    loss, _ = LOSSES[name]
    scores = random_batch(2, 6)[0].astype(np.float32)
    mask = np.ones((6, 6), bool)
    mask[:5, 5] = mask[5, :5] = False
    for value in (1e6, -1e6, np.inf, -np.inf, np.nan):
        scores[:5, 5] = scores[5, :5] = value
        losses = loss(tf.constant(scores), mask=tf.constant(mask), reduction="none")
        expected = loss(tf.constant(scores[:5, :5]), reduction="none")
        np.testing.assert_allclose(losses[:5], expected, rtol=1e-6)
        assert np.isfinite(losses[5])


@EVERY_LOSS
def test_the_order_of_a_batch_does_not_matter(name: str) -> None:
    loss, _ = LOSSES[name]
    scores, mask, _ = random_batch(3, 7)
    order = np.random.default_rng(4).permutation(7)
    losses = loss(tf.constant(scores), mask=tf.constant(mask), reduction="none")
    permuted = loss(tf.constant(scores[order][:, order]), mask=tf.constant(mask[order][:, order]), reduction="none")
    np.testing.assert_allclose(permuted, losses.numpy()[order], rtol=1e-6)


@EVERY_LOSS
def test_the_gradient_of_a_loss_equals_finite_differences(name: str) -> None:
    loss, _ = LOSSES[name]
    scores, mask, weights = random_batch(7, 5, scale=3.0)
    np.fill_diagonal(mask, True)
    options = {"mask": tf.constant(mask), "sample_weight": tf.constant(weights)}
    gradient = check_gradient(partial(loss, **options), scores)
    unused = ~(mask | mask.T) if name == "symmetric" else ~mask
    assert not gradient[unused].any(), "a masked entry has no gradient"


def check_gradient(function: Callable[[tf.Tensor], Any], values: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The gradient of a function of float64 values, compared with central differences."""
    variable = tf.Variable(values)
    with tf.GradientTape() as tape:
        value = function(variable.value())
    gradient = np.asarray(tf.convert_to_tensor(tape.gradient(value, variable)))
    for position in np.ndindex(values.shape):
        shift = np.zeros_like(values)
        shift[position] = step
        above, below = (float(function(tf.constant(values + sign * shift))) for sign in (1, -1))
        assert gradient[position] == pytest.approx((above - below) / (2 * step), abs=1e-5)
    return gradient


@EVERY_LOSS
def test_rows_whose_negatives_are_all_masked_are_finite(name: str) -> None:
    loss, oracle = LOSSES[name]
    scores = np.array([[0.3, 0.9, 0.1], [0.2, 0.1, 0.6], [0.7, 0.8, -0.5]])
    mask = np.array([[False] * 3, [True] * 3, [False] * 3])
    variable = tf.Variable(scores, dtype=tf.float32)
    with tf.GradientTape() as tape:
        losses = loss(variable.value(), mask=tf.constant(mask), reduction="none")
        total = tf.reduce_sum(losses)
    gradient = tf.convert_to_tensor(tape.gradient(total, variable)).numpy()
    np.testing.assert_allclose(losses, oracle(scores, mask), rtol=1e-5, atol=1e-6)
    assert np.isfinite(gradient).all()
    if name in ("softmax", "margin", "margin_of_third"):
        assert not gradient[[0, 2]].any(), "a query without negatives has no gradient"


@EVERY_LOSS
@pytest.mark.parametrize("extreme", [1e4, 1e30, LARGEST])
def test_losses_of_extreme_scores_are_not_nan(name: str, extreme: float) -> None:
    loss, _ = LOSSES[name]
    mask = tf.constant([[True, True, False], [True] * 3, [False, True, True]])
    for scores in (np.full((3, 3), extreme), np.full((3, 3), -extreme), extreme * (1 - 2 * np.eye(3))):
        variable = tf.Variable(scores, dtype=tf.float32)
        with tf.GradientTape() as tape:
            losses = loss(variable.value(), mask=mask, reduction="none")
        gradient = tf.convert_to_tensor(tape.gradient(losses, variable)).numpy()
        assert not np.isnan(losses).any()
        assert not np.isnan(gradient).any()


@EVERY_LOSS
def test_weights_of_zero_give_zero_and_not_nan(name: str) -> None:
    loss, _ = LOSSES[name]
    scores = tf.Variable(random_batch(5, 3)[0], dtype=tf.float32)
    for reduction in ("mean", "sum"):
        with tf.GradientTape() as tape:
            value = loss(scores.value(), sample_weight=tf.zeros(3), reduction=reduction)
        assert float(value) == 0
        assert not tf.convert_to_tensor(tape.gradient(value, scores)).numpy().any()


@EVERY_LOSS
def test_a_batch_of_one_row_has_no_negative(name: str) -> None:
    loss, oracle = LOSSES[name]
    losses = loss(tf.constant([[0.4]]), reduction="none")
    np.testing.assert_allclose(losses, oracle(np.array([[0.4]]), np.ones((1, 1), bool)), rtol=1e-6)


@EVERY_LOSS
def test_losses_compile_for_an_unknown_batch_size(name: str) -> None:
    loss, _ = LOSSES[name]
    matrix = tf.TensorSpec([None, None], tf.float32)
    signature = [matrix, tf.TensorSpec([None, None], tf.bool), tf.TensorSpec([None], tf.float32)]
    compiled = tf.function(loss, input_signature=signature, autograph=False)
    for rows in (2, 5):
        scores, mask, weights = random_batch(6, rows)
        arguments = tf.constant(scores, tf.float32), tf.constant(mask), tf.constant(weights, tf.float32)
        np.testing.assert_allclose(compiled(*arguments), loss(*arguments), rtol=1e-6)


def test_two_losses_by_hand() -> None:
    cosines = tf.constant([[0.9, 0.8], [0.1, 0.5]])
    rank = float(margin_rank(cosines, margin=0.2))
    assert rank == pytest.approx(0.1)  # row 0: 0.2 - (0.9 - 0.8); row 1: 0.5 is 0.4 ahead
    softmax = float(in_batch_softmax(cosines))
    assert softmax == pytest.approx((np.log1p(np.exp(-0.1)) + np.log1p(np.exp(-0.4))) / 2)


def test_the_loss_falls_as_the_hard_negative_falls() -> None:
    for loss, _ in LOSSES.values():
        values = [float(loss(tf.constant([[0.2, 0.1, score], [0.0, 1, 0], [0, 0.0, 1]]))) for score in (1.0, 0.5, 0.15)]
        assert all(above >= below for above, below in pairwise(values))
    values = [float(binary_cross_entropy(tf.constant([[0.2, score], [0, 1.0]]))) for score in (1.0, 0.5, 0.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


@EVERY_LOSS
def test_an_unknown_reduction_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match='reduction must be "mean", "sum" or "none"; got \'average\''):
        LOSSES[name][0](tf.eye(2), reduction="average")


# --- gradient blending, eq. 6


@given(SEEDS, st.integers(1, 6), st.booleans())
@settings(deadline=None, max_examples=30)
def test_gradient_blending_is_equation_6(seed: int, count: int, weighted: bool) -> None:
    generator = np.random.default_rng(seed)
    losses, weights = generator.normal(size=count), generator.uniform(0, 2, count)
    value = gradient_blending(list(tf.constant(losses)), weights.tolist() if weighted else None)
    assert float(value) == pytest.approx(float(weights @ losses if weighted else losses.sum()))


@given(SEEDS, st.integers(1, 4), SIZES, st.booleans(), REDUCTIONS)
@settings(deadline=None, max_examples=30)
def test_gradient_blending_reduces_the_losses_of_rows(
    seed: int, count: int, rows: int, weighted: bool, reduction: str
) -> None:
    generator = np.random.default_rng(seed)
    losses, weights = generator.normal(size=(count, rows)), generator.uniform(0, 2, count)
    sample_weight = generator.uniform(0, 3, rows) if weighted else None
    value = gradient_blending(
        list(tf.constant(losses)),
        weights.tolist(),
        None if sample_weight is None else tf.constant(sample_weight),
        reduction,
    )
    np.testing.assert_allclose(value, reduced(weights @ losses, sample_weight, reduction), rtol=1e-6, atol=1e-9)


def test_gradient_blending_gives_each_loss_the_gradient_of_its_weight() -> None:
    losses = tf.Variable([0.5, 2.0, 3.0])
    with tf.GradientTape() as tape:
        value = gradient_blending(tf.unstack(losses.value()), [0.3, 0.0, 2.0])
    np.testing.assert_allclose(tape.gradient(value, losses), [0.3, 0, 2])
    check_gradient(lambda x: gradient_blending([tf.reduce_sum(x**2), tf.reduce_sum(x**3)], [0.3, 2.0]), np.ones(3) / 3)


def test_gradient_blending_needs_a_weight_for_each_loss() -> None:
    with pytest.raises(ValueError, match="needs a weight for each loss; got 1 for 2 losses"):
        gradient_blending([1.0, 2.0], [1.0])


# --- the classification head


@given(SEEDS, st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.booleans(), REDUCTIONS)
@settings(deadline=None, max_examples=40)
def test_query_classification_divides_its_target_among_the_labels(
    seed: int, rows: int, queries: int, most: int, weighted: bool, reduction: str
) -> None:
    generator = np.random.default_rng(seed)
    logits, weights = generator.normal(scale=3, size=(rows, queries)), generator.uniform(0.5, 2, rows)
    labels, expected = np.full((rows, most), -1), np.zeros(rows)
    for row in range(rows):
        own = generator.permutation(queries)[: generator.integers(0, min(queries, most) + 1)]
        labels[row, : len(own)] = own
        probabilities = np.exp(logits[row]) / np.exp(logits[row]).sum()
        expected[row] = -sum(np.log(probabilities[label]) / len(own) for label in own)
    value = query_classification(
        tf.constant(logits), tf.constant(labels, tf.int32), tf.constant(weights) if weighted else None, reduction
    )
    np.testing.assert_allclose(value, reduced(expected, weights if weighted else None, reduction), rtol=1e-6, atol=1e-9)


def test_the_gradient_of_query_classification_equals_finite_differences() -> None:
    labels = tf.constant([[0, 2], [1, -1], [-1, -1]])
    logits = np.random.default_rng(3).normal(size=(3, 4))
    gradient = check_gradient(lambda values: query_classification(values, labels), logits)
    assert not gradient[2].any(), "a document without label"


def test_query_classification_of_extreme_logits_is_finite() -> None:
    logits = tf.constant([[LARGEST, -LARGEST, 0], [1e30, 1e30, -1e30], [0, 0, 0]])
    labels = tf.constant([[0, -1], [0, 1], [-1, -1]])
    np.testing.assert_allclose(query_classification(logits, labels, reduction="none"), [0, np.log(2), 0], rtol=1e-6)
    assert float(query_classification(logits, labels, sample_weight=tf.zeros(3))) == 0


# --- distillation


@given(SEEDS, st.integers(1, 6), st.integers(1, 8), st.booleans(), REDUCTIONS)
@settings(deadline=None, max_examples=40)
def test_cosine_distillation_is_the_cosine_distance_to_the_teacher(
    seed: int, rows: int, dimension: int, weighted: bool, reduction: str
) -> None:
    generator = np.random.default_rng(seed)
    student, teacher = generator.normal(size=(2, rows, dimension))
    student[generator.random(rows) < 0.2] = 0
    without_teacher = generator.random(rows) < 0.3
    teacher[without_teacher] = 0
    expected = np.zeros(rows)
    for row in np.flatnonzero(~without_teacher):
        norms = np.linalg.norm(student[row]) * np.linalg.norm(teacher[row])
        expected[row] = 1 - (student[row] @ teacher[row] / norms if norms else 0)
    weights = generator.uniform(0.5, 2, rows) if weighted else None
    value = cosine_distillation(
        tf.constant(student), tf.constant(teacher), None if weights is None else tf.constant(weights), reduction
    )
    np.testing.assert_allclose(value, reduced(expected, weights, reduction), rtol=1e-5, atol=1e-7)


def test_the_gradient_of_cosine_distillation_equals_finite_differences() -> None:
    student, teacher = np.random.default_rng(9).normal(size=(2, 3, 4))
    teacher[2] = 0
    gradient = check_gradient(lambda values: cosine_distillation(values, tf.constant(teacher)), student)
    assert not gradient[2].any()


def test_a_student_of_zeros_learns_towards_its_teacher() -> None:
    student, teacher = tf.Variable(tf.zeros([1, 3])), tf.constant([[1.0, 2, 2]])
    with tf.GradientTape() as tape:
        value = cosine_distillation(student.value(), teacher)
    gradient = tf.convert_to_tensor(tape.gradient(value, student)).numpy()
    assert float(value) == 1
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(-gradient / np.linalg.norm(gradient), teacher / 3, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e15])
def test_cosine_distillation_does_not_depend_on_lengths(scale: float) -> None:
    student, teacher = tf.constant([[1.0, 2, 2]]), tf.constant([[2.0, 1, -2]])
    for pair in ((scale * student, teacher), (student, scale * teacher)):
        assert float(cosine_distillation(*pair)) == pytest.approx(1.0, abs=1e-6)


# --- through the retrieval task of TFRS, as training compiles it


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        (1, []),
        (1, ["stage1.symmetric=true"]),
        (2, []),
        (2, ["stage2.negative_rank=3"]),
        (2, ["stage2.loss=binary_cross_entropy", "stage2.scale=12"]),
        (2, ["stage2.loss=binary_cross_entropy", "stage2.scale=12", "stage2.negative_rank=3"]),
        (2, ["stage2.negatives=same_country"]),
    ],
)
def test_a_compiled_stage_computes_its_equation(market: TinyMarket, stage: int, overrides: list[str]) -> None:
    from q2s_tf.models import build_towers
    from q2s_tf.training.retrieval_model import RetrievalModel, compile_stage

    config = read_config(
        market.lean_config, ["stage1.scale=17", "stage2.margin=0.15", "stage2.batch_size=16", *overrides]
    )
    model = RetrievalModel(build_towers(config, {}))
    compile_stage(model, stage, steps_per_epoch=1)
    generator = np.random.default_rng(11)
    query, document = (unit(generator.normal(size=(6, 4))) for _ in range(2))
    _, mask, weights = random_batch(12, 6)
    mask[2] = False
    np.fill_diagonal(mask, True)
    query[4] = document[3] = 0  # a row without any channel has no part in the loss
    used = ~np.isin(np.arange(6), [3, 4])
    cosines = query @ document.T
    query_country, document_country = np.array([1, 2, 0, 1, 2, 2]), np.array([1, 1, 2, 2, 0, 2])
    batch = {
        "weight": tf.constant(weights, tf.float32),
        "score_mask": tf.constant(mask),
        "query_country": tf.constant(query_country, tf.int32),
        "document_country": tf.constant(document_country, tf.int32),
    }
    mask[np.arange(6) != 3, 3] = False
    value = model.retrieval_loss(batch, tf.constant(query, tf.float32), tf.constant(document, tf.float32))
    if stage == 1:
        oracle = symmetric_oracle if config.stage1.symmetric else softmax_oracle
        losses = oracle(17 * cosines, mask)
    elif config.stage2.loss == "binary_cross_entropy":
        losses = cross_entropy_oracle(12 * cosines, mask, config.stage2.negative_rank)
    else:
        if config.stage2.negatives == "same_country":
            same = query_country[:, None] == document_country
            mask &= same | (query_country == 0)[:, None] | (document_country == 0) | np.eye(6, dtype=bool)
        losses = margin_oracle(cosines, mask, 0.15, config.stage2.negative_rank)
    expected = reduced(losses, weights * used, "mean" if stage == 1 else "sum")
    assert float(value) == pytest.approx(expected, rel=1e-4)


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)
