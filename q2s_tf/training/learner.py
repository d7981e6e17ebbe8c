"""What a training moves: the towers, split where gradient blending needs them, and the query-classification head."""

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from q2s_tf.config import TOWERS, Config
from q2s_tf.layers import TextEncoder
from q2s_tf.models import EncoderParts, Towers, split_encoder
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
        self._parts: dict[str, EncoderParts] = {
            name: split_encoder(getattr(towers, name).encoder, self.config.frozen_channels(name)) for name in TOWERS
        }
        self.head: keras.layers.Dense | None = None
        if labels:
            with workers.strategy.scope():
                self.head = keras.layers.Dense(labels, kernel_initializer="zeros", name="head")
                self.head.build((None, towers.config.dimension))
        self.variables = towers.trainable_variables + (self.head.trainable_variables if self.head else [])
        for _, encoder in self._text_encoders():
            encoder.training_dtype = "bfloat16" if mixed_precision(self.config) else "float32"

    def text_variables(self) -> dict[float, list[keras.Variable]]:
        """Those of `variables` that are inside a text encoder, by their encoder's `learning_rate_factor`."""
        by_factor: dict[float, list[keras.Variable]] = {}
        for name, encoder in self._text_encoders():
            factor = self.config.encoders[name].learning_rate_factor
            by_factor.setdefault(factor, []).extend(encoder.trainable_variables)
        return by_factor

    def _text_encoders(self) -> Iterator[tuple[str, TextEncoder]]:
        """Those of both towers, by name."""
        for tower in TOWERS:
            for name in self.config.longest_texts(tower):
                yield name, getattr(self.towers, tower).encoder.get_layer(f"{name}_text_encoder")

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


def mixed_precision(config: Config) -> bool:
    """Whether products inside the text encoders are bfloat16: as the config says, else where all GPUs have it."""
    if config.mixed_precision is not None:
        return config.mixed_precision
    details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    return bool(details) and all(each.get("compute_capability", (0, 0)) >= BFLOAT16 for each in details)


BFLOAT16 = (8, 0)
"""The first compute capability of a GPU with units for bfloat16."""


def everything(learner: Learner) -> list[Any]:
    """All variables of a learner, also the random streams of its dropout, for a checkpoint."""
    return [v.value for v in [*learner.towers.variables, *(learner.head.variables if learner.head else [])]]
