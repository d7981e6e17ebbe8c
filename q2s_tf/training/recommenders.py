"""TensorFlow Recommenders, `tfrs`, independent of what `tf.keras` is in this process.

Its classes derive from those of Keras 2, and it cannot be imported while `tf.keras` is Keras 3. It is imported with
Keras 2 as `tf.keras`, which is then restored for notebooks, towers and the server.
"""

import tensorflow as tf
import tf_keras

_original, tf.keras = tf.keras, tf_keras
try:
    import tensorflow_recommenders as tfrs
finally:
    tf.keras = _original

__all__ = ["tfrs"]
