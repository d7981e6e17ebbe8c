"""Posting lists of a catalogue for BM25: built from the words of documents, changed by updates."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from q2s_tf.index.word_counts import WordCounts, hash_words
from q2s_tf.text import trigram_ids

K1, B = 1.5, 0.75
"""Saturation of the occurrences of a term, and normalisation by the length of a document."""
MAX_POSTINGS = 32_000
"""Documents in the list of one term: those with the highest weights."""
BLOCK = 8
"""Entries of a list that a search reads at once (measured for 64,000 entries: .08 ms, and .57 ms one by one)."""
GRAM_BUCKETS = 2**31 - 2
MAX_GRAMS = 32
"""3-grams of a word that are compared to correct a typo."""
CORRECTED = r"[\pL\pM]{4,}"
"""Words that a typo is corrected in, and to. A number with a typo is another number."""


@dataclass(frozen=True)
class Postings:
    """Posting lists over the rows of a retriever: V words, T terms (stems), P entries.

    The weight of a term t in a document d, in which it occurs f times, is

        w(t, d) = f / (f + k₁ (1 − b + b · length(d) / average length))

    An occurrence counts as much as its column weighs. BM25 of a query is the sum of idf(t) · w(t, d) over its words,
    with idf(t) = ln(1 + (N − n(t) + ½) / (n(t) + ½)), n(t) of N documents having the term. This is Lucene's form.
    Source: Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009.

    Attributes:
        words: Hashes of the words, sorted, int64 `[V]`.
        word_terms: The term of each word, int32 `[V]`.
        grams: 3-grams of the words that typos are corrected to, sorted, int32 `[G]`.
        gram_words: The word of each 3-gram, int32 `[G]`.
        terms: Hashes of the terms, sorted, int64 `[T]`.
        frequencies: n(t), int32 `[T]`.
        starts: The first entry of each term, then P, int32 `[T + 1]`.
        rows: Documents, in their order within a term, int32 `[P]`. A search then adds to its sums in their order.
        weights: float32 `[P]`.
        documents: N.
        average_length: The average of the first build; updates do not change it.
        columns: The weight of each text column.
    """

    words: np.ndarray
    word_terms: np.ndarray
    grams: np.ndarray
    gram_words: np.ndarray
    terms: np.ndarray
    frequencies: np.ndarray
    starts: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    documents: int
    average_length: float
    columns: Mapping[str, float]

    @property
    def idf(self) -> np.ndarray:
        """The inverse document frequency of each term, float32 `[T]`."""
        return np.log1p((self.documents - self.frequencies + 0.5) / (self.frequencies + 0.5)).astype(np.float32)

    @classmethod
    def restore(cls, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> "Postings":
        """Postings of a saved `LexicalIndex`: the values of its variables by name, and its `facts`."""
        arrays: dict[str, Any] = {name: tensors[name] for name in ("grams", "gram_words", "terms")}
        arrays |= {name: tensors[name][:-1] for name in ("words", "word_terms", "frequencies")}
        used = tensors["scores"] > 0
        ends = np.append(0, np.cumsum(used.sum(axis=1))).astype(np.int32)  # by block
        starts, rows, scores = ends[tensors["starts"][:-1]], tensors["rows"][used], tensors["scores"][used]
        postings = cls(**arrays, starts=starts, rows=rows, weights=scores, **facts)
        return replace(postings, weights=scores / np.repeat(postings.idf, np.diff(starts)))

    def blocks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The lists in blocks of `BLOCK` entries; the last block of a list repeats its last document with the score 0.

        Returns:
            The first block of each term, then K, int64 `[T + 1]`; documents, int32 `[K, BLOCK]`; scores idf(t) ·
            w(t, d), which are above 0, float32 `[K, BLOCK]`.
        """
        lengths = np.diff(self.starts)
        padding = -lengths % BLOCK
        starts = np.append(0, np.cumsum((lengths + padding) // BLOCK))
        ends = np.repeat(self.starts[1:], padding)  # before which entries are inserted
        rows = np.insert(self.rows, ends, self.rows[ends - 1]).astype(np.int32)
        scores = np.insert(self.weights * np.repeat(self.idf, lengths), ends, 0).astype(np.float32)
        return starts, rows.reshape(-1, BLOCK), scores.reshape(-1, BLOCK)

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest of a retriever keeps."""
        return {
            "documents": self.documents,
            "average_length": self.average_length,
            "columns": dict(self.columns),
        }

    def select(self, new_rows: np.ndarray) -> "Postings":
        """Renumber rows: `new_rows` `[R]` has the new number of each row, −1 for a document that is removed."""
        rows = new_rows[self.rows]
        terms = np.repeat(self.terms, np.diff(self.starts))[rows >= 0]
        vocabulary = self.words, self.terms[self.word_terms], self.grams, self.words[self.gram_words]
        entries = terms, rows[rows >= 0], self.weights[rows >= 0]
        return _assemble(self, vocabulary, entries, int((new_rows >= 0).sum()))

    def extend(self, counts: WordCounts, first_row: int) -> "Postings":
        """Add documents; the first of them has the row `first_row`."""
        new = np.setdiff1d(np.fromiter(counts.vocabulary, np.int64), self.words)
        texts = [counts.vocabulary[word] for word in new.tolist()]
        grams, gram_words = _word_grams(new, [word for word, _ in texts])
        words = np.concatenate([self.words, new])
        stems = np.concatenate([self.terms[self.word_terms], hash_words([stem for _, stem in texts])])
        order = np.argsort(words)
        words, stems = words[order], stems[order]
        # The words of a document that have the same stem are one term.
        found = np.unique(stems)
        stem = np.searchsorted(found, stems)[np.searchsorted(words, counts.words)]
        pairs, entry = np.unique(stem * len(counts.lengths) + counts.rows, return_inverse=True)
        terms, rows = found[pairs // len(counts.lengths)], pairs % len(counts.lengths)
        occurrences = np.bincount(entry, counts.counts, len(pairs))
        lengths = counts.lengths[rows]
        weights = occurrences / (occurrences + K1 * (1 - B + B * lengths / self.average_length))
        vocabulary = (
            words,
            stems,
            np.concatenate([self.grams, grams]),
            np.concatenate([self.words[self.gram_words], gram_words]),
        )
        entries = (
            np.concatenate([np.repeat(self.terms, np.diff(self.starts)), terms]),
            np.concatenate([self.rows, rows + first_row]),
            np.concatenate([self.weights, weights]),
        )
        return _assemble(self, vocabulary, entries, self.documents + len(counts.lengths))


def build_postings(counts: WordCounts, columns: Mapping[str, float]) -> Postings:
    """Build the posting lists of documents whose words `count_words` has counted."""
    integers, hashes = np.empty(0, np.int32), np.empty(0, np.int64)
    average = float(counts.lengths.mean()) or 1.0
    empty = Postings(
        hashes,
        integers,
        integers,
        integers,
        hashes,
        integers,
        np.zeros(1, np.int32),
        integers,
        np.empty(0, np.float32),
        0,
        average,
        columns,
    )
    return empty.extend(counts, 0)


def _assemble(
    before: Postings,
    vocabulary: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    entries: tuple[np.ndarray, np.ndarray, np.ndarray],
    documents: int,
) -> Postings:
    """Sort entries into lists, cut these to `MAX_POSTINGS`, and drop words without a document.

    Args:
        before: The postings that were changed. Documents that they count and do not list stay counted.
        vocabulary: Words sorted by hash, their stems, 3-grams and the words of these; all as hashes.
        entries: Term, row and weight of each.
        documents: N.
    """
    words, stems, grams, gram_words = vocabulary
    terms, term = np.unique(entries[0], return_inverse=True)
    order = np.lexsort((entries[1], -entries[2], term))
    listed = np.bincount(term, minlength=len(terms))
    frequencies = listed.copy()
    shared = np.isin(before.terms, terms)
    frequencies[np.searchsorted(terms, before.terms[shared])] += (before.frequencies - np.diff(before.starts))[shared]
    ranks = np.arange(len(order)) - np.repeat(np.cumsum(listed) - listed, listed)
    order = order[ranks < MAX_POSTINGS]
    order = order[np.lexsort((entries[1][order], term[order]))]
    kept = np.isin(stems, terms)
    words = words[kept]
    corrects = np.isin(gram_words, words)
    grams, gram_words = grams[corrects], gram_words[corrects]
    by_gram = np.lexsort((gram_words, grams))
    return replace(
        before,
        words=words,
        word_terms=np.searchsorted(terms, stems[kept]).astype(np.int32),
        grams=grams[by_gram].astype(np.int32),
        gram_words=np.searchsorted(words, gram_words[by_gram]).astype(np.int32),
        terms=terms,
        frequencies=frequencies.astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(np.minimum(listed, MAX_POSTINGS))]).astype(np.int32),
        rows=entries[1][order].astype(np.int32),
        weights=entries[2][order].astype(np.float32),
        documents=documents,
    )


def _word_grams(words: np.ndarray, texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The different 3-grams of words that typos are corrected to, and the hash of the word of each."""
    letters = tf.strings.regex_full_match(tf.constant(texts, tf.string, [len(texts)]), CORRECTED).numpy()
    texts = [text for text, chosen in zip(texts, letters, strict=True) if chosen]
    if not texts:
        return np.empty(0, np.int32), np.empty(0, np.int64)
    ids = trigram_ids(tf.constant(texts), GRAM_BUCKETS, MAX_GRAMS).numpy()
    word, position = np.nonzero(ids)
    pairs = np.unique(np.stack([word, ids[word, position]]), axis=1)
    return pairs[1].astype(np.int32), words[letters][pairs[0]]
