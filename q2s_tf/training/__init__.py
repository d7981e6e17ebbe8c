"""Training: from positives and documents to a run directory."""

from q2s_tf.training.retrieval_model import RetrievalModel
from q2s_tf.training.train import train

__all__ = ["RetrievalModel", "train"]
