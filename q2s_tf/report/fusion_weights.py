"""Mean fusion weights of the channels, by groups of rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from q2s_tf.report.channels import ChannelVectors

SHORT = "1–4"
"""Queries of up to four characters; in the paper, 3-grams have the largest weight there."""
LENGTHS = {SHORT: 1, "5–9": 5, "10–14": 10, "15–19": 15, "20–29": 20, "30+": 30}
"""The shortest query of each group."""


def mean_weights(channels: ChannelVectors, groups: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Mean weights of groups of rows; a missing channel has weight 0.

    Args:
        channels: B rows of one tower; rows without any channel are left out.
        groups: by name the rows of each group, bool `[B]`.

    Returns:
        For each group that has rows its name, `group`, the number of `rows`, and by channel the `mean` weight.
    """
    means = []
    for group, rows in groups.items():
        weights = channels.weights[rows & channels.present.any(axis=1)]
        if len(weights):
            mean = dict(zip(channels.names, weights.mean(axis=0).tolist(), strict=True))
            means.append({"group": group, "rows": len(weights), "mean": mean})
    return means


def group_by_length(queries: Sequence[str | None]) -> dict[str, np.ndarray]:
    """By group of `LENGTHS` which queries have its number of characters, bool `[B]`."""
    groups = np.digitize([len((query or "").strip()) for query in queries], list(LENGTHS.values()))
    return {name: groups == number for number, name in enumerate(LENGTHS, 1)}


def group_by_missing(channels: ChannelVectors) -> dict[str, np.ndarray]:
    """Which rows have all channels, and which lack one, bool `[B]`; channels that the same rows lack are one group."""
    names: dict[bytes, list[str]] = {}
    for name, present in zip(channels.names, channels.present.T, strict=True):
        names.setdefault(present.tobytes(), []).append(name)
    lacking = {f"no {', '.join(same)}": ~np.frombuffer(present, bool) for present, same in names.items()}
    return {"nothing missing": np.all(channels.present, axis=1), **lacking}


def compare_means(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """The means `first` and `second` of two samples, and the 95 % interval of their difference, `low` and `high`.

    Empty if a sample has fewer than two values. The interval is a normal approximation.
    """
    if min(len(first), len(second)) < 2:
        return {}
    means = {"first": float(first.mean()), "second": float(second.mean())}
    margin = 1.96 * float(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second)) ** 0.5
    difference = means["first"] - means["second"]
    return {**means, "low": difference - margin, "high": difference + margin}
