"""One training step of both towers through a TFRS retrieval task."""

from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs

from q2s_tf.config import Config, Stage
from q2s_tf.towers import Towers
from q2s_tf.training.losses import in_batch_softmax, margin_rank
from q2s_tf.training.optimisation import TowersOptimizer

Step = Callable[[dict[str, Any]], dict[str, tf.Tensor]]


def retrieval_task(config: Config, stage: int) -> tfrs.tasks.Retrieval:
    """The task of a stage: eq. 2 over s·cos in stage 1, eq. 5 over the cosines in stage 2."""
    if stage == 1:
        return tfrs.tasks.Retrieval(loss=in_batch_softmax, temperature=1 / config.stage1.scale)
    return tfrs.tasks.Retrieval(loss=partial(margin_rank, margin=config.stage2.margin))


def build_step(towers: Towers, optimizer: TowersOptimizer, stage: int, batch_spec: Any) -> Step:
    """The training step as one graph: towers, task, gradients, clipping, update.

    Args:
        towers: trained in place.
        optimizer: moves their weights.
        stage: 1 or 2, which decides the task.
        batch_spec: specs of a batch (`element_spec` of `Examples.dataset`), so that the graph is traced once.

    Returns:
        A function from a batch of `Examples` to scalars: `loss`, `batch_recall@1`, `gradient_norm`.
    """
    task = retrieval_task(towers.config, stage)
    corrected = stage == 1 and towers.config.stage1.popularity_correction

    # The task is Keras 2 code that asks for the length of a shape: it needs AutoGraph, which a plain tf.function has.
    @tf.function(input_signature=[batch_spec])
    def step(batch: dict[str, Any]) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            query = towers.query.encoder(batch["query"], training=True)["embedding"]
            document = towers.document.encoder(batch["document"], training=True)["embedding"]
            loss = task(
                query,
                document,
                sample_weight=batch["weight"],
                candidate_sampling_probability=batch["document_probability"] if corrected else None,
                score_mask=batch["score_mask"],
                compute_metrics=False,
                compute_batch_metrics=False,
            )
        gradients = tape.gradient(loss, towers.trainable_variables)
        norm = optimizer.apply(gradients)
        scores = tf.where(batch["score_mask"], tf.matmul(query, document, transpose_b=True), -1.0)
        first = tf.argmax(scores, axis=1, output_type=tf.int32) == tf.range(tf.shape(scores)[0])
        return {"loss": loss, "batch_recall@1": tf.reduce_mean(tf.cast(first, tf.float32)), "gradient_norm": norm}

    return step


def stage_config(config: Config, stage: int) -> Stage:
    """The table of a stage."""
    return config.stage1 if stage == 1 else config.stage2
