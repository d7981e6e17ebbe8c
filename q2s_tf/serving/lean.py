"""The graph of a trained tower with as few ops as TensorFlow can be brought to run for it.

It is traced from the Keras tower itself, so it cannot drift from it: what makes it lean is the layers (products and
ops fused where they are defined) and that all but the largest weights are constants here. A server then folds whatever
hangs on them alone when it loads the graph, such as the query, key and value kernels into one, and reads no variables.
"""

from typing import Any

import keras
import tensorflow as tf

from q2s_tf.models import Tower

LARGEST_CONSTANT = 2**20
"""Numbers in a weight that still becomes a constant, 4 MB. Reading a larger one costs nothing next to using it, and a
graph must stay far under the 2 GB of a saved model's file."""


class LeanTower(tf.Module):
    """A trained tower as one graph function, for signatures to call.

    Several signatures that call the same one share its constants. It tracks what stays a variable, as raw
    `tf.Variable`s: a Keras model that `tf.saved_model.save` tracks cannot be read by TF Serving's session loader.

    Args:
        tower: as it is now; weights that change later are not seen.
    """

    def __init__(self, tower: Tower):
        super().__init__(name=f"lean_{tower.name}")
        weights = tower.encoder.variables
        self.tables = [weight.value for weight in weights if _size(weight) > LARGEST_CONSTANT]
        constants = [(weight, weight.numpy()) for weight in weights if _size(weight) <= LARGEST_CONSTANT]

        def forward(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            values = [(weight, tf.constant(value)) for weight, value in constants]
            with keras.StatelessScope(state_mapping=values):  # inside, a Keras weight has the value it is given here
                return dict(tower.encoder(tower.preprocessor(inputs), training=False))

        self._forward = tf.function(forward, input_signature=[tower.preprocessor.signature()], autograph=False)

    def __call__(self, inputs: dict[str, tf.Tensor]) -> dict[str, Any]:
        """Raw inputs by name (see `Preprocessor`) to `embedding` `[B, D]` and `channel_weights` `[B, N]`."""
        return self._forward(inputs)


def _size(weight: keras.Variable) -> int:
    return weight.value.shape.num_elements()
