"""The folder of the embeddings of a catalogue: Parquet shards of consecutive documents, and a manifest.

`DIR/_manifest.json` describes the run, the documents and the shards. `DIR/part-00000.parquet` and the following shards
have the columns `document_id`, `embedding` (float32 `[D]`, of unit length; zeros if the document has no input of any
channel) and text columns of the documents. The folder without `embedding` is a documents table.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from q2s_tf.cli import track
from q2s_tf.errors import InputError
from q2s_tf.table_files import readable

MANIFEST = "_manifest.json"
"""Name of the manifest. No table includes files whose names begin with `_`."""
ROWS = 8_192


def shard_file(number: int) -> str:
    """The file name of a shard."""
    return f"part-{number:05}.parquet"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder of embeddings; None if the folder has none.

    Raises:
        InputError: the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return {name: manifest[name] for name in ("documents", "shards", "dimension", "weights_sha256")} | manifest
    except (ValueError, LookupError, TypeError):
        raise InputError(f"embeddings {path}: is damaged: remove the folder and run q2s embed again") from None


class EmbeddingShards:
    """Reads a complete folder of embeddings.

    Args:
        path: the folder.

    Attributes:
        manifest: its manifest: `run`, `tokenizer_sha256`, `weights_sha256`, `dimension` D, `documents` N, `shards`,
            `shard_rows` and `columns`, the text columns.
        paths: the files of the shards.

    Raises:
        InputError: not a folder of embeddings, or shards of it are missing.
    """

    def __init__(self, path: Path):
        self.path = path
        manifest = read_manifest(path)
        if manifest is None:
            raise InputError(f"embeddings {path}: has no {MANIFEST}: give the --out of q2s embed")
        self.manifest: dict[str, Any] = manifest
        self.paths = [path / shard_file(number) for number in range(manifest["shards"])]
        absent = [file.name for file in self.paths if not file.is_file()]
        if absent:
            raise InputError(
                f"embeddings {path}: {len(absent)} of {len(self.paths)} shards are missing, for example {absent[0]}: "
                "run q2s embed with the same arguments again, which computes them"
            )

    def __len__(self) -> int:
        return self.manifest["documents"]

    @property
    def dimension(self) -> int:
        """D, the width of the embeddings."""
        return self.manifest["dimension"]

    def check_run(self, hashes: Mapping[str, str]) -> None:
        """Refuses embeddings of another run.

        Args:
            hashes: those of the towers that the embeddings will be compared with, of `hash_towers`.

        Raises:
            InputError: the embeddings are of other towers.
        """
        if not hashes.items() <= self.manifest.items():
            raise InputError(
                f"embeddings {self.path}: are of the run {self.manifest.get('run')!r} and its weights, not of this "
                "run: vectors of two models cannot be compared; embed the documents with this run"
            )

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raises `InputError` if the shards do not have these text columns."""
        if absent := [name for name in columns if name not in self.manifest["columns"]]:
            raise InputError(
                f"embeddings {self.path}: have no column {absent[0]} (columns: {', '.join(self.manifest['columns'])}): "
                f"embed the documents into another folder with --column {absent[0]}"
            )

    def batches(self, columns: Sequence[str] = (), rows: int = ROWS) -> Iterator[pa.RecordBatch]:
        """Record batches of at most `rows` rows, in the order of the catalogue.

        Args:
            columns: text columns to read beside `document_id` and `embedding`.
            rows: the largest number of rows of a batch.

        Raises:
            InputError: a column that the shards do not have, or a damaged shard.
        """
        self.check_columns(columns)
        for path in self.paths:
            with readable(f"embeddings {path}"):
                file = pq.ParquetFile(path)
                yield from file.iter_batches(rows, columns=["document_id", "embedding", *columns], use_threads=False)

    def map_vectors(self, file: Any) -> tuple[np.ndarray, np.ndarray]:
        """Copies the vectors into a flat file and maps it, so that they need not fit into memory.

        Args:
            file: a new binary file, open for reading and writing.

        Returns:
            Vectors `[R, D]` of the documents with an input of any channel, and which these are, booleans `[N]`.

        Raises:
            InputError: a damaged shard, or a vector that is not of unit length.
        """
        present = []
        for batch in track(self.batches(), "reading embeddings", -(-len(self) // ROWS)):
            vectors = vectors_of(batch)
            lengths = np.linalg.norm(vectors, axis=1)
            if len(wrong := np.flatnonzero((lengths != 0) & ~(np.abs(lengths - 1) < 1e-3))):
                document_id = batch.column("document_id")[wrong[0]].as_py()
                raise InputError(
                    f"embeddings {self.path}: document_id {document_id!r}: the embedding must have length 1; got "
                    f"{lengths[wrong[0]]:.4g}: run q2s embed again"
                )
            present.append(lengths != 0)
            file.write(vectors[present[-1]].tobytes())
        file.flush()
        rows = np.concatenate(present)
        shape = int(rows.sum()), self.dimension
        return np.memmap(file, np.float32, "r", shape=shape) if shape[0] else np.empty(shape, np.float32), rows


def vectors_of(batch: pa.RecordBatch) -> np.ndarray:
    """The column `embedding` of a batch, float32 `[rows, D]`."""
    column = batch.column("embedding")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(batch), column.type.list_size)
