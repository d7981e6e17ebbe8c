"""Confidence intervals and significance by the bootstrap over queries, paired between systems.

Queries are drawn with replacement, each with all its judged pairs. All systems are measured on the same draws, so the
difference of two systems varies less than either of them. Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapters 13 and 16.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from q2s_tf.evaluation.metrics import divide

Statistic = Callable[[np.ndarray], np.ndarray]
"""From how often each query was drawn, float `[Q, B]` for B draws, to the statistic of each draw, `[B]`."""
Key = TypeVar("Key", bound=Hashable)

RESAMPLES = 1_000
TEST_RESAMPLES = 5_000
"""Draws of a significance test; its smallest p-value is 2 / (this + 1)."""
LEVEL = 0.95
SAME = 0.002
"""A smaller difference of two means is practically 0."""
BLOCK = 25
"""Draws that are measured at a time; memory is this times the number of judged pairs."""


def mean(values: np.ndarray, weights: np.ndarray | None = None) -> Statistic:
    """Σ mᵢ wᵢ xᵢ / Σ mᵢ wᵢ over the queries whose value xᵢ is not NaN; mᵢ is how often query i was drawn."""
    weight = np.where(np.isnan(values), 0.0, 1.0 if weights is None else weights)
    weighted = weight * np.nan_to_num(values)
    return lambda counts: divide(weighted @ counts, weight @ counts)


def pair_auc(scores: np.ndarray, relevant: np.ndarray, query: np.ndarray) -> Statistic:
    """ROC AUC over judged pairs; a pair counts as often as its query was drawn.

        AUC = Σ_{s} P(s) · (N(<s) + N(s) / 2) / (P · N)

    P(s) and N(s) are the numbers of relevant and irrelevant pairs with score s. NaN for a draw without both.
    """
    order = np.argsort(scores, kind="stable")
    scores, positive, query = scores[order], relevant[order].astype(float)[:, None], query[order]
    starts = np.flatnonzero(np.diff(scores, prepend=np.nan))

    def measure(counts: np.ndarray) -> np.ndarray:
        weight = counts[query]
        relevant_at = np.add.reduceat(weight * positive, starts, axis=0)
        irrelevant_at = np.add.reduceat(weight, starts, axis=0) - relevant_at
        below = np.cumsum(irrelevant_at, axis=0) - irrelevant_at / 2
        return divide(np.sum(relevant_at * below, axis=0), relevant_at.sum(axis=0) * irrelevant_at.sum(axis=0))

    return measure


def bootstrap(
    statistics: Mapping[Key, Statistic], queries: np.ndarray, seed: int, resamples: int = RESAMPLES
) -> dict[Key, np.ndarray]:
    """Computes every statistic, float `[resamples]`, on the same draws of queries.

    A draw takes as many queries as there are, with replacement, of those that are True in `queries`, bool `[Q]`.
    """
    generator, rows = np.random.default_rng(seed), np.flatnonzero(queries)
    blocks: dict[Key, list[np.ndarray]] = {key: [] for key in statistics}
    for start in range(0, resamples, BLOCK):
        drawn = rows[generator.integers(len(rows), size=(min(BLOCK, resamples - start), len(rows)))]
        counts = np.stack([np.bincount(row, minlength=len(queries)) for row in drawn], axis=1).astype(float)
        for key, statistic in statistics.items():
            blocks[key].append(statistic(counts))
    return {key: np.concatenate(parts) for key, parts in blocks.items()}


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The percentile interval of level `LEVEL`. Draws on which the statistic is NaN are left out."""
    known = samples[~np.isnan(samples)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def p_value(differences: np.ndarray) -> float:
    """Two-sided p-value of "no difference": twice the share of draws on the rarer side of zero.

        p = min(1, 2 · min(1 + #{Δ ≤ 0}, 1 + #{Δ ≥ 0}) / (B + 1))

    It agrees with `interval`: p < .05 where the interval excludes zero. Identical systems have p = 1.
    """
    known = differences[~np.isnan(differences)]
    rarer = min(np.sum(known <= 0), np.sum(known >= 0))
    return float(min(1.0, 2 * (1 + rarer) / (len(known) + 1)))


def queries_needed(differences: np.ndarray) -> int | None:
    """The number of queries from which on the 95 % interval of the mean difference excludes zero.

        n = (1.96 · s / |d|)²

    d and s are mean and standard deviation of the differences of two systems, one a query, NaN where undefined. The
    formula assumes that further queries have the same d and s. None for |d| < `SAME` and for fewer than two queries.
    """
    known = differences[~np.isnan(differences)]
    if len(known) < 2 or abs(known.mean()) < SAME:
        return None
    return math.ceil((1.96 * known.std(ddof=1) / known.mean()) ** 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for multiple tests (Holm, 1979): the i-th smallest times (n − i + 1), made non-decreasing."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    return corrected.tolist()
