"""Publications in milvus-lite: the alias, its switch, rollback, what a killed publication leaves, and bad input."""

import fcntl
import http.server
import json
import os
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import preloaded
import pyarrow as pa
import pytest
from milvus_lite.adapter.grpc.server import start_server_in_thread
from published import random_unit_vectors, write_embeddings
from pymilvus import MilvusClient

from q2s_tf import cli
from q2s_tf.commands import app
from q2s_tf.embedding.shards import EmbeddingShards, vectors_of
from q2s_tf.errors import InputError
from q2s_tf.milvus import collection_rows, object_storage
from q2s_tf.milvus import publish as publish_module
from q2s_tf.milvus.collection_rows import make_rows, make_schema
from q2s_tf.milvus.engine_client import EngineClient
from q2s_tf.milvus.lexical_terms import MAX_BYTES, document_terms, query_terms
from q2s_tf.milvus.object_storage import ObjectStorage, import_rows, read_storage
from q2s_tf.milvus.publish import publish, roll_back
from q2s_tf.serving.search_client import Embeddings
from q2s_tf.serving.serving_error import ServingError

ROOT = Path(__file__).parents[1]
DIMENSION, DOCUMENTS = 8, 600


class VectorEncoder:
    """Embeds the query "n …" as the n-th of some vectors."""

    channel_names = None

    def __init__(self, vectors: np.ndarray):
        self.vectors = vectors

    def embed(self, queries: Any, countries: Any, hashes: Mapping[str, str]) -> Embeddings:
        rows = [int(query.split()[0]) for query in queries]
        return Embeddings(self.vectors[rows], np.ones((len(rows), 1)), 0)


VECTORS = random_unit_vectors(DOCUMENTS, DIMENSION, 1)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two catalogues of the same vectors and texts; their ids begin with a and with b."""
    folder = tmp_path_factory.mktemp("embeddings")
    titles = [f"word{number % 30} common" for number in range(DOCUMENTS)]
    countries = ["US" if number % 2 else None for number in range(DOCUMENTS)]
    columns = {"title": titles, "country": countries}
    return {
        name: write_embeddings(folder / name, [f"{name}{row}" for row in range(DOCUMENTS)], VECTORS, columns)
        for name in "ab"
    }


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "catalogue.db")


def collections(uri: str) -> list[str]:
    return sorted(MilvusClient(uri).list_collections())


def current(uri: str) -> str:
    return MilvusClient(uri).describe_alias("products")["collection_name"]


def test_publications_follow_each_other_and_roll_back(embeddings: dict[str, Path], uri: str) -> None:
    assert publish(embeddings["a"], uri, filters=["country"]) == ("products_1", DOCUMENTS, 0)
    with EngineClient(uri, VectorEncoder(VECTORS)) as client:
        assert client.retrieve(["3 common"], k=1, lexical_weight=0).document_ids.tolist() == [["a3"]]
        assert publish(embeddings["b"], uri).collection == "products_2"
        assert client.retrieve(["3 common"], k=1, lexical_weight=0).document_ids.tolist() == [["b3"]]
        assert client.retrieve(["3 common"], k=1, version=1).document_ids.tolist() == [["a3"]]
        assert roll_back(uri) == "products_1"
        matches = client.retrieve(["3 common"], k=1)
        assert (matches.document_ids.tolist(), matches.version) == ([["a3"]], 1)
        with pytest.raises(InputError, match="there is no publication before products_1"):
            roll_back(uri)
        assert publish(embeddings["b"], uri, keep=2).collection == "products_3"
        assert collections(uri) == ["products_2", "products_3"]
        assert publish(embeddings["a"], uri, keep=1).collection == "products_4"
        assert collections(uri) == ["products_4"]
        assert publish(embeddings["b"], uri, alias="other").collection == "other_1"
        assert current(uri) == "products_4"


def test_a_large_catalogue_has_an_approximate_index(
    embeddings: dict[str, Path], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection_rows, "EXACT_UP_TO", DOCUMENTS - 1)
    publish(embeddings["a"], uri)
    assert MilvusClient(uri).describe_index("products_1", "embedding")["index_type"] == "AUTOINDEX"
    with EngineClient(uri, VectorEncoder(VECTORS)) as client:
        matches = client.retrieve([f"{row} word{row % 30}" for row in range(50)], k=10)
    assert matches.document_ids[:, 0].tolist() == [f"a{row}" for row in range(50)]
    assert matches.lexical_scores[:, 0].tolist() == [1] * 50


def test_a_publication_that_fails_leaves_the_alias(
    embeddings: dict[str, Path], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(embeddings["a"], uri)
    with monkeypatch.context() as patch:
        patch.setattr(publish_module, "make_index_params", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            publish(embeddings["b"], uri)
    assert collections(uri) == ["products_1", "products_2_filling"]
    assert current(uri) == "products_1"
    assert publish(embeddings["b"], uri).collection == "products_3"
    assert collections(uri) == ["products_1", "products_3"]


def test_a_killed_publication_leaves_the_alias(embeddings: dict[str, Path], tmp_path: Path) -> None:
    """In processes of their own, because milvus-lite allows one at a time; the second dies after its first rows."""
    uri = str(tmp_path / "catalogue.db")
    code = f"""
import os, sys
from pathlib import Path
import pymilvus
from q2s_tf.milvus.publish import publish
publish(Path({str(embeddings["a"])!r}), {uri!r})
insert = pymilvus.MilvusClient.insert
pymilvus.MilvusClient.insert = lambda *arguments: (insert(*arguments), os._exit(9))
publish(Path({str(embeddings["b"])!r}), {uri!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = preloaded.run(["-c", code], env=environment)
    assert done.returncode == 9, done.stderr
    with EngineClient(uri, VectorEncoder(VECTORS)) as client:
        assert client.retrieve(["3 word3"], k=1, lexical_weight=0).document_ids.tolist() == [["a3"]]
        assert collections(uri) == ["products_1", "products_2_filling"]
        assert publish(embeddings["b"], uri).collection == "products_3"
        assert client.retrieve(["3 word3"], k=1, lexical_weight=0).document_ids.tolist() == [["b3"]]
    assert collections(uri) == ["products_1", "products_3"]


def switch_under_threads(embeddings: dict[str, Path], uri: str, switches: int) -> int:
    """Four clients search while publications replace each other and are dropped; returns the number of answers."""
    publish(embeddings["a"], uri)
    names = {1: "a"}
    errors: list[BaseException] = []
    answers: list[tuple[int, str]] = []
    end = threading.Event()

    def search(seed: int) -> None:
        random = np.random.default_rng(seed)
        try:
            with EngineClient(uri, VectorEncoder(VECTORS), batch_size=2) as client:
                while not end.is_set():
                    queries = [f"{random.integers(DOCUMENTS)} word{random.integers(30)} common" for _ in range(4)]
                    matches = client.retrieve(queries, k=120)
                    assert (matches.document_ids != "").all()
                    prefixes = {name[0] for name in matches.document_ids.ravel()}
                    assert len(prefixes) == 1, "a mixed answer"
                    answers.append((matches.version, prefixes.pop()))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=search, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(switches):
            name = "ba"[number % 2]
            published = publish(embeddings[name], uri, keep=1)
            names[int(published.collection.removeprefix("products_"))] = name
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert not errors, errors
    assert all(names[version] == prefix for version, prefix in answers)
    assert {version for version, _ in answers} - {1}
    return len(answers)


def test_clients_do_not_notice_a_switch(embeddings: dict[str, Path], uri: str) -> None:
    assert switch_under_threads(embeddings, uri, 2) > 0


@pytest.mark.slow
def test_clients_do_not_notice_20_switches(embeddings: dict[str, Path], uri: str) -> None:
    assert switch_under_threads(embeddings, uri, 20) > 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alias": "7up"}, "collection '7up': must be letters, digits and _"),
        ({"alias": "a-b"}, "collection 'a-b': must be letters"),
        ({"alias": "a" * 201}, "at most 200"),
        ({"filters": ["colour"]}, "have no column colour .columns: title, country.: embed the documents into another"),
        ({"filters": ["country", "country"]}, "filter country: is named twice"),
        ({"filters": ["größe"]}, "filter größe: must be a text column named by letters"),
        ({"lexical": {"title": 1.5}}, "lexical title=1.5: the weight must be a whole number from 1 to 10"),
        ({"lexical": {"brand": 1.0}}, "have no column brand"),
        ({"lexical_weight": 101.0}, "lexical_weight must be from 0 to 100, got 101.0"),
        ({"keep": 0}, "keep must be at least 1, so that a publication is left to search; got 0"),
        ({"language": "xx"}, "language 'xx': must be one that Snowball stems: "),
        ({"uri": "catalogue"}, "uri catalogue: must be an address such as http://127.0.0.1:19530, or a folder"),
        ({"uri": "nowhere/catalogue.db"}, "there is no folder nowhere"),
        ({"uri": "http://127.0.0.1:1"}, "uri http://127.0.0.1:1: cannot be opened .Fail connecting to server"),
        ({"uri": "http://127.0.0.1:99999"}, "uri http://127.0.0.1:99999: cannot be opened .Port out of range"),
    ],
)
def test_wrong_arguments_are_named_and_publish_nothing(
    embeddings: dict[str, Path], uri: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        publish(**{"embeddings": embeddings["a"], "uri": uri, **arguments})
    assert not Path(uri).exists()


def test_catalogues_that_cannot_be_searched_are_named(embeddings: dict[str, Path], uri: str, tmp_path: Path) -> None:
    encoder = VectorEncoder(VECTORS)
    with pytest.raises(InputError, match="there is no such catalogue; publish one with q2s publish"):
        EngineClient(uri, encoder)
    Path(uri).touch()
    with pytest.raises(InputError, match="must be a folder of milvus-lite, and it is a file"):
        EngineClient(uri, encoder)
    Path(uri).unlink()
    MilvusClient(uri).create_collection("products", 4)
    with pytest.raises(InputError, match="collection products: nothing is published under this name"):
        EngineClient(uri, encoder)
    with pytest.raises(InputError, match="collection products: is a collection and not an alias"):
        publish(embeddings["a"], uri)
    MilvusClient(uri).create_alias("products", "things")
    with pytest.raises(InputError, match="collection products: was not made by this version's q2s publish"):
        EngineClient(uri, encoder, "things")
    with pytest.raises(InputError, match="timeout_seconds must be above 0"):
        EngineClient(uri, encoder, timeout_seconds=0)


def test_a_folder_that_another_process_has_open_is_named(uri: str) -> None:
    folder = Path(uri)
    folder.mkdir()
    with (folder / "LOCK").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process has it open, and milvus-lite allows one"):
            EngineClient(uri, VectorEncoder(VECTORS))


def test_a_milvus_that_stops_answering_is_unavailable(embeddings: dict[str, Path], tmp_path: Path) -> None:
    """Over the network, by the address of a server."""
    server, database, port = start_server_in_thread(str(tmp_path / "served"))
    uri = f"http://127.0.0.1:{port}"
    try:
        publish(embeddings["a"], uri)
        with EngineClient(uri, VectorEncoder(VECTORS), timeout_seconds=3) as client:
            assert client.retrieve(["3 word3"], k=1, lexical_weight=0).document_ids.tolist() == [["a3"]]
            server.stop(None).wait()
            with pytest.raises(ServingError, match="^(UNAVAILABLE|DEADLINE_EXCEEDED): "):
                client.retrieve(["3 word3"])
    finally:
        server.stop(None)
        database.close()


def test_a_catalogue_without_an_input_publishes_nothing(uri: str, tmp_path: Path) -> None:
    folder = write_embeddings(tmp_path / "e", ["d1"], np.zeros((1, 4)), {"title": [""]})
    with pytest.raises(InputError, match="no document has an input of any channel"):
        publish(folder, uri)
    with pytest.raises(InputError, match="nothing is published"):
        EngineClient(uri, VectorEncoder(VECTORS))


def test_an_id_that_is_too_long_is_named(uri: str, tmp_path: Path) -> None:
    folder = write_embeddings(tmp_path / "e", ["é" * 501], np.eye(1, 4), {"title": ["x"]})
    with pytest.raises(InputError, match="may have 1000 bytes in Milvus; shorten it"):
        publish(folder, uri)


def test_terms_are_stemmed_words_as_often_as_a_column_weighs() -> None:
    batch = pa.record_batch({"title": ["Red SOFAS!", None], "description": ["赤いソファ", "कुर्सी"]})
    terms = document_terms(batch, {"title": 2, "description": 1}, "en")
    assert terms[0] == "red sofa red sofa 赤い いソ ソフ ファ"
    assert terms[1] == "कुर्सी".encode().hex()
    assert query_terms(["sofas, red", b"\xff", ""], "en") == ["sofa red", "", ""]
    assert query_terms(["running laufen"], "de") == ["running lauf"]
    assert len(query_terms(["w " * 100], "en")[0].split()) == 32
    (long,) = document_terms(pa.record_batch({"title": ["赤い" * 1_000]}), {"title": 10}, "en")
    assert MAX_BYTES - 7 <= len(long.encode()) <= MAX_BYTES
    assert set(long.split()) == {"赤い", "い赤"}


class _Cluster(http.server.BaseHTTPRequestHandler):
    """A scripted object storage and the import API of Milvus, which reads the stored Parquet files."""

    objects: dict[str, bytes]
    imported: list[pd.DataFrame]
    lost = 0

    def do_HEAD(self) -> None:
        self._answer(200 if self.path.rstrip("/") == "/bucket" else 404)

    def do_GET(self) -> None:
        self._answer(200, b'<LocationConstraint xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>')

    def do_PUT(self) -> None:
        self.objects[urllib.parse.urlsplit(self.path).path] = self._body()
        self._answer(200)

    def do_POST(self) -> None:
        request = json.loads(self._body())
        if self.path == "/v2/vectordb/jobs/import/create":
            assert request["collectionName"] == "products_1_filling"
            assert self.headers["Authorization"] == "Bearer root:secret"
            files = [file for group in request["files"] for file in group]
            self.imported += [pd.read_parquet(pa.BufferReader(self.objects[f"/bucket/{file}"])) for file in files]
            self._answer(200, b'{"code": 0, "data": {"jobId": "7"}}')
        else:
            assert (self.path, request["jobId"]) == ("/v2/vectordb/jobs/import/describe", "7")
            rows = sum(map(len, self.imported)) - self.lost
            data = {"code": 0, "data": {"state": "Completed", "importedRows": rows}}
            self._answer(200, json.dumps(data).encode())

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"0"')
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def cluster() -> Iterator[tuple[str, type[_Cluster]]]:
    handler = type("Cluster", (_Cluster,), {"objects": {}, "imported": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


def test_imported_files_hold_the_rows(
    embeddings: dict[str, Path], cluster: tuple[str, type[_Cluster]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, handler = cluster
    monkeypatch.setattr(object_storage, "CHUNK_BYTES", 30_000)  # several files
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    storage = read_storage(f"{address}/bucket")
    settings = {"dimension": DIMENSION, "filters": ["country"], "lexical": {"title": 2}, "language": "en"}
    batches = [
        make_rows(batch.column("document_id"), vectors_of(batch), batch, settings)
        for batch in EmbeddingShards(embeddings["a"]).batches(["title", "country"], 200)
    ]
    arguments = (storage, address, "root:secret", make_schema(settings), "products_1_filling", batches)
    assert import_rows(*arguments) == DOCUMENTS
    assert len(handler.imported) > 1
    rows = pd.concat(handler.imported).sort_values("document_id", key=lambda ids: ids.str[1:].astype(int))
    assert list(rows) == ["document_id", "embedding", "filter_country", "terms"]
    assert rows["document_id"].tolist() == [f"a{row}" for row in range(DOCUMENTS)]
    np.testing.assert_array_equal(np.stack(rows["embedding"].tolist()).astype(np.float32), VECTORS)
    assert rows["filter_country"].tolist() == ["us" if row % 2 else "" for row in range(DOCUMENTS)]
    assert rows["terms"].tolist()[31] == "word1 common word1 common"
    handler.lost = 1
    with pytest.raises(InputError, match="documents were imported"):
        import_rows(*arguments)


def test_storage_that_is_not_a_bucket_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    for url in ("bucket", "http://host", "s3://bucket/x", "http://host/a/b"):
        with pytest.raises(InputError, match="must be the address of a bucket"):
            read_storage(url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    with pytest.raises(InputError, match="set AWS_SECRET_ACCESS_KEY in the environment"):
        read_storage("http://host/bucket")


def test_a_storage_that_does_not_answer_is_named() -> None:
    storage = ObjectStorage("127.0.0.1:1", False, "bucket", "key", "secret")
    settings = {"dimension": 2, "filters": [], "lexical": {}}
    rows = [[{"document_id": "d", "embedding": np.array([1, 0], np.float32)}]]
    with pytest.raises(InputError, match="storage 127.0.0.1:1/bucket: the import failed: "):
        import_rows(storage, "http://127.0.0.1:1", "", make_schema(settings), "c", rows)


def test_a_bucket_that_does_not_exist_is_named(cluster: tuple[str, type[_Cluster]]) -> None:
    storage = ObjectStorage(cluster[0].removeprefix("http://"), False, "other", "key", "secret")
    schema = make_schema({"dimension": 2, "filters": [], "lexical": {}})
    with pytest.raises(InputError, match="/other: there is no such bucket"):
        import_rows(storage, cluster[0], "", schema, "c", [])


def q2s(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    monkeypatch.setattr(sys, "argv", ["q2s", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        cli.run(app)
    return exit_.value.code, *capsys.readouterr()


def test_the_command_publishes_and_rolls_back(
    embeddings: dict[str, Path], uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        arguments = ("--embeddings", str(embeddings["a"]), "--uri", uri, "--filter", "country", "--lexical", "title=2")
        status, output, _ = q2s(capsys, monkeypatch, "publish", *arguments)
        assert (status, output) == (0, f"products is products_{number} at {uri}: {DOCUMENTS} documents\n")
    status, output, _ = q2s(capsys, monkeypatch, "publish", "--uri", uri, "--rollback")
    assert (status, output) == (0, f"products is products_1 at {uri}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["publish", "--uri", "x.db"], "give one of --embeddings, --rollback, and the changes --upsert and --delete"),
        (["publish", "--uri", "x.db", "--rollback", "--embeddings", "e"], "give one of --embeddings, --rollback"),
        (["publish", "--uri", "x.db", "--rollback", "--run", "r"], "--run goes with --upsert and --delete"),
        (["publish", "--uri", "x.db", "--upsert", "u"], "--run goes with --upsert and --delete"),
        (["publish", "--uri", "x.db", "--embeddings", "none"], "embeddings none: has no _manifest.json"),
        (["query", "sofa", "--engine", "milvus"], "--engine milvus and --uri go together"),
        (["query", "sofa", "--uri", "x.db"], "--engine milvus and --uri go together"),
        (["query", "sofa", "--run", "r"], "--run is for --engine milvus"),
        (["query", "sofa", "--engine", "milvus", "--uri", "x.db", "--target", "127.0.0.1:1"], "no server answers at"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, error = q2s(capsys, monkeypatch, *arguments)
    assert status == 2
    assert message in error
    assert error.count("\n") == 1
