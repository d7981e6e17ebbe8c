"""One training step of both towers through a TFRS retrieval task."""

from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf

from q2s_tf.config import Config, Stage
from q2s_tf.training.examples import NO_COUNTRY
from q2s_tf.training.learner import Learner
from q2s_tf.training.losses import (
    cosine_distillation,
    hardest_binary_cross_entropy,
    in_batch_softmax,
    margin_rank,
    query_classification,
    symmetric_softmax,
)
from q2s_tf.training.optimisation import Optimizer
from q2s_tf.training.recommenders import tfrs

Step = Callable[[dict[str, Any]], dict[str, tf.Tensor]]


def retrieval_task(config: Config, stage: int) -> tfrs.tasks.Retrieval:
    """The task of a stage: eq. 2 or 3 over s·cos in stage 1; eq. 5 over the cosines, or eq. 4 or 2, in stage 2."""
    settings = config.stage2
    if stage == 1:
        loss = symmetric_softmax if config.stage1.symmetric else in_batch_softmax
        return tfrs.tasks.Retrieval(loss=loss, temperature=1 / config.stage1.scale)
    if settings.loss == "softmax":
        return tfrs.tasks.Retrieval(loss=in_batch_softmax, temperature=1 / settings.scale)
    if settings.loss == "binary_cross_entropy":
        loss = partial(hardest_binary_cross_entropy, negative_rank=settings.negative_rank)
        return tfrs.tasks.Retrieval(loss=loss, temperature=1 / settings.scale)
    return tfrs.tasks.Retrieval(loss=partial(margin_rank, margin=settings.margin, negative_rank=settings.negative_rank))


def build_step(learner: Learner, optimizer: Optimizer, stage: int, batch_spec: Any) -> Step:
    """The training step as one graph: towers, losses, gradients, clipping, update.

        loss = task(q, d) + Σ_g w_g·task(q, d with the channels of g alone in their tower) + w_head·head(d)
            + w_distillation·(1 − cos(q with its text channels alone, teacher))

    The sum over groups is gradient blending (eq. 6): every channel vector is computed once and fused once more a group.
    A row without any channel of a group takes no part in its loss. The losses of the head and of distillation are
    averaged over the rows or summed over them, as the stage's own loss is.

    Args:
        learner: trained in place.
        optimizer: moves its weights.
        stage: 1 or 2, which decides the task.
        batch_spec: specs of a batch (`element_spec` of `Examples.dataset`), so that the graph is traced once.

    Returns:
        A function from a batch of `Examples` to scalars: `loss` and its parts (`retrieval_loss`, `blended_loss`,
        `head_loss`, `distillation_loss`, those that are in use), `batch_recall@1`, `gradient_norm`.
    """
    config = learner.config
    task, groups = retrieval_task(config, stage), learner.blended_groups()
    corrected = stage == 1 and config.stage1.popularity_correction
    of_same_country = stage == 2 and config.stage2.negatives == "same_country"
    averaged = stage == 1 or config.stage2.loss == "softmax"
    reduce = tf.reduce_mean if averaged else tf.reduce_sum

    def retrieval(batch: dict[str, Any], query: tf.Tensor, document: tf.Tensor) -> tf.Tensor:
        there = {name: tf.reduce_any(vectors != 0, axis=1) for name, vectors in (("q", query), ("d", document))}
        allowed = there["d"][tf.newaxis] & (same_country(batch) if of_same_country else True)
        mask = batch["score_mask"] & (allowed | tf.eye(tf.shape(query)[0], dtype=tf.bool))
        return task(
            query,
            document,
            sample_weight=batch["weight"] * tf.cast(there["q"] & there["d"], tf.float32),
            candidate_sampling_probability=batch["document_probability"] if corrected else None,
            score_mask=mask,
            compute_metrics=False,
            compute_batch_metrics=False,
        )

    def learn(batch: dict[str, Any]) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            channels = {tower: learner.encode(tower, batch[tower]) for tower in ("query", "document")}
            whole = {tower: learner.fuse(tower, *channels[tower]) for tower in ("query", "document")}
            losses = {"retrieval_loss": retrieval(batch, whole["query"], whole["document"])}
            blended = [
                weight * retrieval(batch, **{**whole, tower: learner.fuse(tower, *channels[tower], only=members)})
                for tower, members, weight in groups
            ]
            if groups:
                losses["blended_loss"] = tf.add_n(blended)
            if learner.head is not None and config.head is not None:
                rows = query_classification(learner.head(config.stage1.scale * whole["document"]), batch["labels"])
                losses["head_loss"] = config.head.weight * reduce(rows)
            if "teacher" in batch:
                student = learner.fuse("query", *channels["query"], only=list(config.text_channels("query")))
                rows = cosine_distillation(student, batch["teacher"])
                losses["distillation_loss"] = config.distillation.weight * reduce(rows)
            loss = tf.add_n(list(losses.values()))
            share = loss / learner.workers.count
        norm = optimizer.apply(tape.gradient(share, learner.variables))
        scores = tf.where(batch["score_mask"], tf.matmul(whole["query"], whole["document"], transpose_b=True), -1.0)
        first = tf.argmax(scores, axis=1, output_type=tf.int32) == tf.range(tf.shape(scores)[0])
        parts = losses if len(losses) > 1 else {}
        recall = tf.reduce_mean(tf.cast(first, tf.float32))
        return {"loss": loss, **parts, "batch_recall@1": recall, "gradient_norm": norm}

    # The task is Keras 2 code that asks for the length of a shape: it needs AutoGraph, which a plain tf.function has.
    @tf.function(input_signature=[batch_spec])
    def step(batch: dict[str, Any]) -> dict[str, tf.Tensor]:
        return learner.workers.run(learn, batch)

    return step


def same_country(batch: dict[str, Any]) -> tf.Tensor:
    """Where document j is of the country of query i's searcher, bool `[B, B]`; a missing country is any."""
    query, document = batch["query_country"][:, tf.newaxis], batch["document_country"][tf.newaxis]
    return (query == document) | (query == NO_COUNTRY) | (document == NO_COUNTRY)


def stage_config(config: Config, stage: int) -> Stage:
    """The table of a stage."""
    return config.stage1 if stage == 1 else config.stage2
