"""The one normalisation of every text, in the graph."""

import tensorflow as tf
import tensorflow_text as tf_text

MAX_CHARACTERS = 2_048
"""Only this many first characters of a text are read: what one request may cost is bounded."""


def decode(text: tf.Tensor) -> tf.Tensor:
    """Texts cut and in valid UTF-8, otherwise as they came: what a pretrained model's own tokenizer reads.

    Bytes that are not UTF-8 and control characters (NUL among them) become a space.

    Args:
        text: strings of any shape, in any bytes.

    Returns:
        Strings of the same shape.
    """
    text = tf.strings.unicode_transcode(
        text, "UTF-8", "UTF-8", errors="replace", replacement_char=ord(" "), replace_control_characters=True
    )
    return tf.strings.substr(text, 0, MAX_CHARACTERS, unit="UTF8_CHAR")


def normalise(text: tf.Tensor) -> tf.Tensor:
    """Normalises texts: `decode`, NFKC with case folding, single spaces, none at the ends.

    Case folding is Unicode's NFKC_Casefold, so full-width and half-width forms meet and characters that are not shown
    (joiners, variation selectors) go. A text of nothing but such characters becomes "", which every channel takes as
    missing.

    Args:
        text: strings of any shape, in any bytes.

    Returns:
        Strings of the same shape.
    """
    text = tf_text.case_fold_utf8(decode(text))
    return tf.strings.strip(tf.strings.regex_replace(text, r"[\s\pZ\p{Cc}]+", " "))
