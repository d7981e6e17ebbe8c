"""A live catalogue: a new version of the retriever with what changed, without building its index again."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from q2s_tf.cli import console
from q2s_tf.errors import InputError
from q2s_tf.index import Catalogue, Index, build_index, restore_index, stored_embeddings
from q2s_tf.index.catalogue import is_in, new_catalogue
from q2s_tf.models import Towers, embed_catalogue, load
from q2s_tf.models.embedding import unique_ids
from q2s_tf.serving.export import (
    describe,
    describe_catalogue,
    hash_towers,
    open_filtered,
    read_filters,
    to_bytes,
    write_servable,
)
from q2s_tf.serving.folders import MANIFEST_FILE, versions_in
from q2s_tf.serving.retriever import RetrieverServable
from q2s_tf.serving.versions import new_version
from q2s_tf.tables import Table

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
COMPACT_ABOVE = 0.1
"""The share of documents in the delta, or of tombstones in the index, from which on `--compact` is advised."""


class Update(NamedTuple):
    """What an update did: its version; documents upserted, deleted, unknown though to be deleted, and now there."""

    version: int
    upserted: int
    deleted: int
    unknown: int
    documents: int


class State(NamedTuple):
    """A published retriever: its manifest, its index's tensors by path, and its catalogue."""

    manifest: dict[str, Any]
    tensors: dict[str, np.ndarray]
    catalogue: Catalogue


class Changes(NamedTuple):
    """What is to change: ids and vectors and filter values of documents to come, ids of documents to go."""

    upsert_ids: np.ndarray
    embeddings: np.ndarray
    filters: dict[str, np.ndarray]
    delete_ids: np.ndarray


def update_index(
    run: Path, models: Path, upsert: Path | None = None, delete: Path | None = None, compact: bool = False
) -> Update:
    """Publishes a new version of the retriever with documents added, replaced and deleted.

    The newest version's index stays as it is. New and changed documents are embedded and go into a delta, which is
    scanned exactly beside it; deleted and replaced ones leave tombstones, which no answer holds. Updates accumulate.

    Args:
        run: the run that the newest retriever was exported from.
        models: the folder of the servables.
        upsert: a documents table, with the columns that the retriever filters by.
        delete: a table with `document_id`, or a `.txt` file with one id a line.
        compact: build the index again from the stored vectors, with the delta in it and no tombstones.

    Returns:
        What was done.

    Raises:
        InputError: nothing to do, no retriever to start from, one of another run, an id in both tables or twice in
            one, no document left. Nothing is published then.
    """
    if upsert is None and delete is None and not compact:
        raise InputError("nothing to do: give --upsert, --delete or --compact")
    if not versions_in(models / "retriever"):
        raise InputError(f"models folder {models} holds no version of the retriever; export one with tools/export.py")
    towers = load(run)
    with new_version(models, ("retriever",)) as (version, folders):
        state = _read_state(models, run, towers)
        changes = _read_changes(towers, upsert, delete, list(state.manifest["filters"]))
        catalogue, deleted = state.catalogue.remove(changes.delete_ids)
        catalogue, _ = catalogue.remove(changes.upsert_ids)
        catalogue = catalogue.add(changes.upsert_ids, changes.embeddings, changes.filters)
        if not catalogue.live:
            raise InputError(f"delete {delete}: no document would be left; keep one, or export another catalogue")
        if compact:
            index, catalogue = _compact(state, catalogue, towers.config.seed)
        else:
            index = restore_index(state.manifest["index"], state.tensors)
        manifest = describe("retriever", version, run, towers) | describe_catalogue(catalogue, index.parameters)
        write_servable("retriever", RetrieverServable(towers.query, index, catalogue), folders["retriever"], manifest)
    advise(manifest)
    unknown = len(changes.delete_ids) - deleted
    return Update(version, len(changes.upsert_ids), deleted, unknown, catalogue.live)


def _read_state(models: Path, run: Path, towers: Towers) -> State:
    """The newest retriever; `InputError` if it is of other towers, or cannot be read."""
    version, folder = max(versions_in(models / "retriever").items())
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        there = {name: manifest[name] for name in ("tokenizer_sha256", "weights_sha256")}
        reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
        names = [name.removesuffix(VALUE) for name in reader.get_variable_to_shape_map() if name.endswith(VALUE)]
        if there != hash_towers(towers):
            raise InputError(
                f"run {run}: retriever {version} was exported from other weights (run {manifest['run']}); give that "
                "run, or export this one with tools/export.py"
            )
        wanted = [name for name in names if name.split("/")[0] in ("index", "document_ids", "alive", "delta", "labels")]
        tensors = {name: reader.get_tensor(name + VALUE) for name in wanted}
        return State(manifest, _below(tensors, "index/"), _restore_catalogue(manifest, tensors))
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error).splitlines() or ["?"])[0]
        raise InputError(f"retriever {folder}: cannot be read ({reason}); export again with tools/export.py") from error


def _restore_catalogue(manifest: dict[str, Any], tensors: dict[str, np.ndarray]) -> Catalogue:
    base, rows = manifest["indexed"], manifest["indexed"] + manifest["delta"]
    filters = {}
    for place, name in enumerate(manifest["filters"]):
        values = np.append(tensors[f"labels/values/{place}"], b"")  # the last is for rows without one, whose code is −1
        filters[name] = values[tensors[f"labels/codes/{place}"]]
    delta = tensors.get("delta", np.empty((0, manifest["dimension"]), np.float32))
    alive = tensors["alive"][:base] if "alive" in tensors else np.ones(base, bool)
    return Catalogue(tensors["document_ids"][:rows], alive, delta, filters)


def _below(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _read_changes(towers: Towers, upsert: Path | None, delete: Path | None, filters: list[str]) -> Changes:
    """What is to change, embedded; `InputError` if an id is to come and to go."""
    delete_ids = _read_deleted(delete) if delete else np.empty(0, object)
    upsert_ids, embeddings = np.empty(0, object), np.empty((0, towers.document.dimension), np.float32)
    values = {name: np.empty(0, object) for name in filters}
    if upsert:
        table = open_filtered(upsert, towers, filters)
        ids, embeddings = embed_catalogue(towers.document, table)
        upsert_ids, values = to_bytes(ids), read_filters(table, filters)
    both = delete_ids[is_in(delete_ids, upsert_ids)]
    if len(both):
        raise InputError(f"document {both[0].decode()!r} is in --upsert and in --delete; leave it in one of them")
    return Changes(upsert_ids, embeddings, values, delete_ids)


def _read_deleted(path: Path) -> np.ndarray:
    """The ids of a table with `document_id`, or the lines of a `.txt` file."""
    if path.suffix.lower() != ".txt":
        table = Table(path, "delete", ["document_id"])
        return to_bytes(unique_ids([batch.column("document_id") for batch in table.batches()], table))
    if not path.exists():
        raise InputError(f"delete {path}: there is no such file")
    ids = [line.strip() for line in path.read_bytes().splitlines() if line.strip()]
    if len(set(ids)) < len(ids):
        twice = next(each for each in ids if ids.count(each) > 1)
        raise InputError(f"delete {path}: a document_id may occur once; {twice.decode(errors='replace')!r} occurs more")
    return np.array(ids, object)


def _compact(state: State, catalogue: Catalogue, seed: int) -> tuple[Index, Catalogue]:
    """A new index of the same kind over all live documents."""
    parameters = state.manifest["index"]
    embeddings = stored_embeddings(parameters, state.tensors)
    embeddings = np.concatenate([embeddings[catalogue.alive], catalogue.delta])
    kept = np.concatenate([catalogue.alive, np.ones(len(catalogue.delta), bool)])
    recall, storage = parameters.get("target_recall", 1.0), parameters.get("storage", "float32")
    console.print(f"building the {parameters['kind']} index of {len(embeddings):,} documents")
    index, order = build_index(parameters["kind"], embeddings, seed, recall, storage)
    ids = catalogue.document_ids[kept][order]
    filters = {name: values[kept][order] for name, values in catalogue.filters.items()}
    return index, new_catalogue(ids, filters, embeddings.shape[1])


def advise(manifest: dict[str, Any]) -> None:
    """Says so when delta and tombstones have become many: they cost every query time."""
    for what, count in (("in the delta", manifest["delta"]), ("deleted from the index", manifest["deleted"])):
        share = count / manifest["indexed"]
        if share > COMPACT_ABOVE:
            console.print(f"{count:,} documents are {what}, {share:.0%} of it: run tools/update_index.py --compact")
