"""Embeddings of a catalogue on disk: computed in shards, here or on Spark, for indexes and vector engines."""

from q2s_tf.embedding.embed import embed
from q2s_tf.embedding.shards import EmbeddingShards

__all__ = ["EmbeddingShards", "embed"]
