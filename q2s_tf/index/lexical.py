"""BM25 in core TensorFlow ops, over the posting lists of a catalogue."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from q2s_tf.index.postings import CORRECTED, GRAM_BUCKETS, MAX_GRAMS, Postings
from q2s_tf.index.search_ops import gather, select
from q2s_tf.index.word_counts import HASHES
from q2s_tf.text import row_numbers, split_words, trigram_ids

MAX_WORDS = 32
"""Words of a query that are read."""
MIN_SIMILARITY = 0.3
"""The least share of common 3-grams at which a word of a query is corrected to a word of the catalogue."""

SUMS_OF_BLOCK = 64
"""Documents whose highest BM25 is computed first, to find the best of all without sorting all."""


class LexicalScores(NamedTuple):
    """BM25 of one query.

    `sums` are float32 `[S]`, those of the R rows and zeros up to a multiple of `SUMS_OF_BLOCK`; or `[1]`, a zero, if no
    document has a word of the query. `maxima` are the highest of each block of sums, float32 `[S / SUMS_OF_BLOCK]`.
    """

    sums: tf.Tensor
    maxima: tf.Tensor

    @classmethod
    def from_sums(cls, sums: tf.Tensor) -> "LexicalScores":
        """BM25 of one query from its sums."""
        width = tf.minimum(SUMS_OF_BLOCK, tf.size(sums))
        return cls(sums, tf.reduce_max(tf.reshape(sums, tf.stack([-1, width])), axis=1))

    @property
    def scale(self) -> tf.Tensor:
        """1 / the highest BM25, float32 `[]`, or 0 if there is none."""
        return tf.math.divide_no_nan(1.0, tf.reduce_max(self.maxima))

    def of_rows(self, rows: tf.Tensor) -> tf.Tensor:
        """BM25 / the highest BM25 of rows int32 `[C]`, float32 `[C]`."""
        return self.scale * tf.gather(self.sums, tf.minimum(rows, tf.size(self.sums) - 1))

    def of_all(self, count: int) -> tf.Tensor:
        """BM25 / the highest BM25 of all R = `count` rows, float32 `[R]`, or `[1]` if it is 0 for all."""
        return self.scale * self.sums[:count]

    def where(self, mask: tf.Tensor) -> "LexicalScores":
        """The same with 0 for the rows whose mask, bool `[R]`, is False."""
        mask = tf.pad(mask, [[0, SUMS_OF_BLOCK]])[: tf.size(self.sums)]
        return LexicalScores.from_sums(tf.where(mask, self.sums, 0.0))

    def best(self, count: tf.Tensor) -> tf.Tensor:
        """The rows with the highest BM25 above 0, at most `count`, int32 `[C]`.

        Each of them is in one of the `count` blocks with the highest maxima, so that only these are sorted.
        """
        width = tf.size(self.sums) // tf.size(self.maxima)
        blocks = tf.math.top_k(self.maxima, tf.minimum(count, tf.size(self.maxima))).indices
        sums = tf.reshape(tf.gather(tf.reshape(self.sums, tf.stack([-1, width])), blocks), [-1])
        best = tf.math.top_k(sums, tf.minimum(count, tf.size(sums)))
        positions = select(best.indices, best.values > 0)
        return tf.gather(blocks, positions // width) * width + positions % width


class LexicalIndex(tf.Module):
    """Finds the documents that share a word with a query, and their BM25 scores.

    A word of letters that no document has is replaced by the most similar one of the catalogue, by the Jaccard index
    of their 3-grams; its score counts in proportion to the similarity.

    Args:
        postings: The posting lists of documents.
        count: R, the rows of the retriever.
    """

    def __init__(self, postings: Postings, count: int):
        super().__init__(name="lexical_index")
        self.count = count
        terms = len(postings.terms)
        # A word that is not found is looked up at the end, which has the term after the last, without documents.
        self.words = _variable(np.append(postings.words, np.iinfo(np.int64).max))
        self.word_terms = _variable(np.append(postings.word_terms, terms).astype(np.int32))
        starts, rows, scores = postings.blocks()
        self.starts = _variable(np.append(starts, len(rows)).astype(np.int32))
        self.rows = _variable(rows)
        self.scores = _variable(scores)
        self.grams = _variable(postings.grams)
        self.gram_words = _variable(postings.gram_words)
        self.gram_counts = _variable(np.bincount(postings.gram_words, minlength=len(postings.words)).astype(np.int32))
        self.frequencies = _variable(np.append(postings.frequencies, 0).astype(np.int32))
        self.terms = _variable(postings.terms)  # only updates of the catalogue read these

    def find_words(self, queries: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Look up the words of queries.

        Args:
            queries: Normalised strings `[B]`.

        Returns:
            The term of each of the first words, int32 `[B, MAX_WORDS]`, the one without documents where no word is; and
            its similarity to the word of the query, float32 `[B, MAX_WORDS]`, 1 if it is the same.
        """
        words, numbers = split_words(queries)
        words = tf.raw_ops.RaggedTensorToTensor(
            shape=[-1, MAX_WORDS],
            values=words,
            default_value="",
            row_partition_tensors=[tf.size(queries, tf.int64), numbers],
            row_partition_types=["FIRST_DIM_SIZE", "VALUE_ROWIDS"],
        )
        hashes = tf.strings.to_hash_bucket_fast(words, HASHES)
        positions = tf.reshape(_bounds(self.words, tf.reshape(hashes, [-1])), tf.shape(words))
        known = gather(self.words, positions) == hashes
        positions, same = tf.where(known, positions, self.words.shape[0] - 1), tf.ones_like(hashes, tf.float32)
        unknown = tf.logical_not(known) & tf.strings.regex_full_match(words, CORRECTED)

        def correct() -> tuple[tf.Tensor, tf.Tensor]:
            indices = tf.where(unknown)
            specs = tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.float32)
            nearest, similarity = tf.map_fn(self._nearest, tf.gather_nd(words, indices), fn_output_signature=specs)
            update = tf.tensor_scatter_nd_update
            return update(positions, indices, nearest), update(same, indices, similarity)

        positions, similarities = tf.cond(tf.reduce_any(unknown), correct, lambda: (positions, same))
        return gather(self.word_terms, positions), similarities

    def score(self, terms: tf.Tensor, similarities: tf.Tensor) -> LexicalScores:
        """Score all documents for one query.

        Args:
            terms: The terms int32 `[1, W]` of its words.
            similarities: Their similarities float32 `[1, W]`.
        """
        terms = terms[0]
        starts, limits = gather(self.starts, terms), gather(self.starts, terms + 1)
        lists = tf.raw_ops.RaggedRange(starts=starts, limits=limits, deltas=1)
        blocks, splits = lists.rt_dense_values, lists.rt_nested_splits
        scores = gather(self.scores, blocks)
        scores = tf.cond(
            tf.reduce_all(similarities == 1),
            lambda: scores,
            lambda: scores * tf.gather(similarities[0], row_numbers(splits, blocks))[:, tf.newaxis],
        )
        rows, scores = tf.reshape(gather(self.rows, blocks), [-1]), tf.reshape(scores, [-1])
        size = -(-self.count // SUMS_OF_BLOCK) * SUMS_OF_BLOCK
        sums = tf.math.unsorted_segment_sum(scores, rows, tf.where(tf.size(rows) > 0, size, 1))
        return LexicalScores.from_sums(sums)

    def _nearest(self, word: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The position of the word of the catalogue that is most similar to one word, and the similarity."""
        grams = trigram_ids(word[tf.newaxis], GRAM_BUCKETS, MAX_GRAMS)[0]
        grams = tf.unique(select(grams, grams > 0)).y
        first, last = _bounds(self.grams, grams), _bounds(self.grams, grams + 1)
        pairs = tf.raw_ops.RaggedRange(starts=first, limits=last, deltas=1).rt_dense_values
        candidates, _, common = tf.unique_with_counts(gather(self.gram_words, pairs))
        counts = tf.size(grams) + gather(self.gram_counts, candidates) - common
        # The last position, no word, has the least similarity that is enough.
        candidates = tf.concat([candidates, [self.words.shape[0] - 1]], 0)
        similarity = tf.concat([tf.cast(common / counts, tf.float32), [MIN_SIMILARITY]], 0)
        frequencies = gather(self.frequencies, gather(self.word_terms, candidates))
        # Of equally similar words the one that more documents have.
        best = tf.argmax(tf.where(similarity == tf.reduce_max(similarity), frequencies, -1))
        return tf.gather(candidates, best), tf.gather(similarity, best)


def _bounds(ordered: tf.Variable, values: tf.Tensor) -> tf.Tensor:
    """The first position int32 `[V]` of an ordered list at which each value could be inserted."""
    return tf.raw_ops.LowerBound(sorted_inputs=ordered[tf.newaxis], values=values[tf.newaxis])[0]


def _variable(values: np.ndarray) -> tf.Variable:
    return tf.Variable(values, trainable=False)
