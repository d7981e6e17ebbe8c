"""Training: from positives and documents to a run directory.

TensorFlow Recommenders is written for Keras 2 and refuses to be imported unless this variable is set before `tf.keras`
is first touched. Only this package imports it, so that a notebook that predicts, and the server, keep their own.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

from q2s_tf.training.train import train

__all__ = ["train"]
