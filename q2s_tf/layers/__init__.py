"""Keras layers of the towers: preprocessing of raw inputs, one layer for each kind of channel, and the fusion."""

from q2s_tf.layers.aligned_projection import aligned_projection
from q2s_tf.layers.attention_fusion import AttentionFusion
from q2s_tf.layers.category_embedding import CategoryEmbedding
from q2s_tf.layers.deep_sets import DeepSets
from q2s_tf.layers.preprocessing import CategoryIds, TextNormalization, TokenIds, TrigramIds, VectorSet
from q2s_tf.layers.text_encoder import TextEncoder
from q2s_tf.layers.trigram_embedding import TrigramEmbedding

__all__ = [
    "AttentionFusion",
    "CategoryEmbedding",
    "CategoryIds",
    "DeepSets",
    "TextEncoder",
    "TextNormalization",
    "TokenIds",
    "TrigramEmbedding",
    "TrigramIds",
    "VectorSet",
    "aligned_projection",
]
