"""Mean fusion weights of the channels, by groups of rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from q2s_tf.report.channels import ChannelVectors

SHORT = "1–4"
"""Queries of up to four characters; in the paper, 3-grams have the largest weight there."""
LENGTHS = (SHORT, "5–9", "10–14", "15–19", "20–24", "25–29", "30–39", "40+")
STARTS = (5, 10, 15, 20, 25, 30, 40)


@dataclass(frozen=True)
class GroupWeights:
    """Mean fusion weights of one group of rows.

    Attributes:
        group: name of the group.
        rows: number of rows.
        mean: by channel, the mean weight; a missing channel has weight 0.
        error: by channel, the standard error of that mean; 0 for a single row.
    """

    group: str
    rows: int
    mean: dict[str, float]
    error: dict[str, float]


def mean_weights(channels: ChannelVectors, groups: Sequence[str | None]) -> list[GroupWeights]:
    """Mean weights of each group, largest group first.

    Args:
        channels: B rows of one tower; rows without any channel are left out.
        groups: the group of each row; rows of the group None are left out.
    """
    rows_of: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        if group is not None and channels.weights[row].any():
            rows_of.setdefault(group, []).append(row)
    described = []
    for group, rows in rows_of.items():
        weights = channels.weights[rows]
        error = weights.std(axis=0, ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else np.zeros(len(channels.names))
        mean = dict(zip(channels.names, weights.mean(axis=0).tolist(), strict=True))
        described.append(GroupWeights(group, len(rows), mean, dict(zip(channels.names, error.tolist(), strict=True))))
    return sorted(described, key=lambda group: (-group.rows, group.group))


def weights_by_length(channels: ChannelVectors, queries: Sequence[str | None]) -> list[GroupWeights]:
    """Mean weights by query length in characters, shortest first; empty queries are left out."""
    lengths = [len((query or "").strip()) for query in queries]
    groups = [LENGTHS[np.digitize(length, STARTS)] if length else None for length in lengths]
    return sorted(mean_weights(channels, groups), key=lambda group: LENGTHS.index(group.group))


def weights_by_missing(channels: ChannelVectors) -> list[GroupWeights]:
    """Mean weights of rows without a missing channel, and of rows without each channel; groups may overlap.

    Channels that are missing in the same rows, such as those that read the same input, form one group.
    """
    names_of: dict[bytes, list[str]] = {}
    for index, name in enumerate(channels.names):
        names_of.setdefault(channels.present[:, index].tobytes(), []).append(name)
    groups = mean_weights(channels, ["nothing missing" if all(row) else None for row in channels.present])
    for names in names_of.values():
        present = channels.present[:, channels.names.index(names[0])]
        groups += mean_weights(channels, [None if row else f"no {', '.join(names)}" for row in present])
    return groups
