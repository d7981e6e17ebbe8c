"""What the channels weigh in the fusion, by groups of rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from q2s_tf.report.channels import ChannelVectors

LENGTHS = ((1, 4), (5, 9), (10, 14), (15, 19), (20, 24), (25, 29), (30, 39), (40, None))
"""Query lengths in characters that are taken together; the paper sees the lead change at five."""


@dataclass(frozen=True)
class GroupWeights:
    """Mean fusion weights of one group of rows.

    Attributes:
        group: its name.
        rows: how many there are.
        mean: by channel, the mean weight; a missing channel counts with its weight, 0.
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
    usable = np.asarray(channels.weights.any(axis=1))
    rows_of: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        if group is not None and usable[row]:
            rows_of.setdefault(group, []).append(row)
    found = [_describe(group, channels.names, channels.weights[rows]) for group, rows in rows_of.items()]
    return sorted(found, key=lambda each: (-each.rows, each.group))


def length_group(query: str | None) -> str | None:
    """The group of `LENGTHS` that a query belongs to, "5–9"; None for an empty query."""
    length = len((query or "").strip())
    for least, most in LENGTHS:
        if least <= length <= (length if most is None else most):
            return f"{least}+" if most is None else f"{least}–{most}"
    return None


def weights_by_length(channels: ChannelVectors, queries: Sequence[str | None]) -> list[GroupWeights]:
    """Mean weights by query length in characters, shortest first (the paper's curve)."""
    found = mean_weights(channels, [length_group(query) for query in queries])
    return sorted(found, key=lambda each: int(each.group.rstrip("+").split("–")[0]))


def weights_by_missing(channels: ChannelVectors) -> list[GroupWeights]:
    """Mean weights where nothing is missing, and for each channel where it is; a row may be in several groups.

    Channels that are missing in the same rows, as those that read one input are, make one group.
    """
    names_of: dict[bytes, list[str]] = {}
    for place, name in enumerate(channels.names):
        names_of.setdefault(channels.present[:, place].tobytes(), []).append(name)
    complete = np.asarray(channels.present.all(axis=1))
    found = mean_weights(channels, ["nothing missing" if here else None for here in complete])
    for names in names_of.values():
        there = channels.present[:, channels.names.index(names[0])]
        found += mean_weights(channels, [None if here else f"no {', '.join(names)}" for here in there])
    return found


def _describe(group: str, names: list[str], weights: np.ndarray) -> GroupWeights:
    error = weights.std(axis=0, ddof=1) / len(weights) ** 0.5 if len(weights) > 1 else np.zeros(len(names))
    return GroupWeights(
        group,
        len(weights),
        dict(zip(names, weights.mean(axis=0).tolist(), strict=True)),
        dict(zip(names, error.tolist(), strict=True)),
    )
