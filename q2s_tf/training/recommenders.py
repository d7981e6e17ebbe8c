"""TensorFlow Recommenders, `tfrs`, whatever `tf.keras` is in this process.

Its classes derive from those of Keras 2, and it refuses to be imported while `tf.keras` is Keras 3. So it is imported
with Keras 2 in that place, which a notebook, the towers and the server get back as it was.
"""

import tensorflow as tf
import tf_keras

_own, tf.keras = tf.keras, tf_keras
try:
    import tensorflow_recommenders as tfrs
finally:
    tf.keras = _own

__all__ = ["tfrs"]
