"""Training: from positives and documents to a run directory."""

from q2s_tf.training.callbacks import EpochMetrics
from q2s_tf.training.retrieval_model import RetrievalModel, compile_stage
from q2s_tf.training.train import prepare_training, train

__all__ = ["EpochMetrics", "RetrievalModel", "compile_stage", "prepare_training", "train"]
