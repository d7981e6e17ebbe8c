"""Export of a run and a catalogue as a new version of the three servables."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from q2s_tf.cli import console
from q2s_tf.config import FORMAT
from q2s_tf.embedding.shards import EmbeddingShards
from q2s_tf.errors import InputError
from q2s_tf.extras import require
from q2s_tf.files import make_folder
from q2s_tf.index import DEFAULT_RECALL, Index, IndexedDocuments, build_index
from q2s_tf.index.postings import build_postings
from q2s_tf.models import Tower, Towers, encode, hash_towers, load
from q2s_tf.serving.document_rows import map_documents, read_documents
from q2s_tf.serving.folders import MANIFEST_FILE
from q2s_tf.serving.lexical_weight import DEFAULT_WEIGHT, choose_weight, default_columns
from q2s_tf.serving.retriever import MAX_LEXICAL_WEIGHT, RetrieverServable
from q2s_tf.serving.tower_servable import TowerServable, declare_optional
from q2s_tf.serving.versions import keep_newest, new_version
from q2s_tf.serving.warmup import write_warmup
from q2s_tf.tables import Table, open_documents

MAX_SAMPLE_QUERIES = 1_000
"""Different queries of the table that are embedded, at most."""


def export(
    run: str | PathLike[str],
    documents: str | PathLike[str] | None = None,
    out: str | PathLike[str] = "saved_models",
    index: str | None = None,
    recall: float = DEFAULT_RECALL,
    storage: str = "float32",
    filters: Sequence[str] = (),
    queries: str | PathLike[str] | None = None,
    collapse: str | None = None,
    lexical: Mapping[str, float] | None = None,
    lexical_weight: float | None = None,
    keep: int | None = None,
    embeddings: str | PathLike[str] | None = None,
) -> int:
    """Export the towers of a run, and an index of a catalogue, as one new version of all three servables.

    Args:
        run: A trained run directory.
        documents: The catalogue to search.
        out: Folder of the servables. The version is one more than the highest version in it.
        index: `exact`, `partitioned` or `scann`; None for the default of `build_index`.
        recall: Share of the exact top 100 that the default effort must return.
        storage: dtype of the rows of a partitioned index: `float32`, `bfloat16` or `int8`.
        filters: Text columns of the documents that requests can filter by.
        queries: A table with `query` and optionally `country`, to measure the recall on. Judgements or positives of a
            validation set choose `lexical_weight` too.
        collapse: A text column of the documents: of those with the same value, compared as filters are, only the best
            is returned. Documents without a value are never collapsed.
        lexical: Weights of text columns in the lexical index (BM25). None: those of `default_columns`; empty: no
            lexical index.
        lexical_weight: λ, the weight of BM25 in the score of requests that give none. None: chosen on judged `queries`.
        keep: Remove all but this many of the newest versions.
        embeddings: Instead of `documents`: a folder of `q2s_tf.embed` for the same run. Its vectors are read from
            a temporary file in `out`, so they need not fit into memory.

    Returns:
        The version.

    Raises:
        InputError: `run` is not a trained run, the catalogue violates its contract, the embeddings are incomplete or
            of another run, the index cannot be built, or `out` cannot be written. Nothing is published then.
    """
    run, models = Path(run), Path(out)
    if (documents is None) == (embeddings is None):
        raise InputError("give either documents, a catalogue, or embeddings, the folder that q2s embed made of it")
    shards = None if embeddings is None else EmbeddingShards(Path(embeddings))
    documents = Path(documents or embeddings or "")
    if index == "scann":
        require("scann")
    if models.exists() and not models.is_dir():
        raise InputError(f"--out {models}: must be a folder; it is a file")
    table = open_documents(documents)
    if lexical is None:
        lexical = default_columns(table)
    for name, weight in lexical.items():
        if not 0 < weight < float("inf"):
            raise InputError(f"lexical {name}={weight}: the weight must be a number above 0")
    if lexical_weight is not None and not 0 <= lexical_weight <= MAX_LEXICAL_WEIGHT:
        raise InputError(f"lexical_weight must be from 0 to {MAX_LEXICAL_WEIGHT:g}, got {lexical_weight}")
    query_table = None
    if queries is not None:
        query_table = Table(Path(queries), "queries", ["query"], ["country", "document_id", "relevance"])
    towers = load(run)
    if shards is None:
        _, rows, vectors, words = read_documents(documents, towers, filters, collapse, lexical or None)
    else:
        shards.check_run(hash_towers(towers))
        rows, vectors, words = map_documents(shards, make_folder(models), filters, collapse, lexical or None)
    if not len(vectors):
        raise InputError(f"documents {documents}: no document has an input of any channel of the run")
    postings = None if words is None else build_postings(words, lexical)
    if lexical_weight is None:
        lexical_weight = DEFAULT_WEIGHT if lexical else 0.0
        if query_table is not None and "document_id" in query_table.columns and postings is not None:
            lexical_weight, recalls = choose_weight(towers, query_table, rows.ids, vectors, postings)
            console.print(f"lexical weight {lexical_weight}; recall@10 by weight: {recalls}")
        elif lexical:
            console.print(f"lexical weight {lexical_weight}, the default; judged --queries choose it by recall@10")
    sample = None if query_table is None else _embed_queries(towers.query, query_table)
    console.print(f"building the {index or 'default'} index of {len(vectors):,} documents")
    pa.default_memory_pool().release_unused()  # Arrow keeps the memory that it freed
    built, order = build_index(index, vectors, towers.config.seed, recall, storage, sample)
    indexed = IndexedDocuments.in_order(rows, order, vectors.shape[1], postings)
    del rows, order, vectors, postings  # those in the order of the catalogue
    pa.default_memory_pool().release_unused()
    settings = {"collapse": collapse, "lexical_weight": lexical_weight}
    with new_version(models) as (version, folders):
        for tower, name in ((towers.query, "query_tower"), (towers.document, "document_tower")):
            write_servable(TowerServable(tower), folders[name], describe(name, version, run, towers))
        manifest = describe("retriever", version, run, towers, (built, indexed), settings)
        servable = RetrieverServable(towers.query, built, indexed, lexical_weight)
        write_servable(servable, folders["retriever"], manifest)
    if keep is not None:
        keep_newest(models, keep)
    return version


def write_servable(servable: Any, folder: Path, manifest: dict[str, Any]) -> None:
    """Write the saved model, the warm-up file and the manifest of a servable into a version's folder.

    Raises:
        OSError: The folder cannot be written, for example because the disk is full.
    """
    options = tf.saved_model.SaveOptions(namespace_whitelist=["TFText", "Scann"])
    endpoints = servable.endpoints
    try:
        with console.status(f"saving {manifest['servable']}"):
            tf.saved_model.save(servable, str(folder), signatures=endpoints, options=options)
        declare_optional(folder, servable.unread)
        write_warmup(manifest["servable"], folder, endpoints)
    except tf.errors.OpError as error:
        raise OSError((error.message.splitlines() or ["?"])[0]) from error
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def describe(
    name: str,
    version: int,
    run: Path,
    towers: Towers,
    retriever: tuple[Index, IndexedDocuments] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make the manifest of a servable's version, that of a retriever with its settings and facts about its documents.

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
            "filters": list(documents.rows.filters),
            "index": dict(index.parameters),
            "lexical": documents.postings and documents.postings.facts,
            **(settings or {}),
        }
    return manifest


def _embed_queries(tower: Tower, table: Table) -> np.ndarray:
    """Unit vectors `[Q, D]` of the different queries of a table, in its order."""
    rows = table.read().group_by(["query", "country"], use_threads=False).aggregate([]).slice(0, MAX_SAMPLE_QUERIES)
    vectors = encode(tower, rows)["embedding"]
    vectors = vectors[np.any(vectors != 0, axis=1)]
    if not len(vectors):
        raise InputError(f"queries {table.path}: no query has a text; give a table with queries, or none")
    return vectors
