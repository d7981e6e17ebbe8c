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
        int32 `[B, G]`, G at least 1 and at most `max_trigrams`.
    """
    points = tf.strings.unicode_decode(text, "UTF-8")[:, : max_trigrams + 1].to_tensor()
    points = tf.pad(points, [[0, 0], [0, 2]])
    space = tf.fill([tf.shape(points)[0], 1], ord(" "))
    middle = points[:, :-1][:, :max_trigrams]
    first = tf.concat([space, middle[:, :-1]], axis=1)
    last = points[:, 1:][:, :max_trigrams]
    last = tf.where(last == 0, ord(" "), last)  # past the end of a text: its closing space, or a window not counted
    mixed = tf.add_n([tf.cast(part, tf.int64) * m for part, m in zip((first, middle, last), _MULTIPLIERS, strict=True)])
    mixed = tf.bitwise.bitwise_xor(mixed, tf.bitwise.right_shift(mixed, tf.constant(32, tf.int64)))
    ids = tf.cast(tf.math.floormod(mixed, tf.constant(buckets, tf.int64)), tf.int32) + 1
    return tf.where(middle == 0, 0, ids)
