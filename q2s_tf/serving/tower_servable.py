"""A tower as a servable: its graph with small weights as constants, which leaves few ops to run.

The graph is traced from the Keras tower, so both compute the same. A server folds everything that depends on constants
alone when it loads the graph, for example the query, key and value kernels into one, and reads few variables.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from q2s_tf.models import Tower

Endpoints = dict[str, Callable[..., dict[str, tf.Tensor]]]
"""The graph functions of a servable's signatures by name."""

LARGEST_CONSTANT = 2**20
"""Numbers in a weight that becomes a constant, at most (4 MB). The read of a larger variable is cheap next to its use,
and the graph must stay below the 2 GB of a saved model's file."""


class TowerServable(tf.Module):
    """A trained tower as a servable with the signature `serving_default`; other servables call it too.

    It tracks the weights that remain variables as raw `tf.Variable`s, because TF Serving's session loader cannot
    restore a Keras model that `tf.saved_model.save` tracks.

    Args:
        tower: The tower. Later changes of its weights have no effect here.
    """

    def __init__(self, tower: Tower):
        super().__init__(name=tower.name)
        weights = tower.variables
        self.tables = [weight.value for weight in weights if _size(weight) > LARGEST_CONSTANT]
        constants = [(weight, weight.numpy()) for weight in weights if _size(weight) <= LARGEST_CONSTANT]
        signature = tower.signature()
        self.specs: tuple[tf.TensorSpec, ...] = tuple(signature.values())
        self.unread = tuple(name for name in signature if name not in tower.read_inputs())

        def forward(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            values = [(weight, tf.constant(value)) for weight, value in constants]
            with keras.StatelessScope(state_mapping=values):  # Keras reads these values instead of its variables
                return dict(tower(inputs, training=False))

        self._forward = tf.function(forward, input_signature=[signature], autograph=False)

    def __call__(self, inputs: dict[str, tf.Tensor]) -> dict[str, Any]:
        """Embed raw inputs by name (see `Tower`): `embedding` `[B, D]` and `channel_weights` `[B, N]`."""
        return self._forward(inputs)

    @property
    def endpoints(self) -> Endpoints:
        """The signature's function; a property, so that a servable that holds a tower does not save it."""

        def embed(*values: tf.Tensor) -> dict[str, tf.Tensor]:
            return self({spec.name: value for spec, value in zip(self.specs, values, strict=True)})

        return {"serving_default": graph_function(embed, self.specs)}


def graph_function(function: Callable[..., Any], specs: Sequence[tf.TensorSpec]) -> Any:
    """A graph function whose arguments, and so the inputs of its signature, have the names of the specs."""
    return tf.function(function, input_signature=list(specs), autograph=False)


def declare_optional(folder: Path, names: Collection[str]) -> None:
    """Gives inputs that the graph does not read a default in all signatures of a saved model: one empty row.

    A server then accepts requests without them.
    """
    path = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for signature in model.meta_graphs[0].signature_def.values():
        for name in set(names) & set(signature.inputs):
            spec = signature.inputs[name]
            shape = [1, *(max(0, axis.size) for axis in spec.tensor_shape.dim[1:])]
            empty = b"" if spec.dtype == tf.string else 0
            signature.defaults[name].CopyFrom(tf.make_tensor_proto(empty, spec.dtype, shape))
    path.write_bytes(model.SerializeToString())


def _size(weight: keras.Variable) -> int:
    return weight.value.shape.num_elements()
