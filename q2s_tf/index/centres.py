"""Centres of partitions by k-means, and the nearest centre of each document."""

from itertools import pairwise

import numpy as np
from sklearn.cluster import KMeans

from q2s_tf.index.blocks import Vectors, read_blocks, read_rows

TRAINING_ROWS = 32
"""Documents that k-means is trained on, for each centre."""
PARTS = 8
"""Parts of a block that are grouped one after the other; the memory of small products is used again."""
GROUPS_PER_ROOT = 4
"""Groups of documents per √P, for P centres."""
CANDIDATES_PER_ROOT = 16
"""Centres per √P that the documents of a group are compared with. At a million documents, 99.7% of them got their
nearest centre in half of the time of all comparisons, and the recall fell by .001."""


def find_centres(vectors: Vectors, count: int, seed: int) -> np.ndarray:
    """Centres `[P, D]` by k-means on a sample, scaled to unit length so that long centres do not attract queries."""
    sample = np.sort(np.random.default_rng(seed).permutation(len(vectors))[: TRAINING_ROWS * count])
    clusters = KMeans(count, init="random", n_init=1, max_iter=8, random_state=seed, copy_x=False)
    centres = clusters.fit(read_rows(vectors, sample)).cluster_centers_
    return (centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def nearest_centres(vectors: Vectors, centres: np.ndarray, seed: int) -> np.ndarray:
    """Find the centre with the highest cosine of each vector, in two levels.

    The vectors are grouped around few points, which k-means finds among the centres. The vectors of a group are
    compared with the centres that are nearest to its point, so the cost of a vector grows with √P. Up to P = 256 the
    result is exact.

    Args:
        vectors: Unit vectors `[N, D]`.
        centres: Unit vectors `[P, D]`.
        seed: Seed of the grouping.

    Returns:
        Numbers of centres, int32 `[N]`.
    """
    count, root = len(centres), len(centres) ** 0.5
    points = find_centres(centres, min(count, round(GROUPS_PER_ROOT * root)), seed)
    candidates = min(count, round(CANDIDATES_PER_ROOT * root))
    near = np.sort(np.argpartition(-(points @ centres.T), candidates - 1, axis=1)[:, :candidates], axis=1)
    nearest = np.empty(len(vectors), np.int32)
    for rows, block in read_blocks(vectors, f"sorting documents into {count:,} partitions"):
        parts = np.array_split(block, PARTS)
        group = np.concatenate([np.argmax(part @ points.T, axis=1) for part in parts])
        order = np.argsort(group, kind="stable")
        limits = np.searchsorted(group[order], np.arange(len(points) + 1))
        for number, (first, last) in enumerate(pairwise(limits)):
            if first < last:
                some = order[first:last]
                best = np.argmax(block[some] @ centres[near[number]].T, axis=1)
                nearest[rows.start + some] = near[number][best]
    return nearest
