"""The choice of the lexical weight from the recall of each query by weight."""

import numpy as np
import pytest

from q2s_tf.serving.lexical_weight import DEFAULT_WEIGHT, WEIGHTS, nearest_weight


def recalls(means: dict[float, float], queries: int, noise: float = 0.2) -> np.ndarray:
    """Recall of each query by weight, with these means and independent noise, exact in the mean."""
    values = np.random.default_rng(1).normal(0, noise, (queries, len(WEIGHTS)))
    return values - values.mean(axis=0) + [means[weight] for weight in WEIGHTS]


def peaked(best: float, height: float) -> dict[float, float]:
    return {weight: 0.5 + height * (weight == best) for weight in WEIGHTS}


@pytest.mark.parametrize("best", WEIGHTS)
def test_many_queries_give_the_best_weight_and_few_the_default(best: float) -> None:
    assert nearest_weight(recalls(peaked(best, 0.05), queries=2_000)) == best
    assert nearest_weight(recalls(peaked(best, 0.05), queries=5, noise=1)) == DEFAULT_WEIGHT


def test_a_weight_stays_the_default_within_the_given_standard_errors() -> None:
    """One query of three has a better recall with .8: a loss of 1/3 with a standard error of .27, 1.2 of them."""
    values = np.full((3, len(WEIGHTS)), 0.4)
    values[0, -1] = 1.4
    assert nearest_weight(values, 1.0) == WEIGHTS[-1]
    assert nearest_weight(values, 1.5) == DEFAULT_WEIGHT


def test_equal_weights_give_the_default() -> None:
    assert nearest_weight(np.full((3, len(WEIGHTS)), 0.4)) == DEFAULT_WEIGHT
    assert nearest_weight(np.full((1, len(WEIGHTS)), 0.4)) == DEFAULT_WEIGHT


def test_of_close_weights_the_nearest_to_the_default() -> None:
    means = {weight: 0.5 for weight in WEIGHTS} | {0.0: 0.6, 0.05: 0.599, 0.1: 0.4, 0.5: 0.4}
    assert nearest_weight(recalls(means, queries=1_000)) == 0.05
