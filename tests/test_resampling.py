"""Intervals and significance compared with SciPy, scikit-learn and samples with known properties."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from q2s_tf.evaluation.resampling import RESAMPLES, bootstrap, holm, interval, mean, p_value, pair_auc


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_pair_counts_as_often_as_its_query_was_drawn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    query, relevant = generator.integers(5, size=30), generator.random(30) < 0.4
    scores = generator.integers(4, size=30) / 3
    counts = generator.integers(4, size=(5, 3)).astype(float)
    for draw, auc in zip(counts.T, pair_auc(scores, relevant, query)(counts), strict=True):
        weights = draw[query]
        if weights[relevant].any() and weights[~relevant].any():
            assert auc == pytest.approx(roc_auc_score(relevant, scores, sample_weight=weights))
        else:
            assert math.isnan(auc)


def test_a_mean_leaves_out_undefined_values() -> None:
    values, weights = np.array([1.0, math.nan, 0.0, 0.5]), np.array([1.0, 7.0, 3.0, 2.0])
    counts = np.array([[1.0, 0, 2], [1, 5, 0], [1, 0, 0], [1, 0, 1]])
    np.testing.assert_allclose(mean(values)(counts), [0.5, math.nan, 2.5 / 3])
    np.testing.assert_allclose(mean(values, weights)(counts), [2 / 6, math.nan, 3 / 4])


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = np.random.default_rng(2).beta(0.5, 1, 300)
    low, high = interval(bootstrap({"x": mean(values)}, np.ones(300, bool), seed=1)["x"])
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=3).confidence_interval
    width = theirs.high - theirs.low
    assert low == pytest.approx(theirs.low, abs=0.1 * width)
    assert high == pytest.approx(theirs.high, abs=0.1 * width)


def test_intervals_have_their_nominal_coverage() -> None:
    generator = np.random.default_rng(4)
    held = 0
    for trial in range(200):
        low, high = interval(bootstrap({"x": mean(generator.random(60))}, np.ones(60, bool), trial)["x"])
        held += low <= 0.5 <= high
    assert 178 <= held <= 199, "95 % of 200, within five standard deviations"


def test_intervals_of_auc_are_wider_if_pairs_of_a_query_are_correlated() -> None:
    generator = np.random.default_rng(5)
    relevant, query = np.tile([True, False], 400), np.repeat(np.arange(40), 20)
    own = generator.normal(size=800) + relevant
    shared = generator.normal(size=40)[query] * np.where(relevant, 1, -1) + relevant
    statistics = {"own": pair_auc(own, relevant, query), "shared": pair_auc(shared, relevant, query)}
    width = {key: np.ptp(interval(samples)) for key, samples in bootstrap(statistics, np.ones(40, bool), 6).items()}
    assert width["shared"] > 1.5 * width["own"]


def test_the_same_draws_serve_all_and_follow_the_seed() -> None:
    values = np.random.default_rng(7).random(50)
    first = bootstrap({"a": mean(values), "b": mean(values)}, np.ones(50, bool), 1)
    np.testing.assert_array_equal(first["a"], first["b"])
    assert len(first["a"]) == RESAMPLES
    np.testing.assert_array_equal(first["a"], bootstrap({"a": mean(values)}, np.ones(50, bool), 1)["a"])
    assert first["a"].tolist() != bootstrap({"a": mean(values)}, np.ones(50, bool), 2)["a"].tolist()


def test_only_some_queries_are_drawn() -> None:
    values = np.array([0.0, 1.0, 0.0, 1.0])
    samples = bootstrap({"all": mean(values), "ones": mean(1 - values)}, values > 0, 1, resamples=30)
    assert (samples["all"] == 1).all() and (samples["ones"] == 0).all()


def test_p_values_of_zero_constant_and_undefined_differences() -> None:
    assert p_value(np.zeros(1000)) == 1
    assert p_value(np.full(1000, 0.1)) == pytest.approx(2 / 1001)
    assert p_value(np.array([*[-1.0] * 20, *[1.0] * 979, math.nan])) == pytest.approx(2 * 21 / 1000)
    assert interval(np.full(5, math.nan)) == pytest.approx((math.nan, math.nan), nan_ok=True)


def test_p_values_without_a_difference_are_uniform() -> None:
    generator = np.random.default_rng(8)
    values = [
        p_value(bootstrap({"x": mean(generator.normal(size=80))}, np.ones(80, bool), trial)["x"])
        for trial in range(200)
    ]
    assert scipy.stats.kstest(values, "uniform").pvalue > 0.001


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_the_same_as_its_definition(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for step, place in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
            if p_values[place] * (len(p_values) - step) > level:
                break
            rejected.add(place)
        assert {place for place, p in enumerate(corrected) if p <= level} == rejected
