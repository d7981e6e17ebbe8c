"""Updates of a live catalogue: changed documents are found, deleted ones are not, all others stay."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import fresh_process
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from tiny_market import TinyMarket

from q2s_tf.errors import InputError
from q2s_tf.models import Towers, encode, load
from q2s_tf.serving.export import export
from q2s_tf.serving.update import Update, advise_compaction, update_index

ROW = {"description": None, "language": "en", "country": "US", "image_embeddings": None}
PARAMETERS = {"k": np.int32(100), "effort": np.int32(0), "min_score": np.float32(-1), "lexical_weight": np.float32(-1)}


def write_documents(folder: Path, rows: list[dict[str, Any]], name: str = "upsert.parquet") -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / name)
    return folder / name


def write_ids(folder: Path, ids: list[str], name: str = "delete.txt") -> Path:
    (folder / name).write_text("".join(f"{document_id}\n" for document_id in ids))
    return folder / name


def manifest(models: Path, version: int) -> dict[str, Any]:
    path = models / "retriever" / str(version) / "assets.extra/manifest.json"
    return json.loads(path.read_text(encoding="utf-8"))


def search(
    models: Path, version: int, query: str, country: str = "", k: int = 100, lexical_weight: float = 0.0
) -> list[str]:
    """The ids that a version returns, best first, through the session loader."""
    inputs: dict[str, Any] = {"query": [query], "country": ["US"], "k": k, "effort": 1, "min_score": -1}
    inputs |= {"filter_country": [country], "lexical_weight": lexical_weight}
    session, signature = load_version(models / "retriever" / str(version))
    feeds = {signature.inputs[name].name: value for name, value in inputs.items()}
    return [name.decode() for name in session.run(signature.outputs["document_id"].name, feeds)[0] if name]


@cache
def load_version(folder: Path) -> tuple[tf.compat.v1.Session, Any]:
    """A session of a version of the retriever, loaded once, and the definition of its signature `retrieve`."""
    with tf.Graph().as_default():
        session = tf.compat.v1.Session()
        return session, tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder)).signature_def["retrieve"]


def cosines(towers: Towers, documents: list[dict[str, Any]], query: str) -> dict[str, float]:
    """The cosine of every document by the Keras towers."""
    columns = {name: [row[name] for row in documents] for name in towers.document.input}
    vector = encode(towers.query, {"query": [query], "country": ["US"]})["embedding"][0]
    scores = encode(towers.document, columns)["embedding"] @ vector
    return {row["document_id"]: float(score) for row, score in zip(documents, scores, strict=True)}


def check_order(towers: Towers, documents: list[dict[str, Any]], query: str, ids: list[str]) -> None:
    """Every document once, in the order of Keras's cosines."""
    expected = cosines(towers, documents, query)
    assert sorted(ids) == sorted(expected)
    scores = [expected[name] for name in ids]
    assert (np.diff(scores) <= 1e-5).all()


@pytest.fixture(scope="module")
def run(lean_run: Path) -> Path:
    """These tests need no transformer."""
    return lean_run


@pytest.fixture(scope="module")
def towers(run: Path) -> Towers:
    """The towers of the run."""
    return load(run)


@pytest.fixture(scope="module")
def exported(run: Path, market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 with the partitioned index, filtered by country."""
    folder = tmp_path_factory.mktemp("exported")
    export(run, market.documents, folder, "partitioned", filters=["country"])
    return folder


@pytest.fixture
def models(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path / "models")
    return tmp_path / "models"


def test_updates_accumulate_and_are_compacted(
    run: Path, towers: Towers, market: TinyMarket, models: Path, tmp_path: Path
) -> None:
    first, other, gone = market.document_rows[0], market.document_rows[21], market.document_rows[5]
    changed = {**first, "title": "blue electric guitar", "description": None, "country": "CA"}
    new = {**ROW, "document_id": "new", "title": "oak table", "country": "CA"}
    upsert = write_documents(tmp_path, [changed, new])
    update = update_index(run, models, upsert, write_ids(tmp_path, [gone["document_id"], "never there"]))
    assert update == Update(version=2, upserted=2, deleted=1, unknown=["never there"], documents=60)
    documents = [row for row in market.document_rows if row not in (first, gone)] + [changed, new]
    for query in ("blue electric guitar", first["title"]):
        check_order(towers, documents, query, search(models, 2, query))
    assert set(search(models, 2, "guitar", "CA")) == {first["document_id"], "new"}
    assert first["document_id"] not in search(models, 2, "guitar", "US")
    facts = manifest(models, 2)
    counts = {name: facts[name] for name in ("documents", "indexed", "delta", "deleted", "filters")}
    assert counts == {"documents": 60, "indexed": 60, "delta": 2, "deleted": 2, "filters": ["country"]}

    # A second update: out of the delta, replaced in the delta, and a deleted one back.
    again = {**new, "title": "pine shelf"}
    upsert = write_documents(tmp_path, [again, gone])
    deleted = write_documents(tmp_path, [{"document_id": other["document_id"]}, changed], "delete.parquet")
    assert update_index(run, models, upsert, deleted) == Update(3, 2, 2, [], 59)
    documents = [row for row in market.document_rows if row not in (first, other)] + [again]
    check_order(towers, documents, "pine shelf", search(models, 3, "pine shelf"))
    assert search(models, 3, "guitar", "CA") == ["new"]
    # The lexical index changes with the documents: a word of the delta, and none of a document that was replaced.
    assert search(models, 2, "electric guitar", k=1, lexical_weight=100.0) == [first["document_id"]]
    assert first["document_id"] not in search(models, 3, "electric guitar", lexical_weight=100.0)
    assert search(models, 3, "pine", k=1, lexical_weight=100.0) == ["new"]
    assert search(models, 3, "oak", lexical_weight=100.0) == search(models, 3, "oak", lexical_weight=0.0)

    assert update_index(run, models, compact=True) == Update(4, 0, 0, [], 59)
    facts = manifest(models, 4)
    counts = {name: facts[name] for name in ("documents", "indexed", "delta", "deleted")}
    assert counts == {"documents": 59, "indexed": 59, "delta": 0, "deleted": 0}
    assert facts["index"]["kind"] == "partitioned"
    assert search(models, 4, "pine", k=1, lexical_weight=100.0) == ["new"]
    for query in ("pine shelf", "ランプ"):
        check_order(towers, documents, query, search(models, 4, query))
    assert search(models, 4, "guitar", "CA") == ["new"]
    assert sorted(path.name for path in (models / "query_tower").iterdir()) == ["1"]

    # The loader of TF Serving in a fresh process.
    texts = {"query": np.array([b"pine shelf"], object), "country": np.array([b"US"], object)}
    texts["filter_country"] = np.array([b""], object)
    jobs: list[fresh_process.Job] = [
        ("session", models / "retriever" / version, "retrieve", {**texts, **PARAMETERS}) for version in "34"
    ]
    for answer in fresh_process.answers(jobs, tmp_path):
        ids = [name.decode() for name in answer["document_id"][0] if name]
        check_order(towers, documents, "pine shelf", ids)


@pytest.mark.slow
def test_scann_is_updated_without_training_it_again(
    run: Path, towers: Towers, market: TinyMarket, tmp_path: Path
) -> None:
    rows = [
        {**market.document_rows[number % 60], "document_id": f"s{number}", "image_embeddings": None}
        for number in range(1_300)
    ]
    documents = [{**row, "title": f"{row['title']} {number:b}"} for number, row in enumerate(rows)]
    models = tmp_path / "models"
    export(run, write_documents(tmp_path, documents, "documents.parquet"), models, "scann", filters=["country"])
    new = {**ROW, "document_id": "new", "title": "oak table"}
    gone = [row["document_id"] for row in documents[:200]]
    update_index(run, models, write_documents(tmp_path, [new]), write_ids(tmp_path, gone))
    left = set(cosines(towers, [*documents[200:], new], "oak table"))
    for version in (2, update_index(run, models, delete=write_ids(tmp_path, ["s1000"]), compact=True).version):
        if version == 3:
            left -= {"s1000"}
        for k in (50, 2_000):
            ids = search(models, version, "oak table", k=k)
            assert set(ids) <= left
            assert len(ids) == len(set(ids)) == min(k, len(left))
    assert manifest(models, 3)["index"]["kind"] == "scann"


def test_a_failed_update_publishes_nothing(run: Path, market: TinyMarket, models: Path, tmp_path: Path) -> None:
    new = {**ROW, "document_id": "new", "title": "oak table"}
    upsert = write_documents(tmp_path, [new])
    twice = write_documents(tmp_path, [new, new], "twice.parquet")
    no_country = write_documents(tmp_path, [{"document_id": "new", "title": "oak table"}], "no_country.parquet")
    everything = write_ids(tmp_path, [row["document_id"] for row in market.document_rows], "all.txt")
    for upserted, deleted, message in (
        (None, None, "nothing to do: give --upsert, --delete or --compact"),
        (upsert, write_ids(tmp_path, ["d01", "new"], "both.txt"), "'new' is in --upsert and in --delete"),
        (twice, None, "may occur once; 'new'"),
        (None, write_ids(tmp_path, ["d01", "d02", "d01"], "d.txt"), "may occur once; 'd01'"),
        (no_country, None, "has no column country for --filter"),
        (None, everything, "no document would be left"),
        (None, tmp_path / "absent.txt", "there is no such file"),
        (tmp_path / "absent.parquet", None, "there is no such file"),
    ):
        with pytest.raises(InputError, match=message):
            update_index(run, models, upserted, deleted)
    with pytest.raises(InputError, match="holds no version of the retriever"):
        update_index(run, tmp_path / "empty", upsert)
    assert sorted(path.name for path in (models / "retriever").iterdir()) == ["1"]


def test_ids_to_delete_are_utf_8_with_or_without_a_byte_order_mark(run: Path, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "gone.txt"
    path.write_bytes(b"\xef\xbb\xbfd01\r\n d02 \r\n\r\nnobody")
    update = update_index(run, models, delete=path)
    assert (update.deleted, update.unknown, update.documents) == (2, ["nobody"], 58)
    assert not {"d01", "d02"} & set(search(models, 2, "sofa"))
    for content in ("d03\nmañana\n".encode("latin-1"), "d03\n".encode("utf-16")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"delete .*gone.txt: must be UTF-8 and is not"):
            update_index(run, models, delete=path)
    with pytest.raises(InputError, match="delete .*: nothing in it can be read"):
        (tmp_path / "folder.txt").mkdir()
        update_index(run, models, delete=tmp_path / "folder.txt")
    assert sorted(path.name for path in (models / "retriever").iterdir()) == ["1", "2"]


def test_a_document_without_any_input_is_not_found(run: Path, market: TinyMarket, models: Path, tmp_path: Path) -> None:
    """Neither after an export nor after an update, which removes the document that it replaces."""
    blank = dict.fromkeys(ROW) | {"document_id": "blank", "title": ""}
    catalogue = write_documents(tmp_path, [*market.document_rows, blank], "documents.parquet")
    export(run, catalogue, tmp_path / "exact", "exact", filters=["country"])
    assert manifest(tmp_path / "exact", 1)["documents"] == 60
    assert set(search(tmp_path / "exact", 1, "sofa")) == {row["document_id"] for row in market.document_rows}
    emptied = {**blank, "document_id": "d01"}
    assert update_index(run, models, write_documents(tmp_path, [emptied, blank])).documents == 59
    assert not {"d01", "blank"} & set(search(models, 2, "sofa"))
    with pytest.raises(InputError, match="no document has an input of any channel"):
        export(run, write_documents(tmp_path, [blank], "blank.parquet"), tmp_path / "exact", "exact")


def test_updates_keep_the_groups(run: Path, market: TinyMarket, exported: Path, tmp_path: Path) -> None:
    """Documents with equal titles: two in the index, one that an update adds, and one that it takes away."""
    rows = [{**row, "title": f"thing {number}"} for number, row in enumerate(market.document_rows)]
    rows[3] |= {"title": "Oak  TABLE"}
    rows[7] |= {"title": "oak table", "description": "old"}
    export(
        run,
        write_documents(tmp_path, rows, "documents.parquet"),
        tmp_path / "models",
        collapse="title",
        filters=["country"],
    )
    same = {"d03", "d07", "new"}
    assert len(set(search(tmp_path / "models", 1, "oak table")) & same) == 1
    upsert = write_documents(tmp_path, [{**ROW, "document_id": "new", "title": "ｏａｋ table"}])
    update_index(run, tmp_path / "models", upsert, write_ids(tmp_path, ["d03"]))
    found = search(tmp_path / "models", 2, "oak table")
    assert len(found) == len(set(found)) == 59 and len(set(found) & same) == 1
    update_index(run, tmp_path / "models", compact=True)
    assert len(set(search(tmp_path / "models", 3, "oak table")) & same) == 1
    assert manifest(tmp_path / "models", 3)["collapse"] == "title"
    assert len(search(tmp_path / "models", 3, "oak table", k=60)) == 59


def test_another_run_is_refused(run: Path, models: Path, tmp_path: Path) -> None:
    """The same config and tokenizer, and one weight that is not the same."""
    other = tmp_path / "other"
    shutil.copytree(run, other)
    towers = load(other)
    weight = towers.query.trainable_variables[0]
    weight.assign(weight + 1)
    towers.save_weights(other / "stage1.weights.h5")
    upsert = write_documents(tmp_path, [{**ROW, "document_id": "new", "title": "oak table"}])
    with pytest.raises(InputError, match="retriever 1 was exported from other weights .run lean.; give that run"):
        update_index(other, models, upsert)
    assert sorted(path.name for path in (models / "retriever").iterdir()) == ["1"]


def test_many_changes_advise_to_compact(capsys: pytest.CaptureFixture[str]) -> None:
    advise_compaction({"indexed": 60, "delta": 6, "deleted": 6})
    assert capsys.readouterr().err == ""
    advise_compaction({"indexed": 60, "delta": 7, "deleted": 8})
    printed = " ".join(capsys.readouterr().err.split())
    assert "7 documents are in the delta, 12% of it: run q2s update-index --compact" in printed
    assert "8 documents are deleted from the index, 13% of it" in printed


def test_an_unreadable_version_is_named(run: Path, models: Path, tmp_path: Path) -> None:
    (models / "retriever/1/variables/variables.index").write_bytes(b"")
    upsert = write_documents(tmp_path, [{**ROW, "document_id": "new", "title": "oak table"}])
    with pytest.raises(InputError, match="retriever .*1: cannot be read .*export again with q2s export"):
        update_index(run, models, upsert)
