"""The Keras layers of the towers: what turns a channel's input into φᵢ, and the fusion of the φᵢ."""

from q2s_tf.layers.attention_fusion import AttentionFusion
from q2s_tf.layers.concat_fusion import ConcatFusion
from q2s_tf.layers.deep_sets import DeepSets
from q2s_tf.layers.embedding import Embedding
from q2s_tf.layers.text_encoder import TextEncoder
from q2s_tf.layers.trigram_embedding import TrigramEmbedding

__all__ = ["AttentionFusion", "ConcatFusion", "DeepSets", "Embedding", "TextEncoder", "TrigramEmbedding"]
