"""The towers as servables with fixed signatures; `q2s_tf.serving.retriever` has the third."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from q2s_tf.models import Tower
from q2s_tf.serving.lean import LeanTower

Endpoints = dict[str, Callable[..., dict[str, tf.Tensor]]]


class TowerServable(tf.Module):
    """One tower as a servable: raw inputs to `embedding` `[B, D]` and `channel_weights` `[B, N]`."""

    def __init__(self, tower: Tower):
        super().__init__(name=tower.name)
        self.tower = LeanTower(tower)
        specs = list(tower.preprocessor.signature().values())
        names = [spec.name for spec in specs]

        def embed(*values: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.tower(dict(zip(names, values, strict=True)))

        self.endpoints: Endpoints = {"serving_default": graph_function(embed, specs)}


def graph_function(function: Callable[..., Any], specs: list[tf.TensorSpec]) -> Any:
    """A graph function whose arguments, and so the signature's inputs, carry the names of the specs."""
    return tf.function(function, input_signature=specs, autograph=False)
