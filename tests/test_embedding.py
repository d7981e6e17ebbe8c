"""Embedding in bulk: the vectors of the towers, complete shards after a kill, and exports that embed nothing again."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import preloaded
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pyspark.sql
import pytest
from fresh_process import answers
from tiny_market import TinyMarket
from typer.testing import CliRunner

import q2s_tf
from q2s_tf.commands import app
from q2s_tf.embedding import EmbeddingShards, embed
from q2s_tf.embedding.shards import MANIFEST, vectors_of
from q2s_tf.errors import InputError
from q2s_tf.files import exclusive
from q2s_tf.models import Towers


def read(shards: EmbeddingShards) -> tuple[list[str], np.ndarray]:
    batches = list(shards.batches())
    ids = [document_id for batch in batches for document_id in batch.column("document_id").to_pylist()]
    return ids, np.concatenate([vectors_of(batch) for batch in batches])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("part-*")}


@pytest.fixture(scope="module")
def embedded(run: Path, market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingShards:
    return embed(run, market.documents, tmp_path_factory.mktemp("embedded") / "shards", shard_rows=17)


@pytest.mark.parametrize("shard_rows", [1, 60, 1_000])
def test_vectors_are_those_of_the_tower_in_the_order_of_the_catalogue(
    shard_rows: int, run: Path, market: TinyMarket, towers: Towers, tmp_path: Path
) -> None:
    table = pq.read_table(market.documents).slice(0, 3 if shard_rows == 1 else 60)
    pq.write_table(table, tmp_path / "documents.parquet")
    shards = embed(run, tmp_path / "documents.parquet", tmp_path / "out", shard_rows=shard_rows)
    ids, vectors = read(shards)
    assert ids == table["document_id"].to_pylist()
    assert len(shards) == len(table)
    assert [pq.read_metadata(path).num_rows for path in shards.paths] == [
        min(shard_rows, len(table) - start) for start in range(0, len(table), shard_rows)
    ]
    np.testing.assert_allclose(vectors, towers.encode_documents(table), atol=1e-5)


def test_shards_do_not_depend_on_the_files_of_the_catalogue(
    run: Path, market: TinyMarket, embedded: EmbeddingShards, tmp_path: Path
) -> None:
    table = pq.read_table(market.documents)
    (tmp_path / "parts").mkdir()
    for number, (start, end) in enumerate([(0, 5), (5, 40), (40, 60)]):
        pq.write_table(table.slice(start, end - start), tmp_path / f"parts/{number}.parquet", row_group_size=7)
    shards = embed(run, tmp_path / "parts", tmp_path / "out", shard_rows=17)
    assert bytes_of(shards.path) == bytes_of(embedded.path)


def test_shards_are_a_documents_table(embedded: EmbeddingShards, market: TinyMarket) -> None:
    batches = pa.Table.from_batches(embedded.batches(["title", "description", "language", "country"]))
    expected = pq.read_table(market.documents).drop_columns(["image_embeddings"])
    assert batches.drop_columns(["embedding"]).select(expected.column_names).equals(expected)


def test_text_files_and_other_columns_are_embedded_too(run: Path, market: TinyMarket, tmp_path: Path) -> None:
    table = pq.read_table(market.documents).drop_columns(["image_embeddings"])
    table = table.append_column("brand", pa.array([f"brand {row % 3}" for row in range(len(table))]))
    (tmp_path / "parts").mkdir()
    options = pyarrow.csv.WriteOptions(delimiter="\t", quoting_style="none")
    for number, part in enumerate((table.slice(0, 25), table.slice(25))):
        pyarrow.csv.write_csv(part, tmp_path / f"parts/{number}.tsv", options)
    first = embed(run, tmp_path / "parts", tmp_path / "first", ["brand"], shard_rows=20)
    for name in ("part-00000.parquet", "part-00002.parquet"):
        (first.path / name).unlink()
    with pytest.raises(InputError, match=r"2 of 3 shards are missing, for example part-00000.parquet"):
        EmbeddingShards(first.path)
    again = embed(run, tmp_path / "parts", tmp_path / "first", ["brand"], shard_rows=20)
    assert bytes_of(again.path) == bytes_of(
        embed(run, tmp_path / "parts", tmp_path / "new", ["brand"], "local", 20).path
    )
    assert pa.Table.from_batches(again.batches(["brand"]))["brand"].to_pylist() == table["brand"].to_pylist()


KILLED = """
import os, signal, sys
from q2s_tf.embedding import embed, shard_writer

written = []

def replace(source, target):
    rename(source, target)
    written.append(target)
    if len(written) == 2:
        open(target.parent / ".partial.0.parquet", "wb").write(b"half a shard")
        os.kill(os.getpid(), signal.SIGKILL)

rename = os.replace
shard_writer.os.replace = replace
embed(*sys.argv[1:4], shard_rows=17)
"""


def test_a_killed_job_continues_without_losing_or_doubling_a_shard(
    run: Path, market: TinyMarket, embedded: EmbeddingShards, tmp_path: Path
) -> None:
    killed = preloaded.run(["-c", KILLED, run, market.documents, tmp_path / "out"])
    assert killed.returncode == -signal.SIGKILL
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    assert 1 <= len(before) <= 2 < len(embedded.paths)
    shards = embed(run, market.documents, tmp_path / "out", shard_rows=17)
    assert bytes_of(shards.path) == bytes_of(embedded.path)
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in shards.paths}.items()  # not written again
    assert not list(shards.path.glob(".partial.*"))


@pytest.fixture
def spark(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Spark session of one worker, which all jobs of a test share."""
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    session = pyspark.sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    yield
    session.stop()


@pytest.mark.usefixtures("spark")
def test_spark_writes_the_same_shards_and_reports_bad_documents(
    run: Path, market: TinyMarket, embedded: EmbeddingShards, tmp_path: Path
) -> None:
    on_spark = embed(run, market.documents, tmp_path / "out", backend="pyspark", shard_rows=17)
    assert read(on_spark)[0] == read(embedded)[0]
    np.testing.assert_array_equal(read(on_spark)[1], read(embedded)[1])
    rows = [dict(row) for row in market.document_rows]
    rows[41]["image_embeddings"] = [[1.0, 2.0]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "wrong.parquet", row_group_size=10)
    with pytest.raises(InputError, match=r"wrong.parquet.*document_id 'd41'.*image_embeddings"):
        embed(run, tmp_path / "wrong.parquet", tmp_path / "wrong", backend="pyspark", shard_rows=30)
    assert [path.name for path in (tmp_path / "wrong").glob("part-*")] == ["part-00000.parquet"]


def change(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_bad_input_is_refused_in_one_line(
    run: Path, market: TinyMarket, embedded: EmbeddingShards, tmp_path: Path
) -> None:
    rows = market.document_rows
    documents = change(tmp_path / "documents.parquet", rows)
    embed(run, documents, tmp_path / "out", shard_rows=40)
    change(documents, rows[:-1])
    with pytest.raises(InputError, match=r"another run, catalogue or other options \(differs in documents, catalogue"):
        embed(run, documents, tmp_path / "out", shard_rows=40)
    with pytest.raises(InputError, match=r"differs in .*shards, shard_rows"):
        embed(run, documents, tmp_path / "out", shard_rows=20)
    with pytest.raises(InputError, match=r"document_id may occur once; 'd00' occurs more often"):
        embed(run, change(tmp_path / "twice.parquet", [*rows, rows[0]]), tmp_path / "twice")
    with pytest.raises(InputError, match=r"every row needs a document_id; 1 have none"):
        embed(run, change(tmp_path / "none.parquet", [*rows, rows[0] | {"document_id": None}]), tmp_path / "none")
    with pytest.raises(InputError, match=r"column brand does not exist: --column needs one of document_id, title"):
        embed(run, market.documents, tmp_path / "brand", ["brand"])
    with pytest.raises(InputError, match=r"column image_embeddings holds vectors"):
        embed(run, market.documents, tmp_path / "images", ["image_embeddings"])
    with pytest.raises(InputError, match=r"must be a folder; it is a file"):
        embed(run, market.documents, documents)
    with pytest.raises(InputError, match=r"is a folder with other files"):
        embed(run, market.documents, market.folder)
    with pytest.raises(InputError, match=r"has no _manifest.json: give the --out of q2s embed"):
        EmbeddingShards(market.folder)
    with (
        exclusive(tmp_path / "out" / "_lock", "held by the test"),
        pytest.raises(InputError, match=r"another process embeds into it"),
    ):
        embed(run, documents, tmp_path / "out", shard_rows=40)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / MANIFEST).write_text("{")
    with pytest.raises(InputError, match=r"_manifest.json: is damaged"):
        EmbeddingShards(tmp_path / "damaged")


def test_an_export_of_embeddings_answers_as_one_of_the_documents(
    run: Path, market: TinyMarket, embedded: EmbeddingShards, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"filters": ["country"], "collapse": "title", "lexical_weight": 0.3}
    q2s_tf.export(run, market.documents, tmp_path / "documents", **options)
    q2s_tf.export(run, embeddings=embedded.path, out=tmp_path / "embeddings", **options)
    queries = np.array([b"red sofa", "ランプ".encode(), b""], object)
    inputs = {
        "query": queries,
        "country": np.array([b"US", b"", b""], object),
        "k": np.int32(60),
        "effort": np.int32(0),
        "min_score": np.float32(-1),
        "lexical_weight": np.float32(-1),
        "filter_country": np.array([b"us", b"", b""], object),
    }
    folders = [tmp_path / name / "retriever/1" for name in ("documents", "embeddings")]
    first, second = answers([("session", folder, "retrieve", inputs) for folder in folders], tmp_path)
    np.testing.assert_allclose(first["score"], second["score"], atol=1e-5)
    assert [sorted(row) for row in first["document_id"]] == [sorted(row) for row in second["document_id"]]
    manifests = [json.loads((folder / "assets.extra/manifest.json").read_text()) for folder in folders]
    assert manifests[0] == manifests[1]


def test_documents_without_a_channel_are_left_out_of_an_export(run: Path, market: TinyMarket, tmp_path: Path) -> None:
    empty = dict.fromkeys(market.document_rows[0])
    rows = [*market.document_rows[:20], empty | {"document_id": "empty"}, *market.document_rows[20:30]]
    shards = embed(run, change(tmp_path / "documents.parquet", rows), tmp_path / "shards")
    q2s_tf.export(run, embeddings=shards.path, out=tmp_path / "models")
    manifest = json.loads((tmp_path / "models/retriever/1/assets.extra/manifest.json").read_text())
    assert (len(shards), manifest["documents"]) == (31, 30)


def test_embeddings_of_another_run_are_refused(
    run: Path, market: TinyMarket, embedded: EmbeddingShards, tmp_path: Path
) -> None:
    q2s_tf.train(
        market.lean_config, documents=market.documents, positives=market.positives, validation=market.judgements,
        out=tmp_path / "other",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"are of the run 'tiny' and its weights, not of this run"):
        q2s_tf.export(tmp_path / "other", embeddings=embedded.path, out=tmp_path / "models")
    with pytest.raises(InputError, match=r"have no column brand .* with --column brand"):
        q2s_tf.export(run, embeddings=embedded.path, out=tmp_path / "models", filters=["brand"])
    assert not list(tmp_path.glob("models/*/*"))


def test_the_command_embeds_and_exports(run: Path, market: TinyMarket, tmp_path: Path) -> None:
    arguments = ["embed", "--run", str(run), "--documents", str(market.documents), "--out", str(tmp_path / "shards")]
    result = CliRunner().invoke(app, [*arguments, "--shard-rows", "50"])
    assert result.exit_code == 0, result.output
    assert "60 embeddings of 16 numbers are in 2 shards in" in result.stdout
    both = ["export", "--run", str(run), "--documents", str(market.documents), "--embeddings", str(tmp_path / "shards")]
    with pytest.raises(InputError, match="give either documents, a catalogue, or embeddings"):
        CliRunner().invoke(app, [*both, "--out", str(tmp_path / "models")], catch_exceptions=False)
