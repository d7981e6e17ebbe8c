"""The words of documents, counted and stemmed, from which posting lists are built."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import Stemmer
import tensorflow as tf

from q2s_tf.text import normalise, split_words

HASHES = 2**63 - 1
"""Words and terms are known by a hash of their bytes, below this."""
DEFAULT_LANGUAGE = "en"
"""The language of words whose documents have no language that Snowball stems."""


class WordCounts(NamedTuple):
    """The words of N documents.

    Attributes:
        rows: The document of each entry, int32 `[C]`.
        words: The hash of its word, int64 `[C]`.
        counts: Its occurrences, weighted by column, float32 `[C]`.
        lengths: The sum of the counts of each document, float32 `[N]`.
        vocabulary: By hash the word and its stem.
    """

    rows: np.ndarray
    words: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray
    vocabulary: dict[int, tuple[bytes, bytes]]

    def select(self, chosen: np.ndarray) -> "WordCounts":
        """The words of some documents, chosen by booleans `[N]`."""
        kept = chosen[self.rows]
        rows = (np.cumsum(chosen) - 1)[self.rows[kept]].astype(np.int32)
        return self._replace(rows=rows, words=self.words[kept], counts=self.counts[kept], lengths=self.lengths[chosen])


def count_words(batches: Iterable[pa.RecordBatch], columns: Mapping[str, float]) -> WordCounts:
    """Count the words of documents and stem them, each in the language of most of its documents.

    Args:
        batches: Documents with the text `columns`, and optionally `language`.
        columns: The weight of an occurrence in each column.
    """
    parts = [(np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.float32))]
    vocabulary: dict[int, bytes] = {}
    votes: Counter[tuple[int, str]] = Counter()
    documents = 0
    for batch in batches:
        languages = _languages(batch)
        for column, weight in columns.items():
            texts, numbers = split_words(normalise(tf.constant(batch.column(column).fill_null("").to_pylist())))
            hashes, numbers = tf.strings.to_hash_bucket_fast(texts, HASHES).numpy(), numbers.numpy()
            rows = documents + numbers.astype(np.int32)
            parts.append((rows, hashes, np.full(len(hashes), weight, np.float32)))
            distinct, first = np.unique(hashes, return_index=True)
            vocabulary |= zip(distinct.tolist(), texts.numpy()[first], strict=True)
            votes.update(zip(hashes.tolist(), languages[numbers], strict=True))
        documents += len(batch)
    rows, words, counts = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    lengths = np.bincount(rows, counts, documents).astype(np.float32)
    chosen = {word: language for (word, language), _ in reversed(votes.most_common())}
    stemmers = {language: Stemmer.Stemmer(language) for language in set(chosen.values())}
    stems = {word: (text, stemmers[chosen[word]].stemWord(text)) for word, text in vocabulary.items()}
    return WordCounts(rows, words, counts, lengths, stems)


def hash_words(words: list[bytes]) -> np.ndarray:
    """Hashes int64 `[W]` of words or terms."""
    return tf.strings.to_hash_bucket_fast(tf.constant(words, tf.string, [len(words)]), HASHES).numpy()


def _languages(batch: pa.RecordBatch) -> np.ndarray:
    """The language of each document that Snowball stems, or the default."""
    if "language" not in batch.schema.names:
        return np.full(len(batch), DEFAULT_LANGUAGE, object)
    codes = [re.split("[-_]", code or "")[0].lower() for code in batch.column("language").to_pylist()]
    known = {code: code if _can_stem(code) else DEFAULT_LANGUAGE for code in set(codes)}
    return np.array([known[code] for code in codes], object)


def _can_stem(language: str) -> bool:
    try:
        Stemmer.Stemmer(language)
    except KeyError:
        return False
    return True
