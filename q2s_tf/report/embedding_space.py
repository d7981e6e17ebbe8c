"""The embeddings of a catalogue: near-duplicates, and how alike they are."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from q2s_tf.cli import track

CHUNK = 256
"""Documents that are compared with all others at a time."""


def near_duplicates(embeddings: np.ndarray, threshold: float = 0.99) -> list[np.ndarray]:
    """Groups of documents with nearly the same embedding: the connected components of links between documents.

    Args:
        embeddings: unit vectors `[N, D]`.
        threshold: lowest cosine of a link.

    Returns:
        Rows of each group of two or more, ascending; largest group first.
    """
    group = np.arange(len(embeddings))
    for start in track(range(0, len(embeddings), CHUNK), "looking for near-duplicates"):
        # Only the part above the diagonal. The links of a chunk are merged at once, which bounds the memory.
        rows, columns = np.nonzero(embeddings[start : start + CHUNK] @ embeddings[start:].T >= threshold)
        links = (group[rows + start], group[columns + start])
        graph = coo_array((np.ones(len(rows), bool), links), shape=(len(group), len(group)))
        group = connected_components(graph, directed=False)[1][group]
    order = np.argsort(group, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return sorted((rows for rows in groups if len(rows) > 1), key=lambda rows: (-len(rows), rows[0]))


def mean_cosine(embeddings: np.ndarray) -> float:
    """Mean cosine of two different rows: (|Σ x|² − Σ |x|²) / (N (N − 1))."""
    rows = len(embeddings)
    total = float(np.square(embeddings.sum(axis=0, dtype=np.float64)).sum())
    return (total - float(np.square(embeddings, dtype=np.float64).sum())) / max(1, rows * (rows - 1))
