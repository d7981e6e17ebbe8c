"""What a training moves: the towers, split where gradient blending needs them, and the query-classification head."""

from typing import Any

import keras
import tensorflow as tf

from q2s_tf.config import TOWERS, Config
from q2s_tf.towers import EncoderParts, Towers, split_encoder
from q2s_tf.training.optimisation import text_encoder_variables
from q2s_tf.training.workers import Workers


class Learner:
    """Both towers in training, and a head that lives only as long as the training does.

    Args:
        towers: trained in place; made in the scope of the workers' strategy.
        workers: who trains them.
        labels: C, the queries that the head tells apart; 0 is no head.

    Attributes:
        head: from a document embedding `[B, D]` to logits `[B, C]`, None without head.
        variables: everything trainable.
    """

    def __init__(self, towers: Towers, workers: Workers, labels: int = 0):
        self.towers = towers
        self.workers = workers
        self.config: Config = towers.config
        self._parts: dict[str, EncoderParts] = {name: split_encoder(getattr(towers, name).encoder) for name in TOWERS}
        self.head: keras.layers.Dense | None = None
        if labels:
            with workers.strategy.scope():
                self.head = keras.layers.Dense(labels, kernel_initializer="zeros", name="head")
                self.head.build((None, towers.config.dimension))
        self.variables = towers.trainable_variables + (self.head.trainable_variables if self.head else [])

    def text_variables(self) -> list[keras.Variable]:
        """Those of `variables` that are inside a text encoder."""
        return text_encoder_variables([layer for name in TOWERS for layer in getattr(self.towers, name).encoder.layers])

    def encode(self, tower: str, inputs: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """The channel vectors `[B, N, D]` of prepared inputs, and which are present, bool `[B, N]`; with dropout.

        Each worker encodes its share of the rows, and all have all of them.
        """
        stacked, present = self._parts[tower].channels(self.workers.share(inputs), training=True)
        return self.workers.gather(stacked), self.workers.gather(tf.cast(present, tf.int32)) > 0  # no gather of bools

    def fuse(self, tower: str, stacked: tf.Tensor, present: tf.Tensor, only: list[str] | None = None) -> tf.Tensor:
        """The embedding `[B, D]` of channel vectors, of all of them or as if there were only those named."""
        if only is not None:
            names = getattr(self.towers, tower).channels
            present = present & tf.constant([name in only for name in names])
        return self._parts[tower].fuse(stacked, present)[0]

    def blended_groups(self) -> list[tuple[str, list[str], float]]:
        """The groups of channels that have a loss of their own: tower, channels, weight."""
        blending = self.config.blending
        groups: list[tuple[str, list[str], float]] = []
        for tower in TOWERS:
            members = self.config.groups(tower)
            weights = {**dict.fromkeys(members, blending.weight), **blending.weights.get(tower, {})}
            groups += [(tower, members[group], weight) for group, weight in weights.items() if weight]
        return groups


def everything(learner: Learner) -> list[Any]:
    """All variables of a learner, also the random streams of its dropout, for a checkpoint."""
    return [v.value for v in [*learner.towers.variables, *(learner.head.variables if learner.head else [])]]
