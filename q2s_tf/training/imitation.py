"""Distillation before stage 1: the query tower's text channels learn what the teacher says, without any document."""

from typing import Any

import tensorflow as tf

from q2s_tf.cli import console, progress_bar
from q2s_tf.config import Stage
from q2s_tf.training.examples import Examples
from q2s_tf.training.learner import Learner
from q2s_tf.training.losses import cosine_distillation
from q2s_tf.training.optimisation import Optimizer


def imitate(learner: Learner, examples: Examples) -> float:
    """Trains the text channels of the query tower on every distinct query, `distillation.epochs` times.

        loss = mean of 1 − cos(q with its text channels alone, teacher) over the rows

    A small encoder needs many more steps for this than the stages have, and here a step is cheap. Nothing else moves.

    Args:
        learner: trained in place.
        examples: with a teacher.

    Returns:
        The mean loss of the last epoch.
    """
    config, settings = learner.config, learner.config.distillation
    steps = max(1, examples.num_queries // config.stage1.batch_size)
    channels = list(config.text_channels("query"))
    names = [f"{name}_text_encoder" for name in config.longest_texts("query")] + [f"{name}_vector" for name in channels]
    layers = [learner.towers.query.encoder.get_layer(name) for name in names]
    variables = [variable for layer in layers for variable in layer.trainable_variables]
    rates = Stage(max_epochs=settings.epochs, learning_rate=settings.learning_rate, warmup_steps=steps // 4)
    decay_steps = steps * settings.epochs
    optimizer = Optimizer(variables, learner.workers, {}, rates, config.clip_norm, decay_steps)

    def learn(batch: dict[str, Any]) -> tf.Tensor:
        with tf.GradientTape() as tape:
            student = learner.fuse("query", *learner.encode("query", batch["query"]), only=channels)
            loss = tf.reduce_mean(cosine_distillation(student, batch["teacher"]))
            share = loss / learner.workers.count
        optimizer.apply(tape.gradient(share, variables))
        return loss

    lessons = [examples.lessons(config.stage1.batch_size, (config.seed, 0, epoch)) for epoch in range(settings.epochs)]

    @tf.function(input_signature=[lessons[0].element_spec])
    def step(batch: dict[str, Any]) -> tf.Tensor:
        return learner.workers.run(learn, batch)

    with progress_bar() as progress:
        bar = progress.add_task("learning from the teacher", total=decay_steps)
        for epoch in lessons:
            losses = []
            for batch in epoch:
                losses.append(float(step(batch)))
                progress.advance(bar)
    loss = sum(losses) / len(losses)
    console.print(f"learnt from the teacher: mean cosine {1 - loss:.3f} after {settings.epochs} epochs")
    return loss
