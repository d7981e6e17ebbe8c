"""Export of a run and a catalogue as a new version of the three servables."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from q2s_tf.cli import console
from q2s_tf.config import FORMAT
from q2s_tf.errors import InputError
from q2s_tf.index import DEFAULT_RECALL, Index, IndexedDocuments, build_index
from q2s_tf.models import Tower, Towers, embed_catalogue, encode, load
from q2s_tf.serving.folders import MANIFEST_FILE
from q2s_tf.serving.retriever import RetrieverServable
from q2s_tf.serving.tower_servable import TowerServable, declare_optional
from q2s_tf.serving.versions import new_version
from q2s_tf.serving.warmup import write_warmup
from q2s_tf.tables import Table, open_documents
from q2s_tf.text import normalise

MAX_SAMPLE_QUERIES = 1_000
"""Different queries of the table that are embedded, at most."""


def export(
    run: Path,
    documents: Path,
    models: Path,
    index: str | None = None,
    recall: float = DEFAULT_RECALL,
    storage: str = "float32",
    filters: Sequence[str] = (),
    queries: Path | None = None,
) -> int:
    """Export the towers of a run, and an index of a catalogue, as one new version of all three servables.

    Args:
        run: A trained run directory.
        documents: The catalogue to search.
        models: Folder of the servables. The version is one more than the highest version in it.
        index: `exact`, `partitioned` or `scann`; None for the default of `build_index`.
        recall: Share of the exact top 100 that the default effort must return.
        storage: dtype of the rows of a partitioned index: `float32`, `bfloat16` or `int8`.
        filters: Text columns of the documents that requests can filter by.
        queries: A table with `query` and optionally `country`, for example judgements, to measure the recall on.

    Returns:
        The version.

    Raises:
        InputError: `run` is not a trained run, the catalogue violates its contract, or the index cannot be built.
            Nothing is published then.
    """
    if models.exists() and not models.is_dir():
        raise InputError(f"--out {models}: must be a folder; it is a file")
    open_documents(documents)
    query_table = None if queries is None else Table(queries, "queries", ["query"], ["country"])
    towers = load(run)
    ids, embeddings, values = read_documents(documents, towers, filters)
    sample = None if query_table is None else _embed_queries(towers.query, query_table)
    console.print(f"building the {index or 'default'} index of {len(ids):,} documents")
    built, order = build_index(index, embeddings, towers.config.seed, recall, storage, sample)
    indexed = IndexedDocuments.in_order(ids, values, order, embeddings.shape[1])
    with new_version(models) as (version, folders):
        for tower, name in ((towers.query, "query_tower"), (towers.document, "document_tower")):
            write_servable(TowerServable(tower), folders[name], describe(name, version, run, towers))
        manifest = describe("retriever", version, run, towers, (built, indexed))
        write_servable(RetrieverServable(towers.query, built, indexed), folders["retriever"], manifest)
    return version


def write_servable(servable: Any, folder: Path, manifest: dict[str, Any]) -> None:
    """Write the saved model, the warm-up file and the manifest of a servable into a version's folder."""
    options = tf.saved_model.SaveOptions(namespace_whitelist=["TFText", "Scann"])
    endpoints = servable.endpoints
    with console.status(f"saving {manifest['servable']}"):
        tf.saved_model.save(servable, str(folder), signatures=endpoints, options=options)
    declare_optional(folder, servable.unread)
    write_warmup(manifest["servable"], folder, endpoints)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def describe(
    name: str, version: int, run: Path, towers: Towers, retriever: tuple[Index, IndexedDocuments] | None = None
) -> dict[str, Any]:
    """Make the manifest of a servable's version, that of a retriever with facts about its index and its documents.

    Servables with the same `weights_sha256` belong together, whatever their versions are.
    """
    tower = towers.document if name == "document_tower" else towers.query
    manifest = {
        "servable": name,
        "version": version,
        "format": FORMAT,
        "run": run.resolve().name,
        "channels": tower.channel_names,
        "dimension": tower.config.dimension,
        **hash_towers(towers),
    }
    if retriever is not None:
        index, documents = retriever
        manifest |= {
            "documents": int(documents.live_rows.sum()),
            "indexed": len(documents.alive),
            "delta": len(documents.delta),
            "deleted": int((~documents.alive).sum()),
            "filters": list(documents.filters),
            "index": dict(index.parameters),
        }
    return manifest


def hash_towers(towers: Towers) -> dict[str, str]:
    """Hash the tokenizers, and all weights in order, to tell one trained pair of towers from another."""
    weights = hashlib.sha256()
    for tower in (towers.query, towers.document):
        for variable in tower.weights:
            weights.update(variable.numpy().tobytes())
    layers = [layer for tower in (towers.query, towers.document) for layer in tower.token_layers.values()]
    tokenizer = hashlib.sha256()
    for model in dict.fromkeys(layer.tokenizer.model for layer in layers if layer.tokenizer):  # once if it is shared
        tokenizer.update(model)
    return {"tokenizer_sha256": tokenizer.hexdigest(), "weights_sha256": weights.hexdigest()}


def read_documents(
    path: Path, towers: Towers, filters: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Read and embed a documents table.

    Returns:
        Ids, bytes `[N]`; embeddings `[N, D]`; and the normalised value of each row by filter column, bytes `[N]` with
        b"" where there is none.

    Raises:
        InputError: The table violates its contract, or a filter column is absent, is named twice or holds vectors.
    """
    vectors = towers.config.vector_inputs()
    for name in filters:
        if list(filters).count(name) > 1:
            raise InputError(f"filter {name}: is named twice; leave one out")
        if name in vectors or not name.isidentifier():
            raise InputError(f"filter {name}: must be a text column named by letters, digits and _; name another one")
    table = open_documents(path, [*towers.document.input, *filters], vectors)
    absent = [name for name in filters if name in table.missing]
    if absent:
        known = ", ".join(table.columns)
        raise InputError(f"documents {path}: has no column {absent[0]} to filter by; known columns of it are {known}")
    ids, embeddings = embed_catalogue(towers.document, table)
    values = {}
    if filters:
        columns = pa.Table.from_batches([batch.select(list(filters)) for batch in table.batches()])
        for name in filters:
            encoded = columns[name].combine_chunks().fill_null("").dictionary_encode()
            texts = encoded.dictionary.to_pylist()
            values[name] = normalise(tf.constant(texts, tf.string, [len(texts)])).numpy()[encoded.indices.to_numpy()]
    return to_bytes(ids), embeddings, values


def to_bytes(texts: pa.Array) -> np.ndarray:
    """Convert texts to an array of bytes objects `[N]`."""
    return np.array(texts.cast(pa.binary()).to_pylist(), object)


def _embed_queries(tower: Tower, table: Table) -> np.ndarray:
    """Unit vectors `[Q, D]` of the different queries of a table, in its order."""
    rows = table.read().group_by(["query", "country"], use_threads=False).aggregate([]).slice(0, MAX_SAMPLE_QUERIES)
    vectors = encode(tower, rows)["embedding"]
    vectors = vectors[np.any(vectors != 0, axis=1)]
    if not len(vectors):
        raise InputError(f"queries {table.path}: no query has a text; give a table with queries, or none")
    return vectors
