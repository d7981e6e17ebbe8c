"""Every metric of every system, by query and by pair, and the figures with intervals that are made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from q2s_tf.evaluation.judgements import Judgements
from q2s_tf.evaluation.metrics import Run, ndcg, retrieval
from q2s_tf.evaluation.resampling import TEST_RESAMPLES, Statistic, bootstrap, holm, interval, mean, p_value, pair_auc

ROC_AUC = "roc_auc"
EQUAL = 1e-9
"""Two values of one query that differ by less are a tie."""


@dataclass(frozen=True)
class Measures:
    """What was measured on some queries and their judged pairs.

    Attributes:
        query: the query of each judged pair, int `[J]`.
        relevant: whether it is relevant, bool `[J]`.
        scores: by system its score of each pair, float `[J]`.
        per_query: by system and metric the value of each query, float `[Q]`, NaN where it is not defined.
    """

    query: np.ndarray
    relevant: np.ndarray
    scores: dict[str, np.ndarray]
    per_query: dict[str, dict[str, np.ndarray]]

    def of_queries(self, chosen: np.ndarray) -> "Measures":
        """The same for some of the queries, bool `[Q]`, with all their pairs."""
        pairs = chosen[self.query]
        return Measures(
            (np.cumsum(chosen) - 1)[self.query[pairs]],
            self.relevant[pairs],
            {system: scores[pairs] for system, scores in self.scores.items()},
            {
                system: {metric: values[chosen] for metric, values in metrics.items()}
                for system, metrics in self.per_query.items()
            },
        )

    def statistics(self) -> dict[tuple[str, str], tuple[Statistic, int]]:
        """By system and metric how it is computed from drawn queries, and from how many queries; none if from none."""
        found: dict[tuple[str, str], tuple[Statistic, int]] = {}
        both = self.relevant.any() and not self.relevant.all()
        weights = np.bincount(self.query, self.relevant, minlength=self.num_queries)
        for system, metrics in self.per_query.items():
            if both and system in self.scores:
                auc = pair_auc(self.scores[system], self.relevant, self.query)
                found[system, ROC_AUC] = (auc, len(np.unique(self.query)))
            for metric, values in metrics.items():
                # Batch recall is a share of pairs: a query counts as often as it has relevant pairs.
                weight = weights if metric.startswith("batch_recall") else None
                if known := int(np.sum(~np.isnan(values))):
                    found[system, metric] = (mean(values, weight), known)
        return found

    @property
    def num_queries(self) -> int:
        """Q, with those that have no judged pair."""
        return next(len(values) for metrics in self.per_query.values() for values in metrics.values())

    def figures(self, seed: int) -> dict[str, dict[str, dict[str, float | int]]]:
        """By system and metric: `value`, the `low` and `high` end of its interval, `queries` it is the mean of."""
        statistics = self.statistics()
        samples = bootstrap({key: statistic for key, (statistic, _) in statistics.items()}, self.num_queries, seed)
        found: dict[str, dict[str, dict[str, float | int]]] = {system: {} for system in self.per_query}
        for (system, metric), (statistic, queries) in statistics.items():
            low, high = interval(samples[system, metric])
            found[system][metric] = {"value": self._whole(statistic), "low": low, "high": high, "queries": queries}
        return found

    def differences(self, pairs: Sequence[tuple[str, str]], seed: int) -> list[dict[str, Any]]:
        """Pairs of systems, metric by metric: the difference a − b, its interval, its significance.

        `p` is of the paired bootstrap, `p_holm` is corrected for the number of metrics of the pair of systems; `wins`,
        `losses` and `ties` count queries for a (None for ROC AUC, which no query has of its own).
        """
        statistics = {key: statistic for key, (statistic, _) in self.statistics().items()}
        samples = bootstrap(statistics, self.num_queries, seed, TEST_RESAMPLES)
        rows: list[dict[str, Any]] = []
        for a, b in pairs:
            metrics = [metric for system, metric in statistics if system == a and (b, metric) in statistics]
            for metric in metrics:
                drawn = samples[a, metric] - samples[b, metric]
                low, high = interval(drawn)
                difference = self._whole(statistics[a, metric]) - self._whole(statistics[b, metric])
                row = {"metric": metric, "a": a, "b": b, "difference": difference, "low": low, "high": high}
                rows.append({**row, "p": p_value(drawn), **self._counts(metric, a, b)})
        for _, group in groupby(rows, key=lambda row: (row["a"], row["b"])):
            tested = list(group)
            for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
                row["p_holm"] = corrected
        return rows

    def _whole(self, statistic: Statistic) -> float:
        return float(statistic(np.ones((self.num_queries, 1)))[0])

    def _counts(self, metric: str, a: str, b: str) -> dict[str, int | None]:
        if metric == ROC_AUC:
            return {"wins": None, "losses": None, "ties": None}
        better = self.per_query[a][metric] - self.per_query[b][metric]
        wins, losses = int(np.sum(better > EQUAL)), int(np.sum(better < -EQUAL))
        return {"wins": wins, "losses": losses, "ties": int(np.sum(~np.isnan(better))) - wins - losses}


def measure(
    judged: Judgements,
    relevant_at: float,
    recall_relevant_at: float,
    later: Judgements | None,
    scores: dict[str, np.ndarray],
    runs: dict[str, Run],
) -> Measures:
    """Measures systems on judged pairs, and on later positives.

    Args:
        judged: J judged pairs of Q queries.
        relevant_at: the grade from which a pair is relevant in ROC AUC.
        recall_relevant_at: the same in recall and MRR.
        later: later positives of the same queries.
        scores: by system its score of each judged pair, float `[J]`; a system without gets no ROC AUC and no nDCG.
        runs: by system the first documents of each query (`q2s_tf.evaluation.metrics.as_run`).
    """
    wanted = judged.select(judged.relevant(recall_relevant_at))
    num_queries = len(judged.queries["query"])
    per_query: dict[str, dict[str, np.ndarray]] = {}
    for system, run in runs.items():
        metrics = per_query[system] = {}
        if system in scores and judged.rated:
            metrics["ndcg@10"] = ndcg(judged.query, scores[system], judged.relevance, num_queries)
        metrics |= retrieval(run, wanted.query, wanted.document)
        if later is not None:
            recall = retrieval(run, later.query, later.document)
            metrics |= {f"later_{name}": values for name, values in recall.items() if name.startswith("recall")}
    return Measures(judged.query, judged.relevant(relevant_at), scores, per_query)
