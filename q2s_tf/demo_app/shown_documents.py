"""The documents that the demo page shows, looked up by id."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.errors import InputError
from q2s_tf.tables import Table

PICTURE_TYPES = frozenset((".avif", ".gif", ".jpeg", ".jpg", ".png", ".webp"))
"""The only types of files that are sent: the picture of a listing may name any path."""
EXAMPLES = 5
EXAMPLE_CHARACTERS = 8
"""Shortest title of an example."""


class ShownDocuments:
    """A documents table in memory.

    Args:
        path: the documents, Parquet or TSV.
        pictures: the column with the path (relative to the folder of the documents) or http(s) address of a picture.

    Raises:
        InputError: the documents cannot be read, or have no such picture column.
    """

    def __init__(self, path: Path, pictures: str | None = None):
        optional = dict.fromkeys(("description", "language", "country", *([pictures] if pictures else [])))
        self.table = Table(path, "documents", ["document_id", "title"], [*optional], vectors=())
        if pictures and pictures not in self.table.columns:
            raise InputError(f"documents {path}: has no column {pictures} to take pictures from")
        self._pictures = pictures
        self._folder = (path if path.is_dir() else path.parent).resolve()
        self._rows = self.table.read().combine_chunks()
        self.ids: list[str] = self._rows["document_id"].to_pylist()
        self._row_of = {document_id: row for row, document_id in enumerate(self.ids)}

    def look_up(self, document_ids: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of documents, in the given order; only the id for a document that is not in the table."""
        known = {name: self._row_of[name] for name in document_ids if name in self._row_of}
        rows = dict(zip(known, self._take(known.values()), strict=True))
        return [rows.get(name, {"document_id": name}) for name in document_ids]

    def row(self, document_id: str) -> int | None:
        """The row of a document; None if it is not in the table."""
        return self._row_of.get(document_id)

    def picture(self, row: dict[str, Any]) -> Path | str | None:
        """The picture of a row: an http(s) address, a file below the folder of the documents, or None."""
        name = row.get(self._pictures) if self._pictures else None
        if not name or "\0" in name:
            return None
        if name.startswith(("https://", "http://")):
            return name
        path = (self._folder / name).resolve()
        if path.suffix.lower() not in PICTURE_TYPES or not path.is_relative_to(self._folder):
            return None
        return path if os.path.isfile(path) else None  # unlike Path.is_file, False for a name that is too long

    def values(self, column: str) -> list[str]:
        """The values of a text column, most frequent first."""
        counts = [entry for entry in self._rows[column].value_counts().to_pylist() if entry["values"]]
        return [entry["values"] for entry in sorted(counts, key=lambda entry: (-entry["counts"], entry["values"]))]

    def examples(self) -> list[dict[str, Any]]:
        """Rows with a short title: one in each of the most frequent languages, then any."""
        lengths = pc.utf8_length(pc.utf8_trim_whitespace(self._rows["title"])).to_numpy(zero_copy_only=False)
        shortest = [row for row in np.argsort(lengths, kind="stable") if lengths[row] >= EXAMPLE_CHARACTERS]
        languages = self._rows["language"].to_pylist()
        first = {languages[row]: row for row in reversed(shortest)}
        chosen = [first[language] for language in self.values("language") if language in first]
        return self._take(list(dict.fromkeys([*chosen, *shortest]))[:EXAMPLES])

    def _take(self, rows: Iterable[int]) -> list[dict[str, Any]]:
        return self._rows.take(pa.array(list(rows), pa.int64())).to_pylist()
