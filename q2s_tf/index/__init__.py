"""Nearest-neighbour indexes as graphs: built from document embeddings and exported inside the retriever."""

from q2s_tf.index.effort import DEFAULT_RECALL
from q2s_tf.index.exact import ExactIndex, Index
from q2s_tf.index.filter_columns import FilterColumns
from q2s_tf.index.indexed_documents import DocumentRows, IndexedDocuments, LiveVectors
from q2s_tf.index.kinds import build_index, restore_index
from q2s_tf.index.partitioned import PartitionedIndex

__all__ = [
    "DEFAULT_RECALL",
    "DocumentRows",
    "ExactIndex",
    "FilterColumns",
    "Index",
    "IndexedDocuments",
    "LiveVectors",
    "PartitionedIndex",
    "build_index",
    "restore_index",
]
