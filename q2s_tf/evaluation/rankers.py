"""What is evaluated: ways to score, and so to order, every document of a catalogue for a query."""

from collections.abc import Iterator, Sequence

import bm25s
import numpy as np
import Stemmer
import tensorflow as tf

from q2s_tf.cli import track
from q2s_tf.tables import Table
from q2s_tf.text import normalise

CHUNK = 1 << 24
"""Scores that are computed at a time: 64 MB, however large the catalogue is."""
RRF_K = 60


def cosine_rows(queries: np.ndarray, documents: np.ndarray) -> Iterator[np.ndarray]:
    """For each query its cosine to every document, `[N]`, from unit vectors `[Q, D]` and `[N, D]`."""
    step = max(1, CHUNK // len(documents))
    for start in range(0, len(queries), step):
        yield from queries[start : start + step] @ documents.T


def reciprocal_rank_fusion(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Fuses the orders of several systems into one score for each document.

        RRF(d) = Σ_s 1 / (60 + rank_s(d))

    Equal scores share the better rank. A document that a system does not retrieve, with score −∞, gets nothing from it.

    Args:
        rows: by system its score of every document, `[N]`.

    Returns:
        float64 `[N]`.

    Source: Cormack, Clarke and Büttcher, SIGIR 2009, whose k = 60 it keeps.
    """
    fused = np.zeros(len(rows[0]))
    for row in rows:
        retrieved = np.flatnonzero(row > -np.inf)
        order = retrieved[np.argsort(-row[retrieved])]
        new = np.diff(row[order], prepend=np.nan) != 0
        rank = np.maximum.accumulate(np.where(new, np.arange(1, len(order) + 1), 0))
        fused[order] += 1 / (RRF_K + rank)
    return fused


def first(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the k highest scores, falling; equal scores by place. −1 stands for those that are −∞ or lacking."""
    candidates = np.arange(len(scores))
    if k < len(scores):
        candidates = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    candidates = candidates[scores[candidates] > -np.inf]
    best = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
    return np.pad(best, (0, k - len(best)), constant_values=-1)


class Bm25:
    """Lexical retrieval over titles and descriptions, as `bm25s` computes it (Lucene's BM25, k₁ = 1.5, b = 0.75).

    Texts are normalised as the towers' are, cut into runs of word characters, and stemmed as English (Snowball), which
    does little to other languages. A script without spaces stays one long word: BM25 is a floor there.

    Args:
        documents: the catalogue.
    """

    def __init__(self, documents: Table):
        texts = []
        for batch in track(documents.batches(), "indexing documents for BM25", -(-documents.num_rows() // 8_192)):
            columns = [batch.column(name).fill_null("").to_pylist() for name in ("title", "description")]
            texts += normalised([" ".join(parts) for parts in zip(*columns, strict=True)])
        self._count = len(texts)
        self._index = bm25s.BM25()
        self._index.index(_words(texts), show_progress=False)

    def rows(self, queries: list[str | None]) -> Iterator[np.ndarray]:
        """For each query the score of every document, `[N]`: 0 where they share no word."""
        for words in _words(normalised([query or "" for query in queries])):
            yield self._index.get_scores(words) if words else np.zeros(self._count, np.float32)


def normalised(texts: list[str]) -> list[str]:
    """Texts as the towers read them."""
    return [text.decode() for text in normalise(tf.constant(texts, tf.string)).numpy()]


def _words(texts: list[str]) -> list[list[str]]:
    return bm25s.tokenize(
        texts,
        lower=False,
        token_pattern=r"(?u)\w+",
        stopwords=None,
        stemmer=Stemmer.Stemmer("english"),
        return_ids=False,
        show_progress=False,
    )
