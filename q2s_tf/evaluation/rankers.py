"""Scores of every document of a catalogue for a query: by cosine, by BM25, by the lexical index of a retriever."""

from collections.abc import Iterator, Mapping

import bm25s
import numpy as np
import Stemmer
import tensorflow as tf

from q2s_tf.cli import track
from q2s_tf.index.lexical import LexicalIndex
from q2s_tf.index.postings import build_postings
from q2s_tf.index.word_counts import count_words
from q2s_tf.tables import Table
from q2s_tf.text import normalise

CHUNK = 1 << 24
"""Scores that are computed at a time: 64 MB, whatever the size of the catalogue."""


def cosine_rows(queries: np.ndarray, documents: np.ndarray) -> Iterator[np.ndarray]:
    """For each query its cosine with every document, `[N]`, from unit vectors `[Q, D]` and `[N, D]`."""
    step = max(1, CHUNK // len(documents))
    for start in range(0, len(queries), step):
        yield from queries[start : start + step] @ documents.T


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


class LexicalPart:
    """BM25 / max BM25, which a retriever adds to the cosines with a weight, from its lexical index.

    Args:
        documents: the catalogue.
        columns: weights of its text columns.
    """

    def __init__(self, documents: Table, columns: Mapping[str, float]):
        counts = count_words(track(documents.batches(), "counting words", documents.num_batches(8_192)), columns)
        index = LexicalIndex(build_postings(counts, columns), len(counts.lengths))

        def score(text: tf.Tensor) -> tf.Tensor:
            bm25 = index.score(*index.find_words(text[tf.newaxis]))
            return tf.broadcast_to(bm25.of_all(index.count), [index.count])

        self._score = tf.function(score)

    def rows(self, queries: list[str | None]) -> Iterator[np.ndarray]:
        """For each query the part of every document, `[N]`, from 0 to 1."""
        for text in normalise(tf.constant([query or "" for query in queries], tf.string)):
            yield self._score(text).numpy()


def normalised(texts: list[str]) -> list[str]:
    """Texts as the towers normalise them."""
    return [text.decode() for text in normalise(tf.constant(texts, tf.string)).numpy()]


def _words(texts: list[str]) -> list[list[str]]:
    stemmer = Stemmer.Stemmer("english")
    options = {"lower": False, "token_pattern": r"(?u)\w+", "stopwords": None, "stemmer": stemmer}
    return bm25s.tokenize(texts, **options, return_ids=False, show_progress=False)
