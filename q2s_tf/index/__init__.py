"""Nearest-neighbour indexes as graphs: built from document embeddings, exported inside the retriever."""

from q2s_tf.index.exact import ExactIndex
from q2s_tf.index.kinds import KINDS, Index, build_default, build_index
from q2s_tf.index.partitioned import PartitionedIndex

__all__ = ["KINDS", "ExactIndex", "Index", "PartitionedIndex", "build_default", "build_index"]
