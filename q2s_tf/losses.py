"""The losses of Que2Search, one function for each equation.

Arguments of every loss on scores:

- `scores` `[batch, documents]`: row i holds the scores of query i and every document of the batch, its own on the
  diagonal. There may be more documents than queries: mined hard negatives follow the positives.
- `mask` bool `[batch, documents]`: a document that is False (a known positive of the query, a duplicate of its
  document) is not a negative; None for all True. The diagonal is always read.
- `sample_weight` `[batch]`; None for equal weights.
- `reduction`: "mean" (Σ wᵢ lossᵢ / Σ wᵢ, 0 if the weights sum to 0), "sum" (Σ wᵢ lossᵢ) or "none" (wᵢ lossᵢ).

They return a scalar, or `[batch]` without reduction, and raise `ValueError` for another reduction.

Source: Liu et al., Que2Search, KDD 2021.
"""

from collections.abc import Sequence
from typing import Any

from keras import ops

MASKED_SCORE = -1e9
"""Score of a masked entry."""


def in_batch_softmax(scores: Any, mask: Any = None, sample_weight: Any = None, reduction: str = "mean") -> Any:
    """Softmax cross-entropy with the other documents of the batch as negatives (eq. 2).

        lossᵢ = −log( exp(s·cos(qᵢ, dᵢ)) / Σⱼ exp(s·cos(qᵢ, dⱼ)) )

    The scores are s·cos, with s from 15 to 20 in the paper.
    """
    log_probabilities = ops.log_softmax(_masked(scores, mask), axis=-1)
    return _reduce(-ops.diagonal(log_probabilities), sample_weight, reduction)


def symmetric_softmax(scores: Any, mask: Any = None, sample_weight: Any = None, reduction: str = "mean") -> Any:
    """Mean of `in_batch_softmax` over both directions, query to documents and document to queries (eq. 3).

    loss = (eq. 2 of the rows + eq. 2 of the columns) / 2
    """
    size = ops.shape(scores)[0]  # mined negatives have no query of their own
    columns = ops.transpose(scores[:, :size])
    transposed = None if mask is None else ops.transpose(mask[:, :size])
    rows = in_batch_softmax(scores, mask, sample_weight, reduction)
    return (rows + in_batch_softmax(columns, transposed, sample_weight, reduction)) / 2


def binary_cross_entropy(
    scores: Any, mask: Any = None, sample_weight: Any = None, reduction: str = "sum", *, negative_rank: int = 1
) -> Any:
    """Binary cross-entropy of the positive and of a hard in-batch negative (eq. 4).

        lossᵢ = −log σ(s·cos(qᵢ, dᵢ)) − log(1 − σ(s·cos(qᵢ, d_{n(i)}))), with n(i) of `margin_rank`

    The paper prints the second term with the opposite sign, which would reward a high score of the negative. A row
    without a negative has only the first term.
    """
    positive, negative = ops.diagonal(scores), _hard_negative(scores, mask, negative_rank)
    return _reduce(ops.softplus(-positive) + ops.softplus(negative), sample_weight, reduction)


def margin_rank(
    scores: Any,
    mask: Any = None,
    sample_weight: Any = None,
    reduction: str = "sum",
    *,
    margin: float,
    negative_rank: int = 1,
) -> Any:
    """Hinge on a hard in-batch negative (eq. 5).

        n(i) = argmax_{j≠i} cos(qᵢ, dⱼ);   lossᵢ = max(0, −[cos(qᵢ, dᵢ) − cos(qᵢ, d_{n(i)})] + margin)

    The scores are cosines; the paper has a margin of 0.1 to 0.2 and sums. With another `negative_rank`, n(i) is the
    document with that rank by score: the hardest ones are not always the best negatives (Huang et al., Embedding-based
    Retrieval in Facebook Search, KDD 2020). A row without a negative has the loss 0.
    """
    positive, negative = ops.diagonal(scores), _hard_negative(scores, mask, negative_rank)
    return _reduce(ops.maximum(0.0, margin - (positive - negative)), sample_weight, reduction)


def gradient_blending(
    losses: Sequence[Any], weights: Sequence[float] | None = None, sample_weight: Any = None, reduction: str = "sum"
) -> Any:
    """Weighted sum of the loss of a whole model and the losses of its modalities (eq. 6).

        L = Σ_k w_k L_k, k = 1 … m + n + 1

    L_k is one of the losses above, on the scores of a model that has one modality in one tower and everything in the
    other; the last one has everything in both towers. `losses` are scalars, or `[batch]` without reduction, to which
    `sample_weight` and `reduction` then apply. `weights` are 1 by default; the paper does not give them.
    """
    weights = [1.0] * len(losses) if weights is None else weights
    if len(weights) != len(losses):
        raise ValueError(f"gradient_blending needs a weight for each loss; got {len(weights)} for {len(losses)} losses")
    total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
    return _reduce(total, sample_weight, reduction) if len(ops.shape(total)) else total


def query_classification(logits: Any, labels: Any, sample_weight: Any = None, reduction: str = "mean") -> Any:
    """Cross-entropy of documents and the frequent queries that led to them; each of k labels has the target 1/k.

        lossᵢ = −(1/kᵢ) Σ_{l in labelsᵢ} log softmax(logitsᵢ)_l

    Args:
        logits: `[batch, C]`, one column for each query of the head.
        labels: int32 `[batch, K]`, columns; −1 is padding. A document without label has the loss 0.
        sample_weight: see the module.
        reduction: see the module.

    Source: Que2Search, section on multi-task learning.
    """
    present = ops.cast(labels >= 0, logits.dtype)
    log_probabilities = ops.take_along_axis(ops.log_softmax(logits, axis=-1), ops.maximum(labels, 0), axis=1)
    count = ops.maximum(ops.sum(present, axis=1), 1.0)
    return _reduce(-ops.sum(present * log_probabilities, axis=1) / count, sample_weight, reduction)


def cosine_distillation(student: Any, teacher: Any, sample_weight: Any = None, reduction: str = "mean") -> Any:
    """Cosine distance of the embeddings of a student and of its teacher.

        lossᵢ = 1 − cos(studentᵢ, teacherᵢ)

    Args:
        student: `[batch, D]`. A student of 0, as at initialisation, has the cosine 0 and a gradient to its teacher.
        teacher: `[batch, D]`. A row of zeros has no teacher, and the loss 0.
        sample_weight: see the module.
        reduction: see the module.
    """
    cosines = ops.sum(_unit(student) * _unit(teacher), axis=1)
    present = ops.cast(ops.any(teacher != 0, axis=1), cosines.dtype)
    return _reduce(present * (1 - cosines), sample_weight, reduction)


def _masked(scores: Any, mask: Any) -> Any:
    """Scores with `MASKED_SCORE` where the mask is False, except on the diagonal."""
    if mask is None:
        return scores
    read = ops.logical_or(mask, ops.eye(*ops.shape(scores), dtype="bool"))
    return ops.where(read, scores, ops.cast(MASKED_SCORE, scores.dtype))


def _hard_negative(scores: Any, mask: Any, rank: int) -> Any:
    """The `rank`-th highest score of another document in each row `[batch]`; `MASKED_SCORE` where there is none."""
    lowest = ops.cast(MASKED_SCORE, scores.dtype)
    others = ops.where(ops.eye(*ops.shape(scores), dtype="bool"), lowest, _masked(scores, mask))
    if rank == 1:
        return ops.max(others, axis=1)
    return ops.sort(others, axis=1)[:, -ops.minimum(rank, ops.shape(others)[1])]


def _unit(vectors: Any) -> Any:
    squares = ops.sum(ops.square(vectors), axis=1, keepdims=True)
    return vectors * ops.rsqrt(ops.maximum(squares, 1e-12))


def _reduce(losses: Any, weights: Any, reduction: str) -> Any:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none"; got {reduction!r}')
    weights = ops.ones_like(losses) if weights is None else ops.cast(weights, losses.dtype)
    if reduction == "none":
        return losses * weights
    total = ops.sum(losses * weights)
    return total if reduction == "sum" else ops.divide_no_nan(total, ops.sum(weights))
