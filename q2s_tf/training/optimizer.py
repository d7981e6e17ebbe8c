"""The optimizer of both stages: Adam with sparse updates of tables, and learning rates by variable."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="q2s_tf")
class LazyAdam(keras.optimizers.Optimizer):
    """Adam that updates only the rows of a table that a step has read.

    For a row r with gradient g, at step t:

        m_r ← β₁ m_r + (1−β₁) g;   v_r ← β₂ v_r + (1−β₂) g²;   w_r ← w_r − α √(1−β₂ᵗ) / (1−β₁ᵗ) · m_r / (√v_r + ε)

    The moments of all other rows are kept, where Adam decays them and goes on updating their rows. The cost of a step
    is that of the rows of its batch. A dense gradient is applied as in Adam.

    Under a `tf.distribute` strategy gradients are summed over the replicas before they are clipped.

    Args:
        learning_rate: α, a number or a `keras.optimizers.schedules.LearningRateSchedule`.
        beta_1: β₁.
        beta_2: β₂.
        epsilon: ε.
        clip_norm: largest global norm of the gradients; None for no clipping.
        learning_rate_factors: factors on α by variable path; 1 for other variables.

    Source: Kingma and Ba, Adam, 2015. Que2Search trains with Adam at 7e-4, 2e-4 for the text encoders, and clips at
    1.0; sparse updates are an addition.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        clip_norm: float | None = None,
        learning_rate_factors: Mapping[str, float] | None = None,
        name: str = "lazy_adam",
        **kwargs: Any,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.clip_norm = clip_norm
        self.learning_rate_factors = dict(learning_rate_factors or {})

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates the moments of variables."""
        if self.built:
            return
        super().build(variables)
        self.first_moments = [self.add_variable_from_reference(variable, name="momentum") for variable in variables]
        self.second_moments = [self.add_variable_from_reference(variable, name="velocity") for variable in variables]
        self._slots: dict[Any, tuple[Any, Any, float]] = {}
        strategy = tf.distribute.get_strategy()
        for variable, m, v in zip(variables, self.first_moments, self.second_moments, strict=True):
            factor = self.learning_rate_factors.get(variable.path, 1.0)
            for replica in (variable.value, *strategy.experimental_local_results(variable.value)):
                self._slots[replica.ref()] = (m, v, factor)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Applies gradients, after summing over replicas, merging repeated rows and clipping."""
        grads = list(grads)
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync if context else 1
        if replicas > 1:
            grads = list(context.all_reduce(tf.distribute.ReduceOp.SUM, grads))
        grads = [merge_rows(gradient) for gradient in grads]
        if self.clip_norm is not None:
            grads, _ = tf.clip_by_global_norm(grads, self.clip_norm)
        if replicas > 1:  # the base class sums over the replicas once more
            grads = [tf.math.scalar_mul(1 / replicas, gradient) for gradient in grads]
        super().apply(grads, trainable_variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable."""
        first, second, factor = self._slots[variable.ref()]
        m, v = first.value, second.value
        step = tf.cast(self.iterations + 1, tf.float32)
        powers = {"beta1_power": self.beta_1**step, "beta2_power": self.beta_2**step}
        rate = tf.cast(learning_rate, tf.float32) * factor
        if not isinstance(gradient, tf.IndexedSlices):  # one op instead of the twenty of keras.optimizers.Adam
            state = {"var": variable.handle, "m": m.handle, "v": v.handle, **powers}
            constants = {"beta1": self.beta_1, "beta2": self.beta_2, "epsilon": self.epsilon}
            tf.raw_ops.ResourceApplyAdam(**state, **constants, lr=rate, grad=gradient)
            return
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:  # the rows of every replica, again
            gradient = merge_rows(gradient)
        rows = gradient.indices
        alpha = rate * tf.sqrt(1 - powers["beta2_power"]) / (1 - powers["beta1_power"])
        m_rows = self.beta_1 * tf.gather(m, rows) + (1 - self.beta_1) * gradient.values
        v_rows = self.beta_2 * tf.gather(v, rows) + (1 - self.beta_2) * tf.square(gradient.values)
        m.scatter_update(tf.IndexedSlices(m_rows, rows))
        v.scatter_update(tf.IndexedSlices(v_rows, rows))
        change = alpha * m_rows / (tf.sqrt(v_rows) + self.epsilon)
        variable.scatter_sub(tf.IndexedSlices(change, rows))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        names = ("beta_1", "beta_2", "epsilon", "clip_norm", "learning_rate_factors")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def merge_rows(gradient: Any) -> Any:
    """A sparse gradient in which every row occurs once, with the sum of its gradients; a dense one unchanged."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, positions = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, positions, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def decaying_rate(peak: float, warmup_steps: int, decay_steps: int) -> keras.optimizers.schedules.CosineDecay:
    """A rate that rises linearly for `warmup_steps` and falls by a half cosine to a tenth of its peak at `decay_steps`.

    The paper does not describe a schedule.
    """
    warmup = {"warmup_target": peak, "warmup_steps": warmup_steps} if warmup_steps else {}
    initial, falling = 0.0 if warmup_steps else peak, max(1, decay_steps - warmup_steps)
    return keras.optimizers.schedules.CosineDecay(initial, falling, alpha=0.1, **warmup)
