"""How gradients become new weights."""

from typing import Any

import keras
import tensorflow as tf

from q2s_tf.config import Stage
from q2s_tf.towers import Towers


class TowersOptimizer(tf.Module):
    """Adam at one rate for what is inside the text encoders and another for the rest, after clipping by global norm.

    The rate rises linearly over `warmup_steps` and falls by a half cosine to a tenth of itself at `decay_steps`.

    Args:
        towers: whose weights it moves.
        stage: rates and warm-up.
        clip_norm: the largest norm of all gradients together.
        decay_steps: steps until the lowest rate.

    Source: Que2Search (Adam, 7e-4, and 2e-4 inside XLM and XLM-R, clipping at 1.0); the schedule is ours.
    """

    def __init__(self, towers: Towers, stage: Stage, clip_norm: float, decay_steps: int):
        super().__init__(name="optimizer")
        self.clip_norm = clip_norm
        self.variables_all = towers.trainable_variables
        text = {id(variable) for variable in text_encoder_variables(towers)}
        self.groups = [
            (_adam(rate, stage.warmup_steps, decay_steps), [v for v in self.variables_all if (id(v) in text) == inside])
            for rate, inside in ((stage.learning_rate, False), (stage.text_learning_rate, True))
        ]
        for adam, variables in self.groups:
            adam.build(variables)

    def apply(self, gradients: list[Any]) -> tf.Tensor:
        """Moves the weights by gradients in the order of `trainable_variables`; returns their norm before clipping."""
        clipped, norm = tf.clip_by_global_norm(gradients, self.clip_norm)
        gradient_of = {id(v): gradient for v, gradient in zip(self.variables_all, clipped, strict=True)}
        for adam, variables in self.groups:
            if variables:
                adam.apply([gradient_of[id(variable)] for variable in variables], variables)
        return norm


def text_encoder_variables(towers: Towers) -> list[keras.Variable]:
    """The trainable weights inside XLM and XLM-R: those of the text encoders' backbones."""
    layers = [*towers.query.encoder.layers, *towers.document.encoder.layers]
    return [variable for layer in layers if hasattr(layer, "backbone") for variable in layer.trainable_variables]


def _adam(rate: float, warmup_steps: int, decay_steps: int) -> keras.optimizers.Adam:
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup_steps else rate,
        max(1, decay_steps - warmup_steps),
        alpha=0.1,
        warmup_target=rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
    return keras.optimizers.Adam(schedule)
