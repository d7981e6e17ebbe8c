"""Scores of every document of a catalogue for a query: by cosine, by BM25, by reciprocal-rank fusion."""

from collections.abc import Iterator, Sequence

import bm25s
import numpy as np
import Stemmer
import tensorflow as tf

from q2s_tf.cli import track
from q2s_tf.tables import Table
from q2s_tf.text import normalise

CHUNK = 1 << 24
"""Scores that are computed at a time: 64 MB, whatever the size of the catalogue."""
RRF_K = 60


def cosine_rows(queries: np.ndarray, documents: np.ndarray) -> Iterator[np.ndarray]:
    """For each query its cosine with every document, `[N]`, from unit vectors `[Q, D]` and `[N, D]`."""
    step = max(1, CHUNK // len(documents))
    for start in range(0, len(queries), step):
        yield from queries[start : start + step] @ documents.T


def reciprocal_rank_fusion(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Fuses the rankings of several systems into one score for each document.

        RRF(d) = Σ_s 1 / (60 + rank_s(d))

    Equal scores share the better rank. A score of −∞ means that the system does not retrieve the document; it then
    adds nothing. Cormack, Clarke and Büttcher, SIGIR 2009, with their k = 60.

    Args:
        rows: by system its score of every document, `[N]`.

    Returns:
        Float64 `[N]`.
    """
    fused = np.zeros(len(rows[0]))
    for row in rows:
        retrieved = np.flatnonzero(row > -np.inf)
        order = retrieved[np.argsort(-row[retrieved])]
        new = np.diff(row[order], prepend=np.nan) != 0
        rank = np.maximum.accumulate(np.where(new, np.arange(1, len(order) + 1), 0))
        fused[order] += 1 / (RRF_K + rank)
    return fused


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k highest scores, best first, ties by index; −1 where a score is −∞ or there are fewer than k."""
    candidates = np.arange(len(scores))
    if k < len(scores):
        candidates = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    candidates = candidates[scores[candidates] > -np.inf]
    best = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
    return np.pad(best, (0, k - len(best)), constant_values=-1)


class Bm25:
    """Lexical retrieval over titles and descriptions with `bm25s` (Lucene's BM25, k₁ = 1.5, b = 0.75).

    Texts are normalised like those of the towers, split into runs of word characters, and stemmed as English
    (Snowball), which changes little in other languages. A text in a script without spaces is one long word, so BM25 is
    a weak baseline there.

    Args:
        documents: the catalogue.
    """

    def __init__(self, documents: Table):
        texts = []
        for batch in track(documents.batches(), "indexing documents for BM25", documents.num_batches(8_192)):
            columns = [batch.column(name).fill_null("").to_pylist() for name in ("title", "description")]
            texts += normalised([" ".join(parts) for parts in zip(*columns, strict=True)])
        self._count, words = len(texts), _words(texts)
        self._index = bm25s.BM25() if any(words) else None  # bm25s cannot index a catalogue without a word
        if self._index:
            self._index.index(words, show_progress=False)

    def rows(self, queries: list[str | None]) -> Iterator[np.ndarray]:
        """For each query the score of every document, `[N]`; 0 for a document that shares no word with it."""
        for words in _words(normalised([query or "" for query in queries])):
            if words and self._index:
                yield self._index.get_scores(words)
            else:
                yield np.zeros(self._count, np.float32)


def normalised(texts: list[str]) -> list[str]:
    """Texts as the towers normalise them."""
    return [text.decode() for text in normalise(tf.constant(texts, tf.string)).numpy()]


def _words(texts: list[str]) -> list[list[str]]:
    stemmer = Stemmer.Stemmer("english")
    options = {"lower": False, "token_pattern": r"(?u)\w+", "stopwords": None, "stemmer": stemmer}
    return bm25s.tokenize(texts, **options, return_ids=False, show_progress=False)
