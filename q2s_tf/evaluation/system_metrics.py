"""The metrics of several systems on the same queries, their confidence intervals, and paired tests between systems."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from q2s_tf.evaluation.judgements import Judgements
from q2s_tf.evaluation.metrics import Run, ndcg, retrieval
from q2s_tf.evaluation.resampling import (
    TEST_RESAMPLES,
    Statistic,
    bootstrap,
    holm,
    interval,
    mean,
    p_value,
    pair_auc,
    queries_needed,
)

ROC_AUC = "roc_auc"
TIE = 1e-9
"""Two values of one query that differ by no more are a tie."""


@dataclass(frozen=True)
class SystemMetrics:
    """Metrics of every system on Q queries and their J judged pairs.

    Attributes:
        query: the query of each judged pair, int `[J]`.
        relevant: whether the pair is relevant, bool `[J]`.
        scores: by system its score of each pair, float `[J]`.
        per_query: by system and metric the value of each query, float `[Q]`, NaN where it is undefined.
    """

    query: np.ndarray
    relevant: np.ndarray
    scores: dict[str, np.ndarray]
    per_query: dict[str, dict[str, np.ndarray]]

    @property
    def num_queries(self) -> int:
        """Q, including queries without a judged pair."""
        return next(len(values) for metrics in self.per_query.values() for values in metrics.values())

    def values(self, system: str) -> dict[str, float]:
        """The metrics of a system, as far as they are defined."""
        return {metric: self._value(each) for (name, metric), each in self._statistics().items() if name == system}

    def figures(self, seed: int) -> dict[str, dict[str, dict[str, float | int]]]:
        """By system and metric: `value`, the `low` and `high` end of its interval, and the number of `queries`."""
        statistics = self._statistics()
        samples = bootstrap(statistics, self._measured(), seed)
        figures: dict[str, dict[str, dict[str, float | int]]] = {system: {} for system in self.per_query}
        for (system, metric), statistic in statistics.items():
            low, high = interval(samples[system, metric])
            known = self.query if metric == ROC_AUC else np.flatnonzero(~np.isnan(self.per_query[system][metric]))
            value = {"value": self._value(statistic), "low": low, "high": high}
            figures[system][metric] = {**value, "queries": len(np.unique(known))}
        return figures

    def differences(
        self, pairs: Sequence[tuple[str, str]], seed: int, resamples: int = TEST_RESAMPLES
    ) -> list[dict[str, Any]]:
        """Paired tests: for each pair of systems and each metric, the difference a − b.

        Returns:
            Rows with `metric`, `a`, `b`, `difference`, its interval (`low`, `high`), the p-value of the paired
            bootstrap (`p`), the same corrected for the number of metrics (`p_holm`), the number of queries that a
            wins, loses and ties (`wins`, `losses`, `ties`), and `queries_needed` for an interval without zero. ROC AUC
            has no value per query, so that these are None.
        """
        statistics = self._statistics()
        samples = bootstrap(statistics, self._measured(), seed, resamples)
        rows: list[dict[str, Any]] = []
        for a, b in pairs:
            tests: list[dict[str, Any]] = []
            for metric in [metric for system, metric in statistics if system == a and (b, metric) in statistics]:
                drawn = samples[a, metric] - samples[b, metric]
                low, high = interval(drawn)
                difference = self._value(statistics[a, metric]) - self._value(statistics[b, metric])
                test = {"metric": metric, "a": a, "b": b, "difference": difference, "low": low, "high": high}
                tests.append({**test, "p": p_value(drawn), **self._compare_queries(metric, a, b)})
            for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
                test["p_holm"] = corrected
            rows += tests
        return rows

    def movers(self, metric: str, a: str, b: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The queries whose value rises most from a to b, and those whose value falls most, at most `count` each."""
        change = np.nan_to_num(self.per_query[b][metric] - self.per_query[a][metric])
        gained, lost = (np.argsort(sign * change, kind="stable")[:count] for sign in (-1, 1))
        return gained[change[gained] > TIE], lost[change[lost] < -TIE]

    def _statistics(self) -> dict[tuple[str, str], Statistic]:
        """By system and metric how it is computed from drawn queries; a metric that no query has is left out."""
        statistics: dict[tuple[str, str], Statistic] = {}
        relevant_pairs = np.bincount(self.query, self.relevant, minlength=self.num_queries)
        for system, metrics in self.per_query.items():
            if system in self.scores and self.relevant.any() and not self.relevant.all():
                statistics[system, ROC_AUC] = pair_auc(self.scores[system], self.relevant, self.query)
            for metric, values in metrics.items():
                if not np.isnan(values).all():
                    # Batch recall is a share of pairs: a query counts as often as it has relevant pairs.
                    weights = relevant_pairs if metric.startswith("batch_recall") else None
                    statistics[system, metric] = mean(values, weights)
        return statistics

    def _measured(self) -> np.ndarray:
        """Which queries have a judged pair or a value, bool `[Q]`."""
        values = [column for metrics in self.per_query.values() for column in metrics.values()]
        return np.isin(np.arange(self.num_queries), self.query) | ~np.isnan(values).all(axis=0)

    def _value(self, statistic: Statistic) -> float:
        return float(statistic(np.ones((self.num_queries, 1)))[0])

    def _compare_queries(self, metric: str, a: str, b: str) -> dict[str, int | None]:
        if metric == ROC_AUC:
            return dict.fromkeys(("wins", "losses", "ties", "queries_needed"))
        difference = self.per_query[a][metric] - self.per_query[b][metric]
        wins, losses = int(np.sum(difference > TIE)), int(np.sum(difference < -TIE))
        ties = int(np.sum(~np.isnan(difference))) - wins - losses
        return {"wins": wins, "losses": losses, "ties": ties, "queries_needed": queries_needed(difference)}


def measure_systems(
    judged: Judgements,
    grades: tuple[float, float],
    later: Judgements | None,
    scores: dict[str, np.ndarray],
    runs: dict[str, Run],
) -> SystemMetrics:
    """Computes all metrics of all systems.

    Args:
        judged: J judged pairs of Q queries.
        grades: the lowest relevant grade in ROC AUC, and in recall and MRR.
        later: later positives of the same queries.
        scores: by system its score of each judged pair, float `[J]`; a system without has no ROC AUC and no nDCG.
        runs: by system the first documents of each query (`as_run`).
    """
    wanted = judged.select(judged.relevant(grades[1]))
    per_query: dict[str, dict[str, np.ndarray]] = {}
    for system, run in runs.items():
        metrics = per_query[system] = {}
        if system in scores and judged.rated:
            metrics["ndcg@10"] = ndcg(judged.query, scores[system], judged.gains, len(judged.queries["query"]))
        metrics |= retrieval(run, wanted.query, wanted.document)
        if later is not None:
            recall = retrieval(run, later.query, later.document)
            metrics |= {f"later_{name}": values for name, values in recall.items() if name.startswith("recall")}
    return SystemMetrics(judged.query, judged.relevant(grades[0]), scores, per_query)
