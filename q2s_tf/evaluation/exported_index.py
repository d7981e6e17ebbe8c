"""Search through an exported retriever, by the signature `by_embedding` of its newest version."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from q2s_tf.cli import track
from q2s_tf.errors import InputError
from q2s_tf.models import Towers, hash_towers
from q2s_tf.serving.folders import MANIFEST_FILE, versions_in

BATCH = 32


def find_retriever(models: Path, towers: Towers) -> tuple[Path, dict[str, Any]]:
    """Folder and manifest of the newest retriever that was exported from these towers.

    Raises:
        InputError: there is none.
    """
    hashes = hash_towers(towers)
    for _, folder in sorted(versions_in(models / "retriever").items(), reverse=True):
        if (folder / MANIFEST_FILE).is_file():
            manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
            if hashes.items() <= manifest.items():
                return folder, manifest
    raise InputError(
        f"--models {models}: must hold a retriever with the weights of the run; there is none: export the run with "
        "q2s export"
    )


def search_index(version: Path, manifest: dict[str, Any], queries: np.ndarray, ids: pa.Array, k: int) -> np.ndarray:
    """The first k documents of each query by the exported index, at its default effort.

    Args:
        version: folder of the exported retriever.
        manifest: its manifest.
        queries: unit vectors `[Q, D]`.
        ids: document ids `[N]` of the catalogue.
        k: number of documents.

    Returns:
        Int `[Q, k]`: rows of the catalogue, −1 where there is no document or it is not in the catalogue.
    """
    if manifest["index"]["kind"] == "scann":
        importlib.import_module("scann")  # registers its ops
    loaded = tf.saved_model.load(str(version))
    parameters = {"k": tf.constant(k), "effort": tf.constant(0), "min_score": tf.constant(-1.0)}
    retrieved = np.full((len(queries), k), -1)
    for start in track(range(0, len(queries), BATCH), "searching the index", -(-len(queries) // BATCH)):
        inputs = {"embedding": tf.constant(queries[start : start + BATCH]), **parameters}
        any_value = tf.fill(tf.shape(inputs["embedding"])[:1], "")
        inputs |= {f"filter_{column}": any_value for column in manifest["filters"]}
        found = loaded.signatures["by_embedding"](**inputs)["document_id"].numpy()
        names = pa.array(found.ravel().tolist(), pa.binary()).cast(pa.string())
        rows = pc.fill_null(pc.index_in(names, ids), -1).to_numpy().reshape(found.shape)
        retrieved[start : start + BATCH, : found.shape[1]] = rows
    return retrieved
