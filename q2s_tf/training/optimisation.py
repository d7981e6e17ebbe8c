"""How gradients become new weights."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from q2s_tf.config import Stage
from q2s_tf.training.workers import Workers


class LazyAdam(keras.optimizers.Adam):
    """Adam that moves only those rows of a table that a step has read.

    For a row r with gradient g, at step t:

        m_r ← β₁ m_r + (1−β₁) g;   v_r ← β₂ v_r + (1−β₂) g²;   w_r ← w_r − α √(1−β₂ᵗ) / (1−β₁ᵗ) · m_r / (√v_r + ε)

    The moments of every other row stay as they are, where Adam lets them decay and goes on moving the row. So a step
    costs what its batch reads and not what the table holds. A dense gradient is handled as Adam does.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Moves one variable; a sparse `gradient` has each row once (see `merge_rows`)."""
        place = self._get_variable_index(variable)
        m, v = self._momentums[place].value, self._velocities[place].value
        step = tf.cast(self.iterations + 1, tf.float32)
        powers = {"beta1_power": self.beta_1**step, "beta2_power": self.beta_2**step}
        if not isinstance(gradient, tf.IndexedSlices):  # one op in the place of the twenty of Keras's Adam
            state = {"var": variable.handle, "m": m.handle, "v": v.handle, **powers}
            constants = {"beta1": self.beta_1, "beta2": self.beta_2, "epsilon": self.epsilon}
            tf.raw_ops.ResourceApplyAdam(**state, **constants, lr=learning_rate, grad=gradient)
            return
        rows = gradient.indices
        alpha = learning_rate * tf.sqrt(1 - powers["beta2_power"]) / (1 - powers["beta1_power"])
        m_rows = self.beta_1 * tf.gather(m, rows) + (1 - self.beta_1) * gradient.values
        v_rows = self.beta_2 * tf.gather(v, rows) + (1 - self.beta_2) * tf.square(gradient.values)
        m.scatter_update(tf.IndexedSlices(m_rows, rows))
        v.scatter_update(tf.IndexedSlices(v_rows, rows))
        change = alpha * m_rows / (tf.sqrt(v_rows) + self.epsilon)
        variable.scatter_sub(tf.IndexedSlices(change, rows))

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return list(grads_and_vars)  # `Optimizer.apply` has summed them over the workers, before it clipped them


class Optimizer(tf.Module):
    """Adam at rates of its own for what is inside the text encoders, after clipping by global norm.

    The rate rises linearly over `warmup_steps` and falls by a half cosine to a tenth of itself at `decay_steps`.

    Args:
        variables: whose weights it moves.
        workers: whose gradients are summed.
        text_variables: those of them that are inside a text encoder, by the factor on the stage's text rate.
        stage: rates and warm-up.
        clip_norm: the largest norm of all gradients together.
        decay_steps: steps until the lowest rate.

    Source: Que2Search (Adam, 7e-4, and 2e-4 inside XLM and XLM-R, clipping at 1.0); the schedule and the lazy updates
    of tables are ours.
    """

    def __init__(
        self,
        variables: list[keras.Variable],
        workers: Workers,
        text_variables: Mapping[float, list[keras.Variable]],
        stage: Stage,
        clip_norm: float,
        decay_steps: int,
    ):
        super().__init__(name="optimizer")
        self.clip_norm = clip_norm
        self.variables_all = variables
        self.workers = workers
        text = {id(variable) for members in text_variables.values() for variable in members}
        rates = [(stage.learning_rate, [variable for variable in variables if id(variable) not in text])]
        rates += [(stage.text_learning_rate * factor, members) for factor, members in text_variables.items()]
        with workers.strategy.scope():
            self.groups = [(_adam(rate, stage.warmup_steps, decay_steps), members) for rate, members in rates]
            for adam, members in self.groups:
                adam.build(members)

    def apply(self, gradients: list[Any]) -> tf.Tensor:
        """Moves the weights by gradients in the order of `variables`; returns their norm before clipping."""
        merged = [merge_rows(gradient) for gradient in self.workers.sum(gradients)]
        clipped, norm = tf.clip_by_global_norm(merged, self.clip_norm)
        gradient_of = {id(v): gradient for v, gradient in zip(self.variables_all, clipped, strict=True)}
        for adam, members in self.groups:
            if members:
                adam.apply([gradient_of[id(variable)] for variable in members], members)
        return norm


def merge_rows(gradient: Any) -> Any:
    """A sparse gradient with every row of its table once: the sum of what came for it. A dense one as it is."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, place = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, place, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def _adam(rate: float, warmup_steps: int, decay_steps: int) -> LazyAdam:
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup_steps else rate,
        max(1, decay_steps - warmup_steps),
        alpha=0.1,
        warmup_target=rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
    return LazyAdam(schedule)
