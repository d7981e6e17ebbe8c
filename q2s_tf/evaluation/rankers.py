"""What is evaluated: ways to score every document of a catalogue for a query."""

from collections.abc import Iterator

import bm25s
import numpy as np
import Stemmer
import tensorflow as tf

from q2s_tf.cli import track
from q2s_tf.tables import Table
from q2s_tf.text import normalise

CHUNK = 256


def cosine_ranker(queries: np.ndarray, documents: np.ndarray) -> Iterator[np.ndarray]:
    """Cosines of unit vectors `[Q, D]` and `[N, D]`: arrays `[C, N]`, `CHUNK` queries at a time."""
    for start in range(0, len(queries), CHUNK):
        yield queries[start : start + CHUNK] @ documents.T


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
            texts += _normalised([" ".join(parts) for parts in zip(*columns, strict=True)])
        self._count = len(texts)
        self._index = bm25s.BM25()
        self._index.index(_words(texts), show_progress=False)

    def scores(self, queries: list[str | None]) -> Iterator[np.ndarray]:
        """Scores of every document, `[1, N]` a query."""
        nothing = np.zeros((1, self._count), np.float32)
        for words in _words(_normalised([query or "" for query in queries])):
            yield self._index.get_scores(words)[None] if words else nothing


def _normalised(texts: list[str]) -> list[str]:
    return [text.decode() for text in normalise(tf.constant(texts)).numpy()]


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
