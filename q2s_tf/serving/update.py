"""Updates of a live catalogue: a new version of the retriever with the changes, without a new index."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import tensorflow as tf

from q2s_tf.cli import console
from q2s_tf.errors import InputError
from q2s_tf.index import DocumentRows, Index, IndexedDocuments, LiveVectors, build_index, restore_index
from q2s_tf.index.indexed_documents import is_in
from q2s_tf.index.postings import Postings
from q2s_tf.models import Towers, hash_towers, load
from q2s_tf.serving.document_rows import read_documents, to_bytes
from q2s_tf.serving.export import describe, write_servable
from q2s_tf.serving.folders import MANIFEST_FILE, versions_in
from q2s_tf.serving.retriever import RetrieverServable
from q2s_tf.serving.versions import new_version
from q2s_tf.tables import open_documents, read_deletions

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
COMPACT_ABOVE = 0.1
"""Share of the index in the delta, or of tombstones in it, above which `--compact` is advised."""


class Update(NamedTuple):
    """The result of an update: its version, counts of changed documents, and the documents that it now holds.

    `unknown` are the ids to delete that the retriever did not hold.
    """

    version: int
    upserted: int
    deleted: int
    unknown: list[str]
    documents: int


def update_index(
    run: Path, models: Path, upsert: Path | None = None, delete: Path | None = None, compact: bool = False
) -> Update:
    """Publish a new version of the retriever with documents added, replaced and deleted.

    The index of the newest version does not change. New and changed documents are embedded and appended to a delta,
    which is scanned exactly. Deleted and replaced documents leave tombstones, which no result contains. Updates
    accumulate.

    Args:
        run: The run that the newest retriever was exported from.
        models: Folder of the servables.
        upsert: A documents table, with the columns that the retriever filters by.
        delete: A table with `document_id`, or a `.txt` file with one id a line.
        compact: Rebuild the index from the stored vectors, with the delta and without tombstones.

    Raises:
        InputError: There is nothing to do, no retriever to update, or it is of another run; an id is in both tables or
            twice in one; or no document would be left. Nothing is published then.
    """
    if upsert is None and delete is None and not compact:
        raise InputError("nothing to do: give --upsert, --delete or --compact")
    if not versions_in(models / "retriever"):
        raise InputError(f"models folder {models} holds no version of the retriever; export one with q2s export")
    towers = load(run)
    with new_version(models, ("retriever",)) as (version, folders):
        index, documents, settings = _read_retriever(models, run, towers)
        delete_ids = upsert_ids = pa.array([], pa.large_binary())
        if delete:
            delete_ids = to_bytes(read_deletions(delete))
        if upsert:
            columns = None
            if documents.postings is not None:  # a column that the table does not have is empty
                known = open_documents(upsert, list(documents.postings.columns)).columns
                columns = {name: weight for name, weight in documents.postings.columns.items() if name in known}
            filters, collapse = list(documents.rows.filters), settings["collapse"]
            upsert_ids, rows, embeddings, words = read_documents(upsert, towers, filters, collapse, columns)
        both = delete_ids.filter(pa.array(is_in(delete_ids, upsert_ids))).to_pylist()
        if both:
            raise InputError(f"document {both[0].decode()!r} is in --upsert and in --delete; leave it in one of them")
        documents, deleted = documents.remove(delete_ids)
        if upsert:
            documents = documents.remove(upsert_ids)[0].add(rows, embeddings, words)
        if not documents.live_rows.any():
            raise InputError("no document would be left in the retriever; keep one, or export another catalogue")
        if compact:
            kind, vectors = index.parameters["kind"], LiveVectors(index, documents)
            recall, storage = index.parameters.get("target_recall", 1.0), index.parameters.get("storage", "float32")
            console.print(f"building the {kind} index of {len(vectors):,} documents")
            index, order = build_index(kind, vectors, towers.config.seed, recall, storage)
            rows, postings = documents.compact()
            documents = IndexedDocuments.in_order(rows, order, vectors.shape[1], postings)
            del vectors  # and with it the index before
        manifest = describe("retriever", version, run, towers, (index, documents), settings)
        servable = RetrieverServable(towers.query, index, documents, settings["lexical_weight"])
        write_servable(servable, folders["retriever"], manifest)
    advise_compaction(manifest)
    missing = delete_ids.filter(pa.array(~deleted)).to_pylist()
    unknown = [document_id.decode(errors="backslashreplace") for document_id in missing]
    return Update(version, len(upsert_ids), int(deleted.sum()), unknown, manifest["documents"])


def _read_retriever(models: Path, run: Path, towers: Towers) -> tuple[Index, IndexedDocuments, dict[str, Any]]:
    """The index and the documents of the newest retriever, and its settings."""
    version, folder = max(versions_in(models / "retriever").items())
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        hashes = {name: manifest[name] for name in ("tokenizer_sha256", "weights_sha256")}
        reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
        names = [name.removesuffix(VALUE) for name in reader.get_variable_to_shape_map() if name.endswith(VALUE)]
        tensors = {name: reader.get_tensor(name + VALUE) for name in names if not name.startswith("tower/")}
        values = np.append(tensors.get("filters/values", np.empty(0, object)), b"")  # code −1, no value, reads the last
        filters = {
            name: values[tensors[f"filters/codes/{position}"]] for position, name in enumerate(manifest["filters"])
        }
        delta = tensors.get("delta", np.empty((0, manifest["dimension"]), np.float32))
        alive = tensors["alive"][: manifest["indexed"]] if "alive" in tensors else np.ones(manifest["indexed"], bool)
        ids = pa.array(tensors["document_ids"][:-1], pa.large_binary())
        rows = DocumentRows(ids, filters, tensors.get("groups"))
        parts = {name.removeprefix("index/"): value for name, value in tensors.items() if name.startswith("index/")}
        index = restore_index(manifest["index"], parts)
        parts = {name.removeprefix("lexical/"): value for name, value in tensors.items() if name.startswith("lexical/")}
        postings = Postings.restore(parts, manifest["lexical"]) if manifest["lexical"] else None
        settings = {name: manifest[name] for name in ("collapse", "lexical_weight")}
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise InputError(f"retriever {folder}: cannot be read ({reason}); export again with q2s export") from error
    if hashes != hash_towers(towers):
        raise InputError(
            f"run {run}: retriever {version} was exported from other weights (run {manifest['run']}); give that run, "
            "or export this one with q2s export"
        )
    return index, IndexedDocuments(rows, alive, delta, postings), settings


def advise_compaction(manifest: dict[str, Any]) -> None:
    """Print advice to compact if delta or tombstones have become many, because every query pays for them."""
    for what, count in (("in the delta", manifest["delta"]), ("deleted from the index", manifest["deleted"])):
        share = count / manifest["indexed"]
        if share > COMPACT_ABOVE:
            console.print(f"{count:,} documents are {what}, {share:.0%} of it: run q2s update-index --compact")
