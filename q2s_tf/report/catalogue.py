"""The catalogue as the document tower sees it: near-duplicates, hubs, and a map in two dimensions."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import skew
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from q2s_tf.cli import track

CHUNK = 256
"""Documents that are compared with all others at a time."""
AXES = 48
"""Axes of the PCA on which pairs are compared first."""
MANY = 20_000
"""Pairs of a chunk that are cheaper to compare by one product than one by one."""
CLUSTER_WORDS = 3
WORD = re.compile(r"[^\W\d_]{3,}")


def near_duplicates(embeddings: np.ndarray, threshold: float = 0.99) -> list[np.ndarray]:
    """Groups of documents that the tower can hardly tell apart.

    Two documents are linked where their cosine is at least `threshold`; a group is what links connect.

    Args:
        embeddings: unit vectors `[N, D]`.
        threshold: least cosine of a link.

    Returns:
        Rows of each group of two or more, in rising order; largest group first.
    """
    group = np.arange(len(embeddings))
    # Distances only shrink on the first axes of a PCA, so that most pairs are ruled out at a fraction of the cost.
    axes = embeddings
    if embeddings.shape[1] > AXES < len(embeddings):
        axes = PCA(AXES, svd_solver="covariance_eigh").fit_transform(embeddings)
    squares, ones = np.square(axes).sum(axis=1, keepdims=True), np.ones((len(axes), 1), axes.dtype)
    left, right = np.hstack([-2 * axes, squares, ones]), np.hstack([axes, ones, squares])
    farthest = 2 - 2 * threshold + 1e-4
    for start in track(range(0, len(embeddings), CHUNK), "looking for near-duplicates"):
        # Only the part above the diagonal; a chunk's links are merged at once, so that memory stays bounded.
        chunk = slice(start, start + CHUNK)
        distances = left[chunk] @ right[start:].T  # |a|² + |b|² − 2ab by one product
        rows, columns = np.nonzero(distances <= farthest)
        if len(rows) > MANY:
            rows, columns = np.nonzero(embeddings[chunk] @ embeddings[start:].T >= threshold)
        else:
            near = np.einsum("pd,pd->p", embeddings[chunk][rows], embeddings[start:][columns]) >= threshold
            rows, columns = rows[near], columns[near]
        links = (group[rows + start], group[columns + start])
        graph = coo_array((np.ones(len(rows), bool), links), shape=(len(group), len(group)))
        group = connected_components(graph, directed=False)[1][group]
    order = np.argsort(group, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return sorted((each for each in groups if len(each) > 1), key=lambda each: (-len(each), each[0]))


@dataclass(frozen=True)
class Hubness:
    """How unevenly documents turn up in the first results.

    Attributes:
        skewness: of N_k, the number of queries whose first k results hold a document, over the catalogue.
        even: what it would be if every result were drawn evenly from the catalogue (Poisson): 1 / √mean(N_k).
        never: share of the catalogue in no query's first k.
        hubs: row and N_k of the documents that turn up most, falling.
        histogram: how many documents have N_k = 0, 1, 2 …
    """

    skewness: float
    even: float
    never: float
    hubs: list[tuple[int, int]]
    histogram: list[int]


def measure_hubness(retrieved: Sequence[Sequence[int]], catalogue: int, k: int = 10, hubs: int = 10) -> Hubness:
    """Hubness of the first k results.

        N_k(d) = |{q : d among the first k of q}|;  skewness = E[(N_k − μ)³] / σ³

    Args:
        retrieved: by query, rows of the documents found, best first; −1 stands for none.
        catalogue: number of documents.
        k: rank of the cut.
        hubs: how many of them to name.

    Source: Radovanović et al., Hubs in space, JMLR 2010.
    """
    counts = np.zeros(catalogue, int)
    for found in retrieved:
        counts[[row for row in found[:k] if row >= 0]] += 1
    order = np.argsort(-counts, kind="stable")[:hubs]
    skewness = float(skew(counts)) if counts.any() and (counts != counts[0]).any() else 0.0
    named = [(int(row), int(counts[row])) for row in order if counts[row]]
    even = float(counts.mean() ** -0.5) if counts.any() else 0.0
    return Hubness(skewness, even, float((counts == 0).mean()), named, np.bincount(counts).tolist())


def draw_map(embeddings: np.ndarray, seed: int) -> np.ndarray:
    """Places in the plane, `[N, 2]`, where neighbours of `[N, D]` stay neighbours: t-SNE of the first 50 axes.

    The axes are those of a PCA. Fewer than 10 rows are placed by their first two axes.
    """
    rows, dimension = embeddings.shape
    if rows < 2:
        return np.zeros((rows, 2))
    if rows < 10 or dimension < 2:
        plane = PCA(min(2, rows, dimension), random_state=seed).fit_transform(embeddings)
        return np.pad(plane, [(0, 0), (0, 2 - plane.shape[1])])
    axes = PCA(min(50, rows, dimension), random_state=seed).fit_transform(embeddings)
    return TSNE(perplexity=min(30, (rows - 1) / 3), init="pca", max_iter=500, random_state=seed).fit_transform(axes)


def name_clusters(embeddings: np.ndarray, titles: Sequence[str], clusters: int, seed: int) -> list[str]:
    """For each row `[N, D]` the name of its k-means cluster: the words that set its titles apart from the others.

    Of the words of three letters and more those with the highest n ln(p / P), where n titles of the cluster, a share p,
    have the word and a share P of all do.
    """
    labels = KMeans(min(clusters, len(embeddings)), n_init=3, random_state=seed).fit_predict(embeddings)
    words = [set(WORD.findall(title.casefold())) for title in titles]
    everywhere = Counter(word for each in words for word in each)
    names = {}
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        here = Counter(word for row in rows for word in words[row])
        worth = {word: n * math.log(n / len(rows) * len(words) / everywhere[word]) for word, n in here.items()}
        best = sorted(worth, key=lambda word: (-worth[word], word))[:CLUSTER_WORDS]
        names[label] = ", ".join(best) or f"cluster {label + 1}"
    return [names[label] for label in labels]
