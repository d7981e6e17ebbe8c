"""Words of normalised texts, in the graph: what the lexical index counts."""

import tensorflow as tf

UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\x{30FC}]+"
"""Text in a script without spaces between words."""


def split_words(texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Splits normalised texts into words.

    A word is a run of letters, digits, marks and underscores. A run in a script without spaces, such as Japanese or
    Thai, gives its character bigrams instead (or its only character), and ends where another script begins.

    Args:
        texts: strings `[B]`, as `normalise` returns them.

    Returns:
        The words, strings `[W]`, in the order of the texts, and the text of each word, int64 `[W]`.
    """
    texts = tf.strings.regex_replace(texts, r"[^\pL\pN\pM_]+", " ")
    # The ragged functions of TensorFlow wrap these ops in many more, and each op adds to the load time of a server.
    runs = tf.raw_ops.StringSplitV2(input=tf.strings.regex_replace(texts, UNSPACED, r" \0 "), sep="")
    words, numbers = runs.values, runs.indices[:, 0]
    lengths = tf.strings.length(words, unit="UTF8_CHAR")
    unspaced = tf.strings.regex_full_match(words, UNSPACED)
    counts = tf.where(unspaced, tf.maximum(lengths - 1, 1), 1)
    starts = tf.raw_ops.RaggedRange(starts=0, limits=counts, deltas=1)
    parts = row_numbers(starts.rt_nested_splits, starts.rt_dense_values)
    widths = tf.gather(tf.where(unspaced, 2, lengths), parts)
    substrings = tf.strings.substr(tf.gather(words, parts), starts.rt_dense_values, widths, unit="UTF8_CHAR")
    return substrings, tf.gather(numbers, parts)


def row_numbers(splits: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """The row of each value of a ragged tensor `[W, …]`, int64 `[V]`, in one op."""
    sparse = tf.raw_ops.RaggedTensorToSparse(rt_nested_splits=[splits], rt_dense_values=values)
    return sparse.sparse_indices[:, 0]
