"""Normalisation of every text, in the graph."""

import tensorflow as tf
import tensorflow_text as tf_text

MAX_CHARACTERS = 2_048
"""Only this many leading characters of a text are read, which bounds the cost of a request."""


def decode(text: tf.Tensor) -> tf.Tensor:
    """Cuts texts and makes them valid UTF-8, without other changes. Tokenizers of pretrained models read this.

    Bytes that are not UTF-8 and control characters, NUL included, become a space.

    Args:
        text: strings of any shape, in any bytes.

    Returns:
        Strings of the same shape.
    """
    # A character has at most four bytes. The bytes are cut first, because to decode a text costs many times its size.
    text = tf.strings.unicode_transcode(
        tf.strings.substr(text, 0, 4 * MAX_CHARACTERS),
        "UTF-8",
        "UTF-8",
        errors="replace",
        replacement_char=ord(" "),
        replace_control_characters=True,
    )
    return _cut(text)


def normalise(text: tf.Tensor) -> tf.Tensor:
    """Normalises texts: `decode`, NFKC with case folding, single spaces, no spaces at the ends.

    Case folding is Unicode's NFKC_Casefold: full-width and half-width forms become equal, and invisible characters
    (joiners, variation selectors) are removed. A text of invisible characters becomes "", a missing text. The result is
    cut once more, because one character may become 18.

    Args:
        text: strings of any shape, in any bytes.

    Returns:
        Strings of the same shape.
    """
    text = _cut(tf_text.case_fold_utf8(decode(text)))
    return tf.strings.strip(tf.strings.regex_replace(text, r"[\s\pZ\p{Cc}]+", " "))


def _cut(text: tf.Tensor) -> tf.Tensor:
    return tf.strings.substr(text, 0, MAX_CHARACTERS, unit="UTF8_CHAR")
