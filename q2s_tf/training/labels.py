"""What the query-classification head is to tell of each document: the frequent queries that led to it."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Labels:
    """The queries of the head that led to each document, by row of the catalogue.

    Attributes:
        count: C, how many queries the head has.
        starts: int64 `[num_documents + 1]`; document d's labels are `values[starts[d]:starts[d + 1]]`.
        values: int32, from 0, the most frequent query, to C − 1.
    """

    count: int
    starts: np.ndarray
    values: np.ndarray

    def rows(self, documents: np.ndarray) -> np.ndarray:
        """int32 `[B, K]`, K at least 1, padded with −1."""
        starts, lengths = self.starts[documents], self.starts[documents + 1] - self.starts[documents]
        places = np.arange(max(1, lengths.max(initial=0)))
        used = places < lengths[:, None]
        padded = np.full(used.shape, -1, np.int32)
        padded[used] = self.values[(starts[:, None] + places)[used]]
        return padded


def frequent_labels(group: np.ndarray, document: np.ndarray, count: int, num_documents: int) -> Labels:
    """Labels of the `count` most frequent queries; of two that are equally frequent the one with the smaller number.

    Args:
        group: int64 `[P]`, the query of each positive.
        document: `[P]`, the row of its document.
        count: how many queries at most.
        num_documents: size of the catalogue.
    """
    groups, which, seen = np.unique(group, return_inverse=True, return_counts=True)
    chosen = np.argsort(-seen, kind="stable")[:count]
    label = np.full(len(groups), -1, np.int64)
    label[chosen] = np.arange(len(chosen))
    kept = label[which] >= 0
    pairs = np.unique(document[kept].astype(np.int64) * len(chosen) + label[which][kept])
    lengths = np.bincount(pairs // len(chosen), minlength=num_documents)
    return Labels(len(chosen), np.concatenate([[0], np.cumsum(lengths)]), (pairs % len(chosen)).astype(np.int32))
