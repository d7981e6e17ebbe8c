"""Search through an exported retriever, by the signature `by_embedding`, or through a collection of Milvus."""

import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from q2s_tf.cli import console, track
from q2s_tf.errors import InputError
from q2s_tf.models import Towers, hash_towers
from q2s_tf.serving.folders import MANIFEST_FILE, versions_in
from q2s_tf.serving.serving_error import ServingError

BATCH = 32


class MilvusAddress(NamedTuple):
    """A catalogue in Milvus: the arguments of `q2s_tf.milvus.engine_client.EngineClient`."""

    uri: str
    token: str = ""
    alias: str = "products"


class ExportedIndex(NamedTuple):
    """An index of the documents.

    Attributes:
        manifest: `version`, `index`, `lexical_weight`, and `lexical`, None or with the weights of its `columns`.
        search: From unit vectors `[Q, D]`, ids `[N]` of the catalogue and k to the rows of the first k documents, int
            `[Q, k]`, −1 where there is none or it is not in the catalogue.
    """

    manifest: dict[str, Any]
    search: Callable[[np.ndarray, pa.Array, int], np.ndarray]


def find_retriever(models: Path, towers: Towers) -> ExportedIndex:
    """The newest retriever that was exported from these towers.

    Raises:
        InputError: there is none.
    """
    hashes = hash_towers(towers)
    for _, folder in sorted(versions_in(models / "retriever").items(), reverse=True):
        if (folder / MANIFEST_FILE).is_file():
            manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
            if hashes.items() <= manifest.items():
                return ExportedIndex(manifest, partial(search_index, folder, manifest))
    raise InputError(
        f"--models {models}: must hold a retriever with the weights of the run; there is none: export the run with "
        "q2s export"
    )


def find_published(address: MilvusAddress, towers: Towers) -> ExportedIndex:
    """The collection of Milvus whose documents these towers embedded.

    Raises:
        InputError: nothing is published there, or another run is.
    """
    from q2s_tf.extras import require

    require("milvus")
    from q2s_tf.milvus.engine_client import EngineClient
    from q2s_tf.milvus.query_encoders import LocalQueryTower

    client = EngineClient(address.uri, LocalQueryTower(towers), address.alias, address.token)
    publication = client.publication()
    if publication.hashes != hash_towers(towers):
        raise InputError(
            f"collection {publication.name}: its documents were embedded with other weights (run "
            f"{publication.settings['run']}); evaluate that run, or publish the embeddings of this one"
        )
    lexical = publication.settings["lexical"]
    manifest = {
        "version": publication.version,
        "index": {"kind": "milvus", "collection": publication.name},
        "lexical_weight": publication.settings["lexical_weight"],
        "lexical": {"columns": lexical} if lexical else None,
    }

    def search(queries: np.ndarray, ids: pa.Array, k: int) -> np.ndarray:
        try:
            with client, console.status("searching Milvus"):
                found = client.by_embedding(queries, k)
        except ServingError as error:
            raise InputError(f"Milvus at {address.uri} refused: {error}") from error
        names = pa.array([name for of_query in found for name in of_query], pa.string())
        rows = pc.fill_null(pc.index_in(names, ids), -1).to_numpy()
        retrieved = np.full((len(queries), k), -1)
        for row, part in enumerate(np.split(rows, np.cumsum([len(of_query) for of_query in found])[:-1])):
            retrieved[row, : len(part)] = part
        return retrieved

    return ExportedIndex(manifest, search)


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
