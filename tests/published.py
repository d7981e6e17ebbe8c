"""Folders of embeddings by the contract of `q2s_tf.embedding.shards`, and catalogues of words to search in Milvus."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from q2s_tf.embedding.shards import MANIFEST, shard_file


def write_embeddings(
    folder: Path,
    ids: Sequence[str],
    embeddings: np.ndarray,
    columns: Mapping[str, Sequence[str | None]],
    hashes: Mapping[str, str] | None = None,
    shard_rows: int = 1_000,
) -> Path:
    """Writes the shards and the manifest of the embeddings `[N, D]` of documents; returns the folder."""
    folder.mkdir(parents=True)
    flat = pa.array(np.ascontiguousarray(embeddings, np.float32).ravel())
    vectors = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    texts = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    table = pa.table({"document_id": pa.array(ids, pa.string()), "embedding": vectors, **texts})
    shards = range(0, len(table), shard_rows)
    for number, start in enumerate(shards):
        pq.write_table(table.slice(start, shard_rows), folder / shard_file(number))
    manifest = {
        "run": "tiny",
        "tokenizer_sha256": "t",
        "weights_sha256": "w",
        **(hashes or {}),
        "dimension": embeddings.shape[1],
        "documents": len(table),
        "shards": len(shards),
        "shard_rows": shard_rows,
        "columns": list(columns),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def random_unit_vectors(count: int, dimension: int, seed: int) -> np.ndarray:
    """Unit vectors `[count, dimension]`, float32."""
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
