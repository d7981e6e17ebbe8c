"""Export: a run and a catalogue become a new version of the three servables."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from q2s_tf.cli import console
from q2s_tf.config import FORMAT
from q2s_tf.errors import InputError
from q2s_tf.index import build_default, build_index
from q2s_tf.serving.folders import MANIFEST_FILE
from q2s_tf.serving.signatures import RetrieverServable, TowerServable
from q2s_tf.serving.versions import new_version
from q2s_tf.serving.warmup import write_warmup
from q2s_tf.tables import open_documents
from q2s_tf.towers import Towers, embed_catalogue, load


def export(run: Path, documents: Path, models: Path, index: str | None = None) -> int:
    """Exports a run's towers, and an index of a catalogue's embeddings, as one new version of all three servables.

    Args:
        run: a trained run directory.
        documents: the catalogue to be searched.
        models: the folder of the servables; the version is one more than the highest in it.
        index: `exact`, `partitioned` or `scann`; `build_default` chooses when None.

    Returns:
        The version.

    Raises:
        InputError: not a trained run, a catalogue that breaks its contract, an index that cannot be built. Nothing is
            published then.
    """
    if models.exists() and not models.is_dir():
        raise InputError(f"--out {models}: must be a folder; it is a file")
    table = open_documents(documents)
    towers = load(run)
    table = open_documents(documents, towers.document.preprocessor.inputs, towers.config.vector_inputs())
    ids, embeddings = embed_catalogue(towers.document, table)
    seed = towers.config.seed
    console.print(f"building the {index or 'default'} index of {len(ids):,} documents")
    with console.status("building the index"):
        built = build_index(index, embeddings, seed) if index else build_default(embeddings, seed)
    servables: dict[str, Any] = {
        "query_tower": TowerServable(towers.query),
        "document_tower": TowerServable(towers.document),
        "retriever": RetrieverServable(
            towers.query, built, np.array([text.encode() for text in ids.to_pylist()], object)
        ),
    }
    options = tf.saved_model.SaveOptions(namespace_whitelist=["TFText", "Scann"])
    with new_version(models) as (version, folders):
        for name, servable in servables.items():
            tf.saved_model.save(servable, str(folders[name]), signatures=servable.endpoints, options=options)
            write_warmup(name, folders[name], servable.endpoints)
            manifest = _manifest(name, version, run, towers, len(ids), built.parameters)
            (folders[name] / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return version


def _manifest(
    name: str, version: int, run: Path, towers: Towers, documents: int, index: dict[str, Any]
) -> dict[str, Any]:
    """What a version is: for people, and for tools that read it beside the model."""
    tower = towers.document if name == "document_tower" else towers.query
    manifest = {
        "servable": name,
        "version": version,
        "format": FORMAT,
        "run": run.resolve().name,
        "channels": tower.channels,
        "dimension": tower.dimension,
        "tokenizer_sha256": hashlib.sha256(tower.preprocessor.tokenizer.model).hexdigest(),
    }
    return {**manifest, "documents": documents, "index": index} if name == "retriever" else manifest
