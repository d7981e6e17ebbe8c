"""The documents behind the rows of a retriever, and how they change while the index stays the same."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class IndexedDocuments:
    """The documents by row: first the rows of the index, then those of the delta, which is scanned beside it.

    The index itself does not change. A document that is deleted or replaced leaves a tombstone in it, and new documents
    go into the delta.

    Args:
        document_ids: Bytes `[N + n]` for N rows of the index and n of the delta.
        alive: Booleans `[N]`; False is a tombstone.
        delta: Unit vectors `[n, D]`.
        filters: The normalised value of each row by column, bytes `[N + n]`; b"" where there is none.
    """

    document_ids: np.ndarray
    alive: np.ndarray
    delta: np.ndarray
    filters: Mapping[str, np.ndarray]

    @classmethod
    def in_order(
        cls, document_ids: np.ndarray, filters: Mapping[str, np.ndarray], order: np.ndarray, dimension: int
    ) -> "IndexedDocuments":
        """Documents of a new index, without a delta; row i of the index is document `order[i]`."""
        values = {name: column[order] for name, column in filters.items()}
        return cls(document_ids[order], np.ones(len(order), bool), np.empty((0, dimension), np.float32), values)

    @property
    def live_rows(self) -> np.ndarray:
        """Booleans `[N + n]`: all rows but the tombstones."""
        return np.concatenate([self.alive, np.ones(len(self.delta), bool)])

    def remove(self, document_ids: np.ndarray) -> tuple["IndexedDocuments", int]:
        """Remove documents: leave tombstones in the index and drop them from the delta.

        Returns:
            The remaining documents, and how many were removed.
        """
        named = is_in(self.document_ids, document_ids)
        base = len(self.alive)
        kept = np.concatenate([np.ones(base, bool), ~named[base:]])
        remaining = replace(
            self,
            document_ids=self.document_ids[kept],
            alive=self.alive & ~named[:base],
            delta=self.delta[kept[base:]],
            filters={name: values[kept] for name, values in self.filters.items()},
        )
        return remaining, int((named & self.live_rows).sum())

    def add(
        self, document_ids: np.ndarray, embeddings: np.ndarray, filters: Mapping[str, np.ndarray]
    ) -> "IndexedDocuments":
        """Append documents that have no row yet to the delta."""
        return replace(
            self,
            document_ids=np.concatenate([self.document_ids, document_ids]),
            delta=np.concatenate([self.delta, embeddings]),
            filters={name: np.concatenate([values, filters[name]]) for name, values in self.filters.items()},
        )


def is_in(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which of some byte strings `[N]` are among the wanted ones, booleans `[N]`."""
    value_set = pa.array(wanted, pa.binary())
    return pc.is_in(pa.array(values, pa.binary()), value_set=value_set).to_numpy(zero_copy_only=False)
