"""The HTML and JSON of the demo page over a real server and port, and tools/demo_app.py in its own process."""

import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import demo_page
import grpc
import httpx
import numpy as np
import preloaded
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import serving_models
from demo_page import CHANNELS, HOSTILE, LEFT_OUT, WORD, WORDS_SCORE, DemoPage
from starlette.testclient import TestClient
from tiny_market import TinyMarket

from q2s_tf.demo_app.app import make_app, serve
from q2s_tf.demo_app.search import Search
from q2s_tf.demo_app.shown_documents import ShownDocuments
from q2s_tf.errors import InputError
from q2s_tf.report.explain import explain
from q2s_tf.server.server import Server
from q2s_tf.serving import ServingError
from q2s_tf.serving.client import Client

ROOT = Path(__file__).parents[1]
PIXEL = bytes.fromhex("47494638396101000100800000ffffff00000021f90400000000002c00000000010001000002024401003b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo_page")


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[DemoPage]:
    with demo_page.serve_market(folder) as running:
        yield running


def ask(page: DemoPage, query: str, country: str = "", number: int = 1) -> dict[str, Any]:
    asked = {"query": query, "country": country, "page": str(number)}
    answer = httpx.get(f"{page.address}/api/search", params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(side: dict[str, Any]) -> list[str]:
    return [result["document_id"] for result in side["results"]]


def test_all_pages_together_are_the_ranking_of_the_retriever(page: DemoPage) -> None:
    pages = [ask(page, "red sofa", "US", number)["hybrid"] for number in (1, 2, 3, 4)]
    expected = demo_page.scores("red sofa", "US")
    assert [name for side in pages for name in ids(side)] == [name for name, _ in expected]
    found = [result["score"] for side in pages for result in side["results"]]
    np.testing.assert_allclose(found, [cosine + WORDS_SCORE for _, cosine in expected], atol=1e-5)
    assert [result["rank"] for side in pages for result in side["results"]] == list(range(1, len(expected) + 1))
    assert [side["more"] for side in pages] == [True, True, True, False]


def test_later_pages_are_searched_with_more_effort(page: DemoPage) -> None:
    efforts = []
    for number in (1, 2, 3):
        efforts.append(ask(page, "lamp", number=number)["hybrid"]["effort"])
        assert page.efforts[-1] == efforts[-1]  # the effort of the request to the server
    assert efforts == [2, 4, 8]


def test_bm25_has_the_documents_that_share_a_word(page: DemoPage) -> None:
    side = ask(page, WORD.upper())["bm25"]
    sharing = {row["document_id"] for row in demo_page.make_rows() if WORD in row["title"]}
    assert set(ids(side)) == sharing
    assert not side["more"]
    scores = [result["score"] for result in side["results"]]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0
    assert ids(ask(page, "unheard-of")["bm25"]) == []


def test_pages_of_bm25_do_not_overlap(page: DemoPage) -> None:
    pages = [ask(page, f"{WORD} lamp", number=number)["bm25"] for number in (1, 2, 3)]
    names = [name for side in pages for name in ids(side)]
    rows = demo_page.make_rows()
    assert sorted(names) == sorted(r["document_id"] for r in rows if {WORD, "lamp"} & set(r["title"].split()))
    assert [side["more"] for side in pages] == [True, True, False]


def test_results_have_the_columns_of_the_documents_table(page: DemoPage) -> None:
    rows = {row["document_id"]: row for row in demo_page.make_rows()}
    pages = [ask(page, "sofa", number=number) for number in (1, 2, 3)]
    results = [result for answer in pages for side in ("hybrid", "bm25") for result in answer[side]["results"]]
    for result in results:
        row = rows.get(result["document_id"], {})
        for name in ("title", "description", "language", "country"):
            assert result.get(name) == row.get(name)
        assert ("title" in result) == (result["document_id"] in rows)
    assert LEFT_OUT in {result["document_id"] for result in results}


def test_hybrid_results_have_the_parts_of_their_score(page: DemoPage) -> None:
    cosines = dict(demo_page.scores("sofa", "AE"))
    results = [result for number in (1, 2, 3) for result in ask(page, "sofa", "AE", number)["hybrid"]["results"]]
    assert {result["document_id"] for result in results} == set(serving_models.IDS)
    assert min(cosines.values()) < 0 < max(cosines.values())
    for result in results:
        cosine = cosines[result["document_id"]]
        parts = [result[name] for name in ("score", "embedding_score", "lexical_score")]
        np.testing.assert_allclose(parts, [cosine + WORDS_SCORE, cosine, serving_models.LEXICAL], atol=1e-6)
    assert list(results[0])[:5] == ["rank", "score", "embedding_score", "lexical_score", "document_id"]
    assert list(ask(page, WORD)["bm25"]["results"][0])[:3] == ["rank", "score", "document_id"]


def test_channel_weights_are_those_of_the_query_tower(page: DemoPage) -> None:
    answer = ask(page, "sofa", "AE")
    assert [channel["name"] for channel in answer["channels"]] == CHANNELS
    vector = serving_models.Tower().embed("sofa", "AE").numpy()[:3]
    softmax = np.exp(vector) / np.exp(vector).sum()
    np.testing.assert_allclose([channel["weight"] for channel in answer["channels"]], softmax, atol=1e-6)


def test_channels_have_numbers_without_the_export(folder: Path, page: DemoPage) -> None:
    with (
        Server(folder / "models", port=0) as server,
        demo_page.serve_page(server.address, folder / "documents.parquet", folder / "elsewhere") as other,
    ):
        channels = ask(other, "sofa")["channels"]
    assert [channel["name"] for channel in channels] == ["channel 1", "channel 2", "channel 3"]


def test_the_parts_of_a_result_are_those_of_an_explanation(
    run: Path, models: Path, market: TinyMarket, tmp_path: Path
) -> None:
    """Every kind of channel, on the market of the run; the parts add up to the cosine."""
    row = market.document_rows[0]
    explanation = explain(run, market.documents, "red sofa", "US", row["document_id"])
    match = next(match for match in explanation.ranking if match["rank"] == explanation.rank)
    with Server(models, port=0) as server:
        with demo_page.serve_page(server.address, market.documents, None, run=run) as page:
            results = {each["document_id"]: each for each in ask(page, "red sofa", "US")["hybrid"]["results"]}
            asked = {"query": "red sofa", "country": "US", "document_id": row["document_id"]}
            channels = httpx.get(f"{page.address}/api/channels", params=asked).json()["channels"]
            unknown = httpx.get(f"{page.address}/api/channels", params={**asked, "document_id": "none"})
            empty = httpx.get(f"{page.address}/api/channels", params={**asked, "query": " "})
        with demo_page.serve_page(server.address, market.documents, None) as page:
            without = httpx.get(f"{page.address}/api/channels", params=asked)
    parts = {channel["name"]: channel["part"] for channel in channels}
    present = {name for name, weight in explanation.document.weights.items() if weight is not None}
    assert set(parts) == present
    assert parts == pytest.approx({name: match["contributions"][name] for name in present}, abs=1e-6)
    assert sum(parts.values()) == pytest.approx(results[row["document_id"]]["embedding_score"], abs=1e-5)
    demo_page.save_models(tmp_path / "models")
    with (
        Server(tmp_path / "models", port=0) as other,
        pytest.raises(InputError, match="--explain .*: the query tower of the server was exported from another run"),
        demo_page.serve_page(other.address, market.documents, None, run=run),
    ):
        pass
    for answer, message in (
        (unknown, "no such document_id"),
        (empty, "query must not be empty; write what is looked for"),
        (without, "the page has no run: start it with --explain RUN"),
    ):
        assert (answer.status_code, answer.json()) == (400, {"error": message})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "query must not be empty; write what is looked for"),
        ({"query": " \n"}, "query must not be empty; write what is looked for"),
        ({"query": "x" * 2_049}, "query and country may have 2048 characters each; shorten them"),
        ({"query": "x", "page": "0"}, "page must be 1 to 50, got 0"),
        ({"query": "x", "page": "51"}, "page must be 1 to 50, got 51"),
        ({"query": "x", "page": "-1"}, "page must be a whole number from 1 to 50, got '-1'"),
        ({"query": "x", "page": "²"}, "page must be a whole number from 1 to 50, got '²'"),
        ({"query": "x", "page": "NaN"}, "page must be a whole number from 1 to 50, got 'NaN'"),
        ({"query": "x", "page": "1e3"}, "page must be a whole number from 1 to 50, got '1e3'"),
        ({"query": "x", "page": "9" * 4_301}, f"page must be a whole number from 1 to 50, got '{'9' * 39}"),
        ({"query": "x", "k": "9" * 4_301}, "unknown parameter 'k'; the parameters are query, country, page"),
        ({"query": "x", "y" * 9_000: "1"}, f"unknown parameter '{'y' * 39}; the parameters are query, country, page"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(page: DemoPage, asked: dict[str, str], message: str) -> None:
    answer = httpx.get(f"{page.address}/api/search", params=asked)
    assert (answer.status_code, answer.json()) == (400, {"error": message})


def test_a_query_may_have_invalid_bytes(page: DemoPage) -> None:
    answer = httpx.get(f"{page.address}/api/search?query=%00%ff%ed%a0%80&country=%00")
    assert answer.status_code == 200
    assert len(answer.json()["hybrid"]["results"]) == 10


def test_a_stopped_server_is_an_error_of_one_line_until_it_is_back(
    tmp_path: Path, folder: Path, page: DemoPage
) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(Server(folder / "models", port=0))
        other = stack.enter_context(demo_page.serve_page(first.address, folder / "documents.parquet", None))
        first.stop()
        answer = httpx.get(f"{other.address}/api/search", params={"query": "sofa"}, timeout=30)
        line = f"no server answers at {first.address}; start one with: q2s serve --models saved_models"
        assert (answer.status_code, answer.json()) == (503, {"error": line})
        stack.enter_context(Server(folder / "models", port=int(first.address.rpartition(":")[2])))
        statuses = (httpx.get(f"{other.address}/api/search", params={"query": "sofa"}, timeout=30) for _ in range(60))
        assert any(answer.status_code == 200 for answer in statuses)


@pytest.mark.parametrize(
    ("code", "status", "line"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "the server at there:1 did not answer in time; try again"),
        (grpc.StatusCode.INTERNAL, 502, "the server at there:1 refused: INTERNAL: two lines"),
    ],
)
def test_an_error_of_the_server_is_one_line(
    folder: Path, page: DemoPage, code: grpc.StatusCode, status: int, line: str
) -> None:
    class Refusing(Search):
        def page(self, query: str, country: str = "", number: int = 1) -> dict[str, Any]:
            if query == "refused":
                raise ServingError(code, "two\nlines")
            return super().page(query, country, number)

    with Server(folder / "models", port=0) as server, Client(server.address) as client:
        app = make_app(Refusing(client, folder / "documents.parquet"), "there:1")
    answer = TestClient(app).get("/api/search?query=refused")
    assert (answer.status_code, answer.json()) == (status, {"error": line})
    assert HEADERS.items() <= dict(answer.headers).items()


def test_a_defect_is_one_line_without_internals(folder: Path, page: DemoPage) -> None:
    class Defective(Search):
        def page(self, query: str, country: str = "", number: int = 1) -> dict[str, Any]:
            if query == "defect":
                raise RuntimeError("secret " * 10_000)
            if query == "long":
                raise ServingError(grpc.StatusCode.INTERNAL, "long " * 10_000)
            return super().page(query, country, number)

    with Server(folder / "models", port=0) as server, Client(server.address) as client:
        app = make_app(Defective(client, folder / "documents.parquet"), "there:1")
    client = TestClient(app, raise_server_exceptions=False)
    answer = client.get("/api/search?query=defect")
    assert (answer.status_code, answer.json()) == (500, {"error": "the demo page has a defect"})
    assert HEADERS.items() <= dict(answer.headers).items()
    answer = client.get("/api/search?query=long")
    assert answer.status_code == 502
    assert len(answer.json()["error"]) < 400


HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' http: https:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/api/search?query=sofa", 200),
        ("GET", "/api/search", 400),
        ("POST", "/api/search", 405),
        ("GET", "/nothing", 404),
        ("GET", "/picture", 404),
        ("GET", "/static/page.js", 200),
        ("GET", "/static/page.css", 200),
        ("GET", "/static/none", 404),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/%2e%2e/app.py", 404),
    ],
)
def test_every_answer_has_the_security_headers(page: DemoPage, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, page.address + path)
    assert answer.status_code == status
    assert HEADERS.items() <= dict(answer.headers).items()
    if status >= 400:
        assert list(answer.json()) == ["error"]


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost:8080", "LOCALHOST", "[::1]:8080", "127.0.0.1:1"])
def test_the_names_of_the_loopback_interface_are_answered(page: DemoPage, name: str) -> None:
    assert httpx.get(page.address, headers={"Host": name}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/api/search?query=sofa", "/picture", "/static/page.js", "/nothing"])
@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1.evil.example:8080", "localhost.evil.example", "[::", ""])
def test_requests_for_other_host_names_are_refused(page: DemoPage, name: str, path: str) -> None:
    answer = httpx.get(page.address + path, headers={"Host": name})
    assert (answer.status_code, answer.json()) == (400, {"error": "unknown host name"})
    assert HEADERS.items() <= dict(answer.headers).items()


def test_a_page_on_all_addresses_is_reached_by_the_address_of_the_connection(folder: Path, page: DemoPage) -> None:
    with Server(folder / "models", port=0) as server, Client(server.address) as client:
        app = make_app(Search(client, folder / "documents.parquet"), "there:1", "0.0.0.0")
    assert TestClient(app, base_url="http://192.0.2.7:8080").get("/").status_code == 200
    answer = TestClient(app, base_url="http://192.0.2.7:8080").get("/", headers={"Host": "evil.example"})
    assert answer.status_code == 400


@pytest.mark.parametrize("languages", [("en", None), (None,), ("en",)])
def test_there_are_examples_for_any_languages(tmp_path: Path, languages: tuple[str | None, ...]) -> None:
    rows = [{**row, "language": languages[at % len(languages)]} for at, row in enumerate(demo_page.make_rows())]
    shown = ShownDocuments(demo_page.write_documents(tmp_path / "documents.parquet", rows))
    examples = shown.examples()
    assert len({row["document_id"] for row in examples}) == 5
    assert all(len(row["title"]) >= 8 for row in examples)


def test_a_catalogue_without_titles_has_no_line_of_examples(tmp_path: Path, folder: Path, page: DemoPage) -> None:
    rows = [{"document_id": row["document_id"], "title": None} for row in demo_page.make_rows()]
    schema = pa.schema({"document_id": pa.string(), "title": pa.string()})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "documents.parquet")
    with (
        Server(folder / "models", port=0) as server,
        demo_page.serve_page(server.address, tmp_path / "documents.parquet", None) as other,
    ):
        assert "Examples" not in httpx.get(other.address).text
    assert "Examples" in httpx.get(page.address).text


def test_the_page_escapes_titles_and_loads_nothing_from_other_hosts(page: DemoPage) -> None:
    answer = httpx.get(f"{page.address}/?query=x")
    assert "<script>document" not in answer.text
    assert HOSTILE not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    files = re.findall(r'(?:src|href)="(/static/[^"]+)"', answer.text)
    assert len(files) == 3
    for text in [answer.text, *(httpx.get(page.address + file).text for file in files)]:
        assert not re.search(r"(?<!xmlns=\")https?://", text)


def test_only_pictures_beneath_the_documents_folder_are_sent(tmp_path: Path) -> None:
    inside, outside = tmp_path / "market", tmp_path / "secret.gif"
    (inside / "pictures").mkdir(parents=True)
    outside.write_bytes(PIXEL)
    (inside / "pictures" / "a.gif").write_bytes(PIXEL)
    (inside / "pictures" / "a.svg").write_text("<svg/>")
    (inside / "pictures" / "link.gif").symlink_to(outside)
    refused = ["../secret.gif", str(outside), "pictures/a.svg", "documents.parquet", "pictures/link.gif", "no.gif"]
    refused += ["\0.gif", "x" * 5_000 + ".gif", "javascript:alert(1)", "pictures"]
    named = ["pictures/a.gif", "https://pictures.example/a.gif", *refused]
    models, rows = inside / "models", demo_page.make_rows()
    for row, name in zip(rows, named, strict=False):
        row["image"] = name
    demo_page.save_models(models)
    documents = demo_page.write_documents(inside / "documents.parquet", rows)
    with Server(models, port=0) as server, demo_page.serve_page(server.address, documents, models, "image") as page:
        answers = [ask(page, "sofa", number=number) for number in (1, 2, 3)]
        shown = {r["document_id"]: r["picture"] for answer in answers for r in answer["hybrid"]["results"]}
        assert {name: picture for name, picture in shown.items() if picture} == {
            "d0": "/picture?document_id=d0",
            "d1": "https://pictures.example/a.gif",
        }
        picture = httpx.get(page.address + shown["d0"])
        assert (picture.content, picture.headers["content-type"]) == (PIXEL, "image/gif")
        for number in range(1, len(named)):
            assert httpx.get(f"{page.address}/picture", params={"document_id": f"d{number}"}).status_code == 404
        assert httpx.get(f"{page.address}/picture").status_code == 404


def test_a_missing_picture_column_is_named(folder: Path, page: DemoPage) -> None:
    documents = folder / "documents.parquet"
    with pytest.raises(InputError, match=f"documents {documents}: has no column photo to take pictures from"):
        ShownDocuments(documents, "photo")


def test_a_picture_column_of_vectors_is_named(folder: Path, page: DemoPage) -> None:
    with pytest.raises(InputError, match="column image_embeddings"):
        ShownDocuments(folder / "documents.parquet", "image_embeddings")


def test_the_page_needs_no_document_tower(tmp_path: Path, folder: Path, page: DemoPage) -> None:
    for model in ("query_tower", "retriever"):
        shutil.copytree(folder / "models" / model, tmp_path / model)
    with Server(tmp_path, port=0) as server, Client(server.address) as client:
        assert Search(client, folder / "documents.parquet").page("sofa")["hybrid"]["results"]


def test_a_page_without_a_server_does_not_start(folder: Path, page: DemoPage) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        target = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(InputError, match=f"no server answers at {target}; start one with"):
            serve(folder / "documents.parquet", Client(target, 5.0), folder / "models", port=0)


def test_a_server_without_a_retriever_is_named(tmp_path: Path, folder: Path, page: DemoPage) -> None:
    shutil.copytree(folder / "models" / "query_tower", tmp_path / "query_tower")
    with Server(tmp_path, port=0) as server, pytest.raises(InputError, match=f"{server.address} refused: .*retriever"):
        serve(folder / "documents.parquet", Client(server.address), tmp_path, port=0)


def test_a_taken_port_is_named(folder: Path, page: DemoPage) -> None:
    port = int(page.address.rpartition(":")[2])
    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}: .*; give another --port, or 0"):
        serve(folder / "documents.parquet", Client("127.0.0.1:1"), folder / "models", port=port)


def test_the_command_line_serves_until_sigterm(folder: Path, page: DemoPage, tmp_path: Path) -> None:
    tool = [ROOT / "tools" / "demo_app.py", "--port", "0"]
    options = ["--documents", folder / "documents.parquet", "--models", folder / "models"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    with Server(folder / "models", port=0) as server:
        process = preloaded.Program(
            [*tool, *options, "--target", server.address], stderr=tmp_path / "errors", env=environment
        )
        try:
            line = process.stdout.readline()
            assert re.fullmatch(r"demo page on http://127\.0\.0\.1:\d+\n", line)
            assert len(ask(DemoPage(line.split()[-1], []), "sofa")["hybrid"]["results"]) == 10
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
