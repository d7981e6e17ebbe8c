"""What the rows of a retriever stand for, and how they change without a new index."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Catalogue:
    """The documents by row: first those of the index, then the delta, which is scanned beside it.

    An index is not changed: a document that is deleted or replaced leaves a tombstone in it, and what is new is in the
    delta.

    Args:
        document_ids: bytes `[N + n]`, N rows of the index and n of the delta.
        alive: booleans `[N]`; False is a tombstone.
        delta: unit vectors `[n, D]`.
        filters: by column the normalised value of each row, bytes `[N + n]`; b"" where there is none.
    """

    document_ids: np.ndarray
    alive: np.ndarray
    delta: np.ndarray
    filters: Mapping[str, np.ndarray]

    @property
    def live(self) -> int:
        """How many documents can be found."""
        return int(self.alive.sum()) + len(self.delta)

    def remove(self, document_ids: np.ndarray) -> tuple["Catalogue", int]:
        """Without some documents, and how many of them were there: tombstones in the index, gone from the delta."""
        named = is_in(self.document_ids, document_ids)
        base = len(self.alive)
        kept = np.concatenate([np.ones(base, bool), ~named[base:]])
        removed = int((named[:base] & self.alive).sum() + named[base:].sum())
        catalogue = replace(
            self,
            document_ids=self.document_ids[kept],
            alive=self.alive & ~named[:base],
            delta=self.delta[kept[base:]],
            filters={name: values[kept] for name, values in self.filters.items()},
        )
        return catalogue, removed

    def add(self, document_ids: np.ndarray, embeddings: np.ndarray, filters: Mapping[str, np.ndarray]) -> "Catalogue":
        """With some documents in the delta that are not in it: their ids, unit vectors and values by filter."""
        return replace(
            self,
            document_ids=np.concatenate([self.document_ids, document_ids]),
            delta=np.concatenate([self.delta, embeddings]),
            filters={name: np.concatenate([values, filters[name]]) for name, values in self.filters.items()},
        )


def new_catalogue(document_ids: np.ndarray, filters: Mapping[str, np.ndarray], dimension: int) -> Catalogue:
    """All documents in the index, none in the delta."""
    return Catalogue(document_ids, np.ones(len(document_ids), bool), np.empty((0, dimension), np.float32), filters)


def is_in(values: np.ndarray, wanted: Collection[bytes] | np.ndarray) -> np.ndarray:
    """Which of some byte strings `[N]` are among the wanted ones, booleans `[N]`."""
    among = pa.array(list(wanted), pa.binary())
    return pc.is_in(pa.array(values, pa.binary()), value_set=among).to_numpy(zero_copy_only=False)
