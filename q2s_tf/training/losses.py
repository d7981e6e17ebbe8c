"""The losses of Que2Search: those that a TFRS retrieval task takes as its `loss`, and the head's. Pure functions.

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


def symmetric_softmax(y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None) -> tf.Tensor:
    """The mean of `in_batch_softmax` over rows, query to documents, and over columns (eq. 3); the same arguments."""
    columns = in_batch_softmax(tf.transpose(y_true), tf.transpose(y_pred), sample_weight)
    return (in_batch_softmax(y_true, y_pred, sample_weight) + columns) / 2


def margin_rank(
    y_true: tf.Tensor,
    y_pred: tf.Tensor,
    sample_weight: tf.Tensor | None = None,
    *,
    margin: float,
    negative_rank: int = 1,
) -> tf.Tensor:
    """Hinge on a hard in-batch document, the hardest in the paper (eq. 5), summed.

        n(i) = the j ≠ i with the negative_rank-th highest cos(qᵢ, dⱼ), 1: argmax;
        lossᵢ = max(0, −[cos(qᵢ, dᵢ) − cos(qᵢ, d_{n(i)})] + margin)

    Args:
        y_true: `[B, B]`, 1 on the diagonal.
        y_pred: cosines `[B, B]`.
        sample_weight: `[B]`, or None for equal weights.
        margin: 0.1 to 0.2 in the paper.
        negative_rank: from 1. That the hardest documents are not the best negatives is Huang et al., Embedding-based
            Retrieval in Facebook Search, KDD 2020.

    Returns:
        The weighted sum over the rows, a scalar. A row with fewer than `negative_rank` documents that are neither its
        own nor masked adds 0.
    """
    positive, negative = _positive_and_negative(y_true, y_pred, negative_rank)
    return _sum(tf.maximum(0.0, margin - (positive - negative)), sample_weight)


def hardest_binary_cross_entropy(
    y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None, *, negative_rank: int = 1
) -> tf.Tensor:
    """Binary cross-entropy of the positive and of a hard in-batch document (eq. 4), summed.

        lossᵢ = −log σ(s·cos(qᵢ, dᵢ)) − log(1 − σ(s·cos(qᵢ, d_{n(i)}))), n(i) as in `margin_rank`

    The paper prints its second term with the other sign, which would reward a high score of the negative.

    Args:
        y_true: `[B, B]`, 1 on the diagonal.
        y_pred: scores `[B, B]`, already scaled by s.
        sample_weight: `[B]`, or None for equal weights.
        negative_rank: as in `margin_rank`.

    Returns:
        The weighted sum over the rows, a scalar. A row without such a document has the first term alone.
    """
    positive, negative = _positive_and_negative(y_true, y_pred, negative_rank)
    return _sum(tf.nn.softplus(-positive) + tf.nn.softplus(negative), sample_weight)


def query_classification(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Softmax cross-entropy of documents against the queries that led to them, each of k labels with target 1/k.

        lossᵢ = −(1/kᵢ) Σ_{l in labelsᵢ} log softmax(logitsᵢ)_l

    Args:
        logits: `[B, C]`, a column for each query of the head.
        labels: int32 `[B, K]`, columns; −1 is padding.

    Returns:
        `[B]`; 0 for a document without label.

    Source: Que2Search, section on multi-task learning.
    """
    there = tf.cast(labels >= 0, logits.dtype)
    chances = tf.gather(tf.nn.log_softmax(logits), tf.maximum(labels, 0), batch_dims=1)
    return tf.math.divide_no_nan(-tf.reduce_sum(there * chances, axis=1), tf.reduce_sum(there, axis=1))


def cosine_distillation(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """How far a student's vectors point away from its teacher's.

        lossᵢ = 1 − cos(studentᵢ, teacherᵢ)

    Args:
        student: `[B, D]`.
        teacher: `[B, D]`.

    Returns:
        `[B]`; 0 for a row whose teacher is 0. A student of 0, as it may begin, has the cosine 0 and a gradient to its
        teacher.
    """
    there = tf.reduce_any(teacher != 0, axis=1)
    cosines = tf.reduce_sum(tf.nn.l2_normalize(student, axis=1) * tf.nn.l2_normalize(teacher, axis=1), axis=1)
    return tf.where(there, 1 - cosines, tf.zeros_like(cosines))


def _positive_and_negative(y_true: tf.Tensor, y_pred: tf.Tensor, rank: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Each row's score of its own document and the `rank`-th highest of another, `[B]` both.

    Where there are fewer others the second is hugely negative, like that of a masked one.
    """
    positive = tf.reduce_sum(y_true * y_pred, axis=1)
    others = tf.where(y_true > 0, y_pred.dtype.min, y_pred)
    if rank == 1:
        return positive, tf.reduce_max(others, axis=1)
    return positive, tf.math.top_k(others, tf.minimum(rank, tf.shape(others)[1])).values[:, -1]


def _sum(losses: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    return tf.reduce_sum(losses if weights is None else losses * weights)


def _mean(losses: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    if weights is None:
        return tf.reduce_mean(losses)
    return tf.math.divide_no_nan(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))
