"""Hashed character 3-grams by integer arithmetic on code points."""

import tensorflow as tf

# Odd 64-bit multipliers for the three code points, as signed integers.
_MULTIPLIERS = (-7046029254386353131, 7640891576956012809, -4942790177534073029)


def trigram_ids(text: tf.Tensor, buckets: int, max_trigrams: int) -> tf.Tensor:
    """Ids of the character 3-grams of normalised texts.

    A text is read as if a space stood before and after it, so a first or last word has the 3-grams it has inside a
    text. For the code points a, b, c of each window, with 64-bit wrap-around,

        h = a·m₁ + b·m₂ + c·m₃;  h = h xor (h >> 32);  id = 1 + (h mod buckets)

    Id 0 is padding. The text "" has no 3-gram.

    Args:
        text: normalised strings `[B]`.
        buckets: size of the hash space.
        max_trigrams: windows after this many are not read.

    Returns:
        int32 `[B, G]`, G at most `max_trigrams`, and at least 1 if B is.
    """
    # One code point more than the text and its spaces, 0: no window that ends there, or in the padding, is counted.
    points = tf.strings.unicode_decode(tf.strings.join([" ", text, " \0"]), "UTF-8").to_tensor()
    points = tf.cast(points[:, : max_trigrams + 2], tf.int64)
    windows = points[:, :-2], points[:, 1:-1], points[:, 2:]
    mixed = tf.add_n([part * multiplier for part, multiplier in zip(windows, _MULTIPLIERS, strict=True)])
    mixed = tf.bitwise.bitwise_xor(mixed, tf.bitwise.right_shift(mixed, tf.constant(32, tf.int64)))
    ids = tf.math.floormod(mixed, tf.constant(buckets, tf.int64)) + 1
    return tf.cast(ids * tf.minimum(windows[-1], 1), tf.int32)
