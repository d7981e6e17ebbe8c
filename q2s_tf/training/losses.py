"""The losses of Que2Search over in-batch scores, as pure functions that a TFRS retrieval task takes as its `loss`.

`scores` is `[B, B]`: row i holds query i's score of every document of the batch, its own on the diagonal. An entry that
is masked (an accidental hit, another known positive of the query) holds a hugely negative number.
"""

import tensorflow as tf


def in_batch_softmax(y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None) -> tf.Tensor:
    """Softmax cross-entropy with the batch's other documents as negatives (eq. 2).

        lossᵢ = −log( exp(s·cos(qᵢ, dᵢ)) / Σⱼ exp(s·cos(qᵢ, dⱼ)) )

    Args:
        y_true: `[B, B]`, 1 on the diagonal.
        y_pred: scores `[B, B]`, already scaled by s (the task's temperature is 1/s).
        sample_weight: `[B]`, or None for equal weights.

    Returns:
        The weighted mean over the rows, a scalar.
    """
    return _mean(tf.nn.softmax_cross_entropy_with_logits(y_true, y_pred), sample_weight)


def margin_rank(
    y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None, *, margin: float
) -> tf.Tensor:
    """Hinge on the hardest in-batch document (eq. 5), summed.

        n(i) = argmax_{j≠i} cos(qᵢ, dⱼ);   lossᵢ = max(0, −[cos(qᵢ, dᵢ) − cos(qᵢ, d_{n(i)})] + margin)

    Args:
        y_true: `[B, B]`, 1 on the diagonal.
        y_pred: cosines `[B, B]`.
        sample_weight: `[B]`, or None for equal weights.
        margin: 0.1 to 0.2 in the paper.

    Returns:
        The weighted sum over the rows, a scalar. A row whose every other document is masked adds 0.
    """
    positive = tf.reduce_sum(y_true * y_pred, axis=1)
    hardest = tf.reduce_max(tf.where(y_true > 0, y_pred.dtype.min, y_pred), axis=1)
    losses = tf.maximum(0.0, margin - (positive - hardest))
    return tf.reduce_sum(losses if sample_weight is None else losses * sample_weight)


def _mean(losses: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    if weights is None:
        return tf.reduce_mean(losses)
    return tf.math.divide_no_nan(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))
