"""The kinds of index behind one interface, and which is the default."""

from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from q2s_tf.errors import InputError
from q2s_tf.index.exact import ExactIndex
from q2s_tf.index.partitioned import PartitionedIndex

KINDS = ("exact", "partitioned", "scann")
EXACT_UP_TO = 20_000


class Index(Protocol):
    """What the retriever needs of an index; see `ExactIndex` for the meaning of each."""

    default_effort: int
    parameters: dict[str, float | int | str]

    def search(self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor) -> Any:
        """Scores `[B, K]`, falling, and rows `[B, K]`; −1 and −1 where there is no document."""


def build_default(embeddings: np.ndarray, seed: int) -> Index:
    """`exact` up to 20,000 documents, else `partitioned`: both run on a stock TF Serving.

    Where the partitions are so blurred that an eighth of them and more must be searched for the recall asked for, a
    plain product of all documents is the faster one, and is taken.
    """
    if len(embeddings) <= EXACT_UP_TO:
        return ExactIndex(embeddings)
    index = PartitionedIndex(embeddings, seed)
    return index if 8 * index.default_effort <= index.centres.shape[0] else ExactIndex(embeddings)


def build_index(kind: str, embeddings: np.ndarray, seed: int) -> Index:
    """Builds an index over unit vectors `[N, D]`.

    Raises:
        InputError: an unknown kind, or a catalogue too small for it.
    """
    if kind == "exact":
        return ExactIndex(embeddings)
    if kind == "partitioned":
        return PartitionedIndex(embeddings, seed)
    if kind == "scann":
        from q2s_tf.index.scann import ScannIndex  # its import loads ScaNN's ops, which the other kinds do without

        if len(embeddings) < ScannIndex.MIN_DOCUMENTS:
            raise InputError(
                f"index scann: needs {ScannIndex.MIN_DOCUMENTS} documents; got {len(embeddings)}: use --index exact"
            )
        return ScannIndex(embeddings, seed)
    raise InputError(f"index {kind!r}: must be one of {', '.join(KINDS)}")
