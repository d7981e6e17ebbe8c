"""Export: a run and a catalogue become a new version of the three servables."""

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
from q2s_tf.index import DEFAULT_RECALL, Catalogue, build_index
from q2s_tf.index.catalogue import new_catalogue
from q2s_tf.models import Tower, Towers, embed_catalogue, load
from q2s_tf.serving.folders import MANIFEST_FILE
from q2s_tf.serving.retriever import RetrieverServable
from q2s_tf.serving.signatures import TowerServable
from q2s_tf.serving.versions import new_version
from q2s_tf.serving.warmup import write_warmup
from q2s_tf.tables import Table, open_documents
from q2s_tf.text import normalise

SAMPLE_QUERIES = 1_000
"""Of the queries given, this many different ones are embedded at most."""


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
    """Exports a run's towers, and an index of a catalogue's embeddings, as one new version of all three servables.

    Args:
        run: a trained run directory.
        documents: the catalogue to be searched.
        models: the folder of the servables; the version is one more than the highest in it.
        index: `exact`, `partitioned` or `scann`; `build_index` chooses when None.
        recall: of the exact top 100, which the default effort is chosen for.
        storage: of the rows of partitions: `float32`, `bfloat16` or `int8`.
        filters: text columns of the documents that requests can filter by.
        queries: a table with `query` and, if there is one, `country`, to choose the effort on: judgements, for example.

    Returns:
        The version.

    Raises:
        InputError: not a trained run, a catalogue that breaks its contract, an index that cannot be built. Nothing is
            published then.
    """
    if models.exists() and not models.is_dir():
        raise InputError(f"--out {models}: must be a folder; it is a file")
    open_documents(documents)
    sample = None if queries is None else Table(queries, "queries", ["query"], ["country"])
    towers = load(run)
    table = open_filtered(documents, towers, filters)
    ids, embeddings = embed_catalogue(towers.document, table)
    values = read_filters(table, filters)
    vectors = None if sample is None else _embed_queries(towers.query, sample)
    console.print(f"building the {index or 'default'} index of {len(ids):,} documents")
    built, order = build_index(index, embeddings, towers.config.seed, recall, storage, vectors)
    rows = {name: column[order] for name, column in values.items()}
    catalogue = new_catalogue(to_bytes(ids)[order], rows, embeddings.shape[1])
    servables: dict[str, Any] = {
        "query_tower": TowerServable(towers.query),
        "document_tower": TowerServable(towers.document),
        "retriever": RetrieverServable(towers.query, built, catalogue),
    }
    with new_version(models) as (version, folders):
        for name, servable in servables.items():
            manifest = describe(name, version, run, towers)
            if name == "retriever":
                manifest |= describe_catalogue(catalogue, built.parameters)
            write_servable(name, servable, folders[name], manifest)
    return version


def write_servable(name: str, servable: Any, folder: Path, manifest: dict[str, Any]) -> None:
    """Writes a servable's saved model, its warm-up file and its manifest into a version's folder."""
    options = tf.saved_model.SaveOptions(namespace_whitelist=["TFText", "Scann"])
    with console.status(f"saving {name}"):
        tf.saved_model.save(servable, str(folder), signatures=servable.endpoints, options=options)
    write_warmup(name, folder, servable.endpoints)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def describe(name: str, version: int, run: Path, towers: Towers) -> dict[str, Any]:
    """What a version is, for people and for tools that read it beside the model: its manifest.

    Servables with the same `weights_sha256` belong together, whatever their versions.
    """
    tower = towers.document if name == "document_tower" else towers.query
    return {
        "servable": name,
        "version": version,
        "format": FORMAT,
        "run": run.resolve().name,
        "channels": tower.channels,
        "dimension": tower.dimension,
        **hash_towers(towers),
    }


def describe_catalogue(catalogue: Catalogue, index: dict[str, Any]) -> dict[str, Any]:
    """What a retriever's manifest says of its documents and its index."""
    base = len(catalogue.alive)
    return {
        "documents": catalogue.live,
        "indexed": base,
        "delta": len(catalogue.delta),
        "deleted": base - int(catalogue.alive.sum()),
        "filters": list(catalogue.filters),
        "index": dict(index),
    }


def hash_towers(towers: Towers) -> dict[str, str]:
    """Hashes that tell one trained pair of towers from another: of the tokenizers, and of all weights in order."""
    weights = hashlib.sha256()
    for tower in (towers.query, towers.document):
        for variable in tower.encoder.variables:
            weights.update(variable.numpy().tobytes())
    preprocessor = towers.query.preprocessor  # holds the tokenizers of both towers
    tokenizer = hashlib.sha256(preprocessor.tokenizer.model)
    for name in sorted(preprocessor.pretrained):
        tokenizer.update(preprocessor.pretrained[name].model)
    return {"tokenizer_sha256": tokenizer.hexdigest(), "weights_sha256": weights.hexdigest()}


def open_filtered(path: Path, towers: Towers, filters: Sequence[str]) -> Table:
    """A documents table with what the document tower reads, and the columns to filter by.

    Raises:
        InputError: a filter column that is not there, is named twice or holds vectors, and as `open_documents`.
    """
    vectors = towers.config.vector_inputs()
    twice = [name for name in filters if list(filters).count(name) > 1]
    if twice:
        raise InputError(f"filter {twice[0]}: is named twice; leave one out")
    unfit = [name for name in filters if name in vectors or not name.isidentifier()]
    if unfit:
        raise InputError(f"filter {unfit[0]}: must be a text column named by letters, digits and _; name another one")
    table = open_documents(path, [*towers.document.preprocessor.inputs, *filters], vectors)
    absent = [name for name in filters if name in table.missing]
    if absent:
        found = ", ".join(table.columns)
        raise InputError(f"documents {path}: has no column {absent[0]} to filter by; of its columns are known {found}")
    return table


def read_filters(table: Table, filters: Sequence[str]) -> dict[str, np.ndarray]:
    """By filter the normalised value of each row of a documents table, bytes `[N]`; b"" where there is none."""
    if not filters:
        return {}
    parts: dict[str, list[pa.Array]] = {name: [] for name in filters}
    for batch in table.batches():
        for name, columns in parts.items():
            columns.append(batch.column(name))
    values = {}
    for name, columns in parts.items():
        encoded = pa.chunked_array(columns).combine_chunks().fill_null("").dictionary_encode()
        words = encoded.dictionary.to_pylist()
        values[name] = normalise(tf.constant(words, tf.string, [len(words)])).numpy()[encoded.indices.to_numpy()]
    return values


def to_bytes(texts: pa.Array) -> np.ndarray:
    """Texts as an array of bytes objects `[N]`."""
    return np.array(texts.cast(pa.binary()).to_pylist(), object)


def _embed_queries(tower: Tower, table: Table) -> np.ndarray:
    """Unit vectors of different queries `[Q, D]`, in the order of the table."""
    rows = table.read().group_by(["query", "country"], use_threads=False).aggregate([]).slice(0, SAMPLE_QUERIES)
    inputs = {name: rows.column(name).to_pylist() for name in ("query", "country")}
    vectors = tower.predict(inputs)["embedding"]
    vectors = vectors[np.any(vectors != 0, axis=1)]
    if not len(vectors):
        raise InputError(f"queries {table.path}: none of them has a text; give a table with queries, or none")
    return vectors
