"""Building an index of any kind, choosing the default kind, and restoring a saved index."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from q2s_tf.errors import InputError
from q2s_tf.index.blocks import STORAGES, Vectors, store_rows
from q2s_tf.index.effort import DEFAULT_RECALL
from q2s_tf.index.exact import ExactIndex, Index
from q2s_tf.index.partitioned import PartitionedIndex, build_partitioned

KINDS = ("exact", "partitioned", "scann")
EXACT_UP_TO = 20_000


def build_index(
    kind: str | None,
    embeddings: Vectors,
    seed: int,
    recall: float = DEFAULT_RECALL,
    storage: str = "float32",
    queries: np.ndarray | None = None,
) -> tuple[Index, np.ndarray]:
    """Build an index over unit vectors.

    The default kind is `exact` up to 20,000 documents, else `partitioned`. Both run on a stock TF Serving. If more than
    an eighth of the partitions must be searched for the recall, the default is `exact` for any number of documents,
    because one product of all documents is faster then.

    Args:
        kind: One of `KINDS`, or None for the default.
        embeddings: `[N, D]`. The kinds `exact` and `partitioned` read them by blocks, so a memory-mapped file can be
            larger than memory, and hold their rows once.
        seed: Seed of the clustering and of the sample that the recall is measured on.
        recall: Share of the exact top 100 that the default effort must return; see `draw_sample`.
        storage: dtype of the rows of a partitioned index, one of `STORAGES`.
        queries: Real queries `[Q, D]` to measure the recall on.

    Returns:
        The index, and for each of its rows the position of its embedding, int32 `[N]`.

    Raises:
        InputError: Unknown kind or storage, a recall outside (0, 1], or too few documents for the kind.
    """
    if kind not in (None, *KINDS):
        raise InputError(f"index {kind!r}: must be one of {', '.join(KINDS)}")
    if storage not in STORAGES:
        raise InputError(f"storage {storage!r}: must be one of {', '.join(STORAGES)}")
    if storage != "float32" and kind != "partitioned":
        raise InputError(f"storage {storage}: only the index partitioned can have it: add --index partitioned")
    if not 0 < recall <= 1:
        raise InputError(f"recall {recall}: must be above 0 and at most 1")
    if kind == "scann":
        from q2s_tf.index.scann import build_scann  # loads ScaNN's ops, which the other kinds do not need

        return build_scann(embeddings, seed, recall, queries)
    if kind == "partitioned" or (kind is None and len(embeddings) > EXACT_UP_TO):
        index, order = build_partitioned(embeddings, seed, recall, storage, queries)
        if kind is not None or 8 * index.default_effort <= index.parameters["partitions"]:
            return index, order
        del index, order
    return ExactIndex(store_rows(embeddings)[0]), np.arange(len(embeddings), dtype=np.int32)


def restore_index(parameters: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> Index:
    """Restore a saved index from its parameters and the values of its variables by their path in the index."""
    if parameters["kind"] == "exact":
        return ExactIndex(tensors["embeddings"])
    if parameters["kind"] == "partitioned":
        centres, starts, embeddings = (tensors[name] for name in ("centres", "starts", "embeddings"))
        return PartitionedIndex(centres, starts, embeddings, tensors.get("scales"), parameters)
    from scann.scann_ops.py.scann_ops import ScannState

    from q2s_tf.index.scann import STATE, ScannIndex

    return ScannIndex(ScannState([tensors[f"searcher/{name}"] for name in STATE]), parameters)
