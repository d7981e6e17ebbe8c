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
    runs = tf.strings.split(tf.strings.regex_replace(texts, UNSPACED, r" \0 "))
    words, numbers = runs.values, runs.value_rowids()
    lengths = tf.strings.length(words, unit="UTF8_CHAR")
    unspaced = tf.strings.regex_full_match(words, UNSPACED)
    counts = tf.where(unspaced, tf.maximum(lengths - 1, 1), 1)
    parts = tf.repeat(tf.range(tf.size(words)), counts)
    starts = tf.ragged.range(counts).values
    widths = tf.gather(tf.where(unspaced, 2, lengths), parts)
    return tf.strings.substr(tf.gather(words, parts), starts, widths, unit="UTF8_CHAR"), tf.gather(numbers, parts)
