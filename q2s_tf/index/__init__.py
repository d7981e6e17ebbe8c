"""Nearest-neighbour indexes as graphs: built from document embeddings, exported inside the retriever."""

from q2s_tf.index.catalogue import Catalogue
from q2s_tf.index.effort import DEFAULT_RECALL
from q2s_tf.index.exact import ExactIndex
from q2s_tf.index.kinds import KINDS, Index, build_index, restore_index, stored_embeddings
from q2s_tf.index.labels import Labels
from q2s_tf.index.partitioned import STORAGES, PartitionedIndex

__all__ = [
    "DEFAULT_RECALL",
    "KINDS",
    "STORAGES",
    "Catalogue",
    "ExactIndex",
    "Index",
    "Labels",
    "PartitionedIndex",
    "build_index",
    "restore_index",
    "stored_embeddings",
]
