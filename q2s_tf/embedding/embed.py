"""Embedding of a catalogue in shards, here or on Spark."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa

from q2s_tf.cli import console, progress_bar, track
from q2s_tf.config import FORMAT
from q2s_tf.embedding.shard_writer import EmbeddingJob, read_shards, write_shard
from q2s_tf.embedding.shards import MANIFEST, ROWS, EmbeddingShards, read_manifest, shard_file
from q2s_tf.errors import InputError
from q2s_tf.files import atomic_write, exclusive, make_folder
from q2s_tf.models import Tower, hash_towers, load
from q2s_tf.models.encoding import check_ids
from q2s_tf.tables import DOCUMENT_COLUMNS, Table, open_documents

Backend = Literal["local", "pyspark"]
SHARD_ROWS = 32_768
"""Documents of a shard: what is computed again after a kill."""
MEMORY = "1GB"
"""Memory of the check of the ids; more is spilled."""


def embed(
    run: str | PathLike[str],
    documents: str | PathLike[str],
    out: str | PathLike[str],
    columns: Sequence[str] = (),
    backend: Backend = "local",
    shard_rows: int = SHARD_ROWS,
) -> EmbeddingShards:
    """Embed a catalogue into a folder of Parquet shards, or compute the shards that the folder lacks.

    A shard is written as a whole or not at all, so that a job that was killed continues with the same arguments. With
    `pyspark`, each shard is one task of the active Spark session, or of a new one, which is local unless Spark is
    configured. `run`, `documents` and `out` must then be on a file system that all executors share, and q2s_tf must be
    installed there. A Python worker loads the document tower once.

    Args:
        run: a trained run directory.
        documents: the catalogue.
        out: the folder to write.
        columns: text columns to copy beside the title and the other columns of the contract.
        backend: `local`, or `pyspark`, which needs the extra `spark` and Java.
        shard_rows: documents of a shard.

    Returns:
        The shards.

    Raises:
        InputError: not a trained run; a catalogue that breaks its contract; a column that it does not have or that
            holds vectors; or `out` holds something else. Shards that were written before an error stay.
    """
    run, documents, out = Path(run), Path(documents), Path(out)
    towers = load(run)
    hashes = hash_towers(towers)
    vectors = towers.config.vector_inputs()
    table = open_documents(documents, [*towers.document.input, *columns], vectors)
    for name in columns:
        if name in table.missing or name in vectors:
            reason = "holds vectors" if name in vectors else "does not exist"
            raise InputError(
                f"documents {documents}: column {name} {reason}: --column needs one of {', '.join(table.available)}"
            )
    texts = [name for name in ("title", *DOCUMENT_COLUMNS) if name in table.columns and name not in vectors]
    copied = tuple(dict.fromkeys([*texts, *columns]))
    job = EmbeddingJob(run.resolve(), documents.absolute(), out.absolute(), copied, shard_rows)
    _check_out(out)
    with exclusive(make_folder(out) / "_lock", f"out {out}: another process embeds into it: wait for it"):
        for partial in out.glob(".partial.*"):  # of a job that was killed
            partial.unlink()
        scratch = out / "_scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        rows = _count_documents(table, scratch)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "run": run.resolve().name,
            **hashes,
            "dimension": towers.config.dimension,
            "documents": rows,
            "shards": -(-rows // shard_rows),
            "shard_rows": shard_rows,
            "columns": list(job.columns),
            "catalogue_sha256": _hash_files(table),
        }
        _write_manifest(out, manifest)
        missing = [number for number in range(manifest["shards"]) if not (out / shard_file(number)).is_file()]
        if present := manifest["shards"] - len(missing):
            console.print(f"{present:,} of {manifest['shards']:,} shards are there already")
        if backend == "pyspark":
            from q2s_tf.embedding.spark_tasks import embed_on_spark

            embed_on_spark(job, missing, rows, scratch)
        else:
            _embed_here(job, towers.document, table, missing, rows)
        shutil.rmtree(scratch, ignore_errors=True)
    return EmbeddingShards(out)


def _embed_here(job: EmbeddingJob, tower: Tower, table: Table, missing: list[int], rows: int) -> None:
    if not missing:
        return
    first, wanted = missing[0], set(missing)
    with progress_bar() as progress:
        task = progress.add_task("embedding documents", total=rows, completed=first * job.shard_rows)
        shards = read_shards(table.batches(ROWS, first * job.shard_rows), job.shard_rows)
        for number, batches in enumerate(shards, first):
            if number in wanted:
                write_shard(job, tower, table, number, batches)
            progress.advance(task, sum(map(len, batches)))


def _check_out(out: Path) -> None:
    """Refuses a folder with anything but embeddings."""
    if out.exists() and not out.is_dir():
        raise InputError(f"out {out}: must be a folder; it is a file")
    if out.is_dir() and read_manifest(out) is None and any(path.name != "_lock" for path in out.iterdir()):
        raise InputError(f"out {out}: is a folder with other files: name a new folder")


def _write_manifest(out: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest, or compares it with the one of the job that is continued."""
    before = read_manifest(out)
    if before is None:
        with atomic_write(out / MANIFEST) as partial:
            partial.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    elif before != manifest:
        changed = [name for name in manifest if before.get(name) != manifest[name]]
        raise InputError(
            f"out {out}: holds embeddings of another run, catalogue or other options (differs in {', '.join(changed)}):"
            " name a new folder, or remove this one"
        )


def _count_documents(table: Table, scratch: Path) -> int:
    """The number of documents, after a check of their ids in bounded memory.

    Raises:
        InputError: no document, a row without id, or an id that occurs twice.
    """
    with duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": str(scratch)}) as connection:
        connection.execute("CREATE TABLE ids (document_id VARCHAR)")
        ids = Table(table.path, table.kind, ["document_id"])
        for batch in track(ids.batches(65_536), "checking ids", ids.num_batches(65_536)):
            connection.register("batch", pa.table({"document_id": batch.column("document_id")}))
            connection.execute("INSERT INTO ids SELECT * FROM batch")
        rows, absent = connection.execute("SELECT count(*), count(*) - count(document_id) FROM ids").fetchall()[0]
        twice = "SELECT document_id FROM ids GROUP BY document_id HAVING count(*) > 1 LIMIT 1"
        repeated = connection.execute(twice).fetchone() if not absent else None
    check_ids(table, rows, absent, repeated[0] if repeated else None)
    return rows


def _hash_files(table: Table) -> str:
    """A hash of the names, sizes and times of the files of a catalogue, which tells a changed one."""
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in table.paths]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
