"""The kinds of index behind one interface, and which is the default."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from q2s_tf.errors import InputError
from q2s_tf.index.effort import DEFAULT_RECALL
from q2s_tf.index.exact import ExactIndex
from q2s_tf.index.partitioned import STORAGES, PartitionedIndex, build_partitioned
from q2s_tf.index.rows import Accept, Found

KINDS = ("exact", "partitioned", "scann")
EXACT_UP_TO = 20_000


class Index(Protocol):
    """What the retriever needs of an index; see `ExactIndex` for the meaning of each."""

    default_effort: int
    parameters: dict[str, Any]

    def search(self, queries: tf.Tensor, k: tf.Tensor, effort: tf.Tensor, accept: Accept | None = None) -> Found:
        """Scores `[B, K]`, falling, and rows `[B, K]`; −1 and −1 where there is no document."""

    def score(self, query: tf.Tensor, rows: tf.Tensor | None = None) -> tf.Tensor:
        """The cosines `[C]` of one query `[D]` to the given rows `[C]`, to all of them when None."""


def build_index(
    kind: str | None,
    embeddings: np.ndarray,
    seed: int,
    recall: float = DEFAULT_RECALL,
    storage: str = "float32",
    queries: np.ndarray | None = None,
) -> tuple[Index, np.ndarray]:
    """Builds an index over unit vectors.

    The default kind is `exact` up to 20,000 documents, else `partitioned`: both run on a stock TF Serving. Where the
    partitions are so blurred that an eighth of them and more must be searched for the recall asked for, a plain product
    of all documents is the faster one, and is taken.

    Args:
        kind: one of `KINDS`; None for the default.
        embeddings: `[N, D]`.
        seed: of whatever is drawn.
        recall: of the exact top 100, which the default effort is chosen for; see `draw_sample`.
        storage: what the rows of partitions are kept in: one of `STORAGES`.
        queries: real queries `[Q, D]` to choose it on.

    Returns:
        The index, and which of the embeddings each of its rows is, `[N]`.

    Raises:
        InputError: an unknown kind or storage, a recall that is no share, a catalogue too small for the kind.
    """
    if kind not in (None, *KINDS):
        raise InputError(f"index {kind!r}: must be one of {', '.join(KINDS)}")
    if storage not in STORAGES:
        raise InputError(f"storage {storage!r}: must be one of {', '.join(STORAGES)}")
    if storage != "float32" and kind != "partitioned":
        raise InputError(f"storage {storage}: only the index partitioned can have it: add --index partitioned")
    if not 0 < recall <= 1:
        raise InputError(f"recall {recall}: must be above 0 and at most 1")
    if kind == "exact" or (kind is None and len(embeddings) <= EXACT_UP_TO):
        return ExactIndex(embeddings), np.arange(len(embeddings), dtype=np.int32)
    if kind == "scann":
        return _build_scann(embeddings, seed, recall, queries)
    index, order = build_partitioned(embeddings, seed, recall, storage, queries)
    if kind is None and 8 * index.default_effort > index.parameters["partitions"]:
        return ExactIndex(embeddings), np.arange(len(embeddings), dtype=np.int32)
    return index, order


def restore_index(parameters: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> Index:
    """An index as it was saved, without building it again.

    Args:
        parameters: of the index that was saved.
        tensors: the values of its variables by their path in it.
    """
    if parameters["kind"] == "exact":
        return ExactIndex(tensors["embeddings"])
    if parameters["kind"] == "partitioned":
        centres, starts, embeddings = (tensors[name] for name in ("centres", "starts", "embeddings"))
        return PartitionedIndex(centres, starts, embeddings, tensors.get("scales"), parameters)
    from scann.scann_ops.py.scann_ops import ScannState

    from q2s_tf.index.scann import STATE, ScannIndex

    return ScannIndex(ScannState([tensors[f"searcher/{name}"] for name in STATE]), parameters)


def stored_embeddings(parameters: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The rows `[N, D]` of a saved index as float32; arguments as in `restore_index`."""
    if parameters["kind"] == "scann":
        return tensors["searcher/dataset"]
    embeddings = tensors["embeddings"].astype(np.float32)
    return embeddings * tensors["scales"][:, np.newaxis] if "scales" in tensors else embeddings


def _build_scann(
    embeddings: np.ndarray, seed: int, recall: float, queries: np.ndarray | None
) -> tuple[Index, np.ndarray]:
    from q2s_tf.index.scann import MIN_DOCUMENTS, build_scann  # loads ScaNN's ops, which the other kinds do without

    if len(embeddings) < MIN_DOCUMENTS:
        raise InputError(f"index scann: needs {MIN_DOCUMENTS} documents; got {len(embeddings)}: use --index exact")
    return build_scann(embeddings, seed, recall, queries)
