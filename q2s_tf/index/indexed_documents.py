"""The documents behind the rows of a retriever, and how they change while the index stays the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.index.exact import Index
from q2s_tf.index.postings import Postings
from q2s_tf.index.word_counts import WordCounts


class DocumentRows(NamedTuple):
    """Facts about R documents that a retriever keeps beside their embeddings.

    `ids` are a large binary array `[R]`; bytes objects would take four times the memory. `filters` are the normalised
    values by filter column, bytes `[R]`; b"" where there is none. `groups` are int64 `[R]`: of the documents of a
    group, only the best is returned; None without groups.
    """

    ids: pa.LargeBinaryArray
    filters: Mapping[str, np.ndarray]
    groups: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "DocumentRows":
        """Select rows by their numbers or by booleans."""
        ids = self.ids.filter(pa.array(rows)) if rows.dtype == bool else self.ids.take(pa.array(rows))
        filters = {name: values[rows] for name, values in self.filters.items()}
        return DocumentRows(ids, filters, None if self.groups is None else self.groups[rows])

    def append(self, other: "DocumentRows") -> "DocumentRows":
        """Append rows with the same filter columns."""
        filters = {name: np.concatenate([values, other.filters[name]]) for name, values in self.filters.items()}
        groups = None if self.groups is None else np.concatenate([self.groups, other.groups])
        return DocumentRows(pa.concat_arrays([self.ids, other.ids]), filters, groups)


@dataclass(frozen=True)
class IndexedDocuments:
    """The documents by row: first the rows of the index, then those of the delta, which is scanned beside it.

    The index itself does not change. A document that is deleted or replaced leaves a tombstone in it, and new documents
    go into the delta.

    Args:
        rows: The documents `[N + n]`, for N rows of the index and n of the delta.
        alive: Booleans `[N]`; False is a tombstone.
        delta: Unit vectors `[n, D]`.
        postings: The posting lists of the documents that are alive; None without a lexical index.
    """

    rows: DocumentRows
    alive: np.ndarray
    delta: np.ndarray
    postings: Postings | None = None

    @classmethod
    def in_order(
        cls, rows: DocumentRows, order: np.ndarray, dimension: int, postings: Postings | None = None
    ) -> "IndexedDocuments":
        """Documents of a new index, without a delta; row i of the index is document `order[i]`."""
        postings = postings and postings.select(np.argsort(order))
        return cls(rows.take(order), np.ones(len(order), bool), np.empty((0, dimension), np.float32), postings)

    @property
    def live_rows(self) -> np.ndarray:
        """Booleans `[N + n]`: all rows but the tombstones."""
        return np.concatenate([self.alive, np.ones(len(self.delta), bool)])

    def remove(self, ids: pa.LargeBinaryArray) -> tuple["IndexedDocuments", np.ndarray]:
        """Remove documents: leave tombstones in the index and drop them from the delta.

        Returns:
            The remaining documents, and which of the ids had a document, booleans.
        """
        named = is_in(self.rows.ids, ids)
        base = len(self.alive)
        kept = np.concatenate([np.ones(base, bool), ~named[base:]])
        new_rows = np.where(named | ~self.live_rows, -1, np.cumsum(kept) - 1)
        remaining = IndexedDocuments(
            self.rows.take(kept),
            self.alive & ~named[:base],
            self.delta[kept[base:]],
            self.postings and self.postings.select(new_rows),
        )
        return remaining, is_in(ids, self.rows.ids.filter(pa.array(self.live_rows)))

    def add(self, rows: DocumentRows, embeddings: np.ndarray, words: WordCounts | None) -> "IndexedDocuments":
        """Append documents that have no row yet to the delta; with their words if there is a lexical index."""
        postings = self.postings and words and self.postings.extend(words, len(self.rows.ids))
        return IndexedDocuments(self.rows.append(rows), self.alive, np.concatenate([self.delta, embeddings]), postings)

    def compact(self) -> "tuple[DocumentRows, Postings | None]":
        """The rows and the posting lists of the documents that are left, without tombstones."""
        live = self.live_rows
        new_rows = np.where(live, np.cumsum(live) - 1, -1)
        return self.rows.take(live), self.postings and self.postings.select(new_rows)


class LiveVectors:
    """The vectors of all documents that are left, float32 `[L, D]`, of which parts can be read as of an array.

    Vectors of the index have the precision of their storage.
    """

    def __init__(self, index: Index, documents: IndexedDocuments):
        self._index, self._delta, self._base = index, documents.delta, len(documents.alive)
        self._rows = np.flatnonzero(documents.live_rows)
        self.shape = (len(self._rows), documents.delta.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        chosen = self._rows[rows]
        in_index, in_delta = chosen[chosen < self._base], chosen[chosen >= self._base]
        return np.concatenate([self._index.stored_embeddings(in_index), self._delta[in_delta - self._base]])


def is_in(values: pa.LargeBinaryArray, wanted: pa.LargeBinaryArray) -> np.ndarray:
    """Which of some byte strings `[N]` are among the wanted ones, booleans `[N]`."""
    return pc.is_in(values, value_set=wanted).to_numpy(zero_copy_only=False)
