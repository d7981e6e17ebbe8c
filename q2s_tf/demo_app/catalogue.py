"""The documents that the page shows, looked up by id."""

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from q2s_tf.config import IMAGES
from q2s_tf.errors import InputError
from q2s_tf.tables import open_documents

PICTURE_TYPES = frozenset((".avif", ".gif", ".jpeg", ".jpg", ".png", ".webp"))
"""Only these files are sent: a listing's picture may name any path."""
EXAMPLES = 5
EXAMPLE_CHARACTERS = 8
"""The least length of a title that makes an example."""


class Catalogue:
    """A documents table in memory.

    Args:
        path: the documents, Parquet or TSV.
        inputs: columns that the document tower reads.
        vectors: those of them that hold vectors.
        pictures: the column with the path (from the folder of the documents file) or http(s) address of a picture.

    Raises:
        InputError: the documents cannot be read, or have no such picture column.
    """

    def __init__(
        self, path: Path, inputs: Sequence[str] = (), vectors: Collection[str] = (IMAGES,), pictures: str | None = None
    ):
        self.table = open_documents(path, [*inputs, *([pictures] if pictures else [])], vectors)
        if pictures and pictures not in self.table.columns:
            raise InputError(f"documents {path}: has no column {pictures} to take pictures from")
        self._pictures = pictures
        self._folder = (path if path.is_dir() else path.parent).resolve()
        self._rows = self.table.read().combine_chunks()
        self._ids = self._rows["document_id"].to_pylist()
        self._places = {document_id: place for place, document_id in enumerate(self._ids)}

    def __len__(self) -> int:
        return len(self._ids)

    def document_id(self, place: int) -> str:
        """The id of the document in a row of the table."""
        return self._ids[place]

    def look_up(self, document_ids: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of these documents, in their order; one that the table lacks has its id alone."""
        places = {name: self._places[name] for name in document_ids if name in self._places}
        rows = dict(zip(places, self._take(places.values()), strict=True))
        return [rows.get(name, {"document_id": name}) for name in document_ids]

    def picture(self, row: dict[str, Any]) -> Path | str | None:
        """The picture of a row: an http(s) address, a file beneath the documents' folder, or None."""
        named = row.get(self._pictures) if self._pictures else None
        if not named or "\0" in named:
            return None
        if named.startswith(("https://", "http://")):
            return named
        path = (self._folder / named).resolve()
        if path.suffix.lower() not in PICTURE_TYPES or not path.is_relative_to(self._folder):
            return None
        return path if os.path.isfile(path) else None  # unlike Path.is_file, False for a name that is too long

    def countries(self) -> list[str]:
        """The countries of the documents, the most frequent first."""
        return self._frequent("country")

    def examples(self) -> list[dict[str, Any]]:
        """A short title in each of the most frequent languages, to begin with: rows of the table."""
        languages = self._frequent("language")[:EXAMPLES]
        shortest: dict[str, tuple[int, int]] = {}
        columns = zip(self._rows["language"].to_pylist(), self._rows["title"].to_pylist(), strict=True)
        for place, (language, title) in enumerate(columns):
            length = len(title or "")
            if length >= EXAMPLE_CHARACTERS and (length, place) < shortest.get(language, (length + 1, 0)):
                shortest[language] = (length, place)
        return self._take(shortest[name][1] for name in languages if name in shortest)

    def _take(self, places: Iterable[int]) -> list[dict[str, Any]]:
        return self._rows.take(pa.array(list(places), pa.int64())).to_pylist()

    def _frequent(self, column: str) -> list[str]:
        counts = [entry for entry in self._rows[column].value_counts().to_pylist() if entry["values"]]
        return [entry["values"] for entry in sorted(counts, key=lambda entry: (-entry["counts"], entry["values"]))]
