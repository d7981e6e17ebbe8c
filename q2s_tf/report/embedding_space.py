"""The embeddings of a catalogue: near-duplicates, hubs, and a map in two dimensions."""

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
CLUSTER_WORDS = 3
WORD = re.compile(r"[^\W\d_]{3,}")


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


@dataclass(frozen=True)
class Hubness:
    """How unevenly documents occur in the first k results.

    Attributes:
        skewness: of N_k, the number of queries with a document in their first k results, over the catalogue.
        even: expected skewness if results were drawn uniformly from the catalogue (Poisson): 1 / √mean(N_k).
        never: share of the catalogue with N_k = 0.
        hubs: row and N_k of the documents with the largest N_k, descending.
        histogram: number of documents with N_k = 0, 1, 2 …
    """

    skewness: float
    even: float
    never: float
    hubs: list[tuple[int, int]]
    histogram: list[int]


def measure_hubness(retrieved: np.ndarray, catalogue: int, k: int = 10, hubs: int = 10) -> Hubness:
    """Hubness of the first k results.

        N_k(d) = |{q : d among the first k of q}|;  skewness = E[(N_k − μ)³] / σ³

    Args:
        retrieved: rows of the retrieved documents, best first, int `[Q, ≥ k]`; −1 for none.
        catalogue: number of documents.
        k: rank of the cut.
        hubs: number of hubs to return.

    Source: Radovanović et al., Hubs in space, JMLR 2010.
    """
    first = retrieved[:, :k]
    counts = np.bincount(first[first >= 0], minlength=catalogue)
    skewness = float(skew(counts)) if (counts != counts[0]).any() else 0.0
    largest = [(int(row), int(counts[row])) for row in np.argsort(-counts, kind="stable")[:hubs] if counts[row]]
    even = float(counts.mean() ** -0.5) if counts.any() else 0.0
    return Hubness(skewness, even, float((counts == 0).mean()), largest, np.bincount(counts).tolist())


def draw_map(embeddings: np.ndarray, seed: int) -> np.ndarray:
    """Coordinates `[N, 2]` that keep neighbours of `[N, D]` together: t-SNE of the first 50 PCA axes.

    Fewer than 10 rows get their first two PCA axes.
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
    """For each row `[N, D]` the name of its k-means cluster: the most distinctive words of the titles in the cluster.

    These are the words of three or more letters with the highest n ln(p / P): n titles of the cluster (a share p of it)
    have the word, and a share P of all titles.
    """
    labels = KMeans(min(clusters, len(embeddings)), n_init=3, random_state=seed).fit_predict(embeddings)
    words = [set(WORD.findall(title.casefold())) for title in titles]
    totals = Counter(word for title in words for word in title)
    names = {}
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        counts = Counter(word for row in rows for word in words[row])
        worth = {word: n * math.log(n / len(rows) * len(words) / totals[word]) for word, n in counts.items()}
        best = sorted(worth, key=lambda word: (-worth[word], word))[:CLUSTER_WORDS]
        names[label] = ", ".join(best) or f"cluster {label + 1}"
    return [names[label] for label in labels]
