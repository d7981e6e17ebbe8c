"""Publishing to milvus-lite and searching it, compared with an exported retriever of the same documents."""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import write_embeddings
from tiny_market import TinyMarket

import q2s_tf
from q2s_tf import cli
from q2s_tf.commands import app
from q2s_tf.demo_app.search import Search
from q2s_tf.errors import InputError
from q2s_tf.evaluation.collection import INDEX, MODEL
from q2s_tf.milvus.change_documents import change_documents
from q2s_tf.milvus.engine_client import EngineClient
from q2s_tf.milvus.publish import publish
from q2s_tf.milvus.query_encoders import LocalQueryTower, ServedQueryTower
from q2s_tf.models import Towers, encode, hash_towers, load
from q2s_tf.server.server import Server
from q2s_tf.serving.client import Client
from q2s_tf.serving.export import export
from q2s_tf.serving.pages import Matches
from q2s_tf.serving.search_client import Embeddings
from q2s_tf.serving.serving_error import ServingError
from q2s_tf.serving.update import update_index

DOCUMENTS = 1_500
WORDS = [
    *("sofa", "sofas", "table", "tables", "lamp", "lamps", "phone", "phones", "chair", "chairs", "shelf", "bicycle"),
    *("bicycles", "running", "shoes", "garden", "tools", "wooden", "metal", "red", "green", "blue", "black", "white"),
    *("leather", "folding", "electric", "kitchen", "outdoor", "vintage", "modern", "small", "large", "light", "heavy"),
    *("painted", "cotton", "glass", "steel", "oak", "pine", "desk", "bed", "mattress", "mirror", "carpet", "curtain"),
]
COUNTRIES = ["US", "JP", None, "it's", 'a "quoted" one', "back\\slash", "Việt Nam", "x' or 1 == 1 or 'x", "{value}"]
"""Values to filter by, with what is special in filter expressions."""


class Catalogue(NamedTuple):
    """A table of documents, and the same documents in a retriever and in milvus-lite."""

    documents: Path
    run: Path
    models: Path
    uri: str


def make_documents(count: int, seed: int, prefix: str) -> list[dict[str, str | None]]:
    """Titles of four words; every twentieth document has no text."""
    random = np.random.default_rng(seed)
    return [
        {
            "document_id": f"{prefix}{number}'\"\\é",
            "title": "" if number % 20 == 7 else " ".join(random.choice(WORDS, 4)),
            "country": COUNTRIES[random.integers(len(COUNTRIES))],
        }
        for number in range(count)
    ]


def embed(folder: Path, rows: list[dict[str, str | None]], towers: Towers) -> Path:
    """The folder that `q2s embed` would write."""
    table = pa.Table.from_pylist(rows)
    columns = {name: table[name].to_pylist() for name in ("title", "country")}
    embeddings = encode(towers.document, table)["embedding"]
    return write_embeddings(folder, table["document_id"].to_pylist(), embeddings, columns, hash_towers(towers))


@pytest.fixture(scope="module")
def run(lean_run: Path) -> Path:
    """These tests need no transformer."""
    return lean_run


@pytest.fixture(scope="module")
def towers(run: Path) -> Towers:
    return load(run)


@pytest.fixture(scope="module")
def catalogue(run: Path, towers: Towers, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("milvus")
    rows = make_documents(DOCUMENTS, 1, "d")
    pq.write_table(pa.Table.from_pylist(rows), folder / "documents.parquet")
    filters, lexical = ["country"], {"title": 2.0}
    export(run, folder / "documents.parquet", folder / "models", "exact", filters=filters, lexical=lexical)
    uri = str(folder / "catalogue.db")
    published = publish(embed(folder / "embeddings", rows, towers), uri, filters=filters, lexical=lexical)
    assert published == ("products_1", DOCUMENTS - DOCUMENTS // 20, DOCUMENTS // 20)
    return Catalogue(folder / "documents.parquet", run, folder / "models", uri)


@pytest.fixture(scope="module")
def retriever(catalogue: Catalogue) -> Iterator[Client]:
    with Server(catalogue.models, port=0, poll_seconds=0.05) as server, Client(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def engine(catalogue: Catalogue, towers: Towers) -> Iterator[EngineClient]:
    with EngineClient(catalogue.uri, LocalQueryTower(towers)) as client:
        yield client


class Requests(NamedTuple):
    """Queries of words of the catalogue, the countries of the searchers, and filters."""

    queries: list[str]
    countries: list[str]
    filters: list[str]


def make_requests(count: int, seed: int) -> Requests:
    random = np.random.default_rng(seed)
    queries = [" ".join(random.choice(WORDS, random.integers(1, 4))) for _ in range(count)]
    filters = [str(random.choice([value or "" for value in COUNTRIES])) for _ in range(count)]
    return Requests(queries, random.choice(["US", "", "JP"], count).tolist(), filters)


def check_equal(got: Matches, expected: Matches) -> None:
    """The same documents in the order of their scores; those of equal scores in any order."""
    for row, scores in enumerate(expected.scores):
        width = int((expected.document_ids[row] != "").sum())
        np.testing.assert_allclose(got.scores[row, :width], scores[:width], atol=1e-5)
        assert (got.document_ids[row, width:] == "").all()
        better = scores > scores[max(width - 1, 0)] + 2e-5
        assert set(expected.document_ids[row][better]) <= set(got.document_ids[row])


def overlap(got: Matches, expected: Matches, k: int = 10) -> float:
    """The mean share of the first k documents that both have; of equal scores any document counts."""
    shares = []
    for row, scores in enumerate(expected.scores):
        count = int((expected.document_ids[row][:k] != "").sum())
        if count:
            shares.append((got.scores[row, :count] >= scores[count - 1] - 1e-5).mean())
    return float(np.mean(shares))


@pytest.mark.parametrize("filtered", [False, True])
def test_cosines_rank_the_documents_of_the_retriever(engine: EngineClient, retriever: Client, filtered: bool) -> None:
    requests = make_requests(40, 5)
    options = {"k": 12, "lexical_weight": 0.0, "version": 1}
    options |= {"filters": {"country": requests.filters}} if filtered else {}
    check_equal(
        engine.retrieve(requests.queries, requests.countries, **options),
        retriever.retrieve(requests.queries, requests.countries, **options),
    )


@pytest.mark.parametrize("filtered", [False, True])
def test_hybrid_scores_are_those_of_the_retriever(engine: EngineClient, retriever: Client, filtered: bool) -> None:
    requests = make_requests(40, 6)
    filters = {"country": requests.filters} if filtered else None
    got = engine.retrieve(requests.queries, requests.countries, 10, filters=filters, version=1)
    expected = retriever.retrieve(requests.queries, requests.countries, 10, filters=filters, version=1)
    assert overlap(got, expected) >= 0.95
    for row, names in enumerate(expected.document_ids):
        ranks = {name: rank for rank, name in enumerate(got.document_ids[row]) if name}
        both = [(rank, ranks[name]) for rank, name in enumerate(names) if name in ranks]
        for column, wanted in zip(got[1:4], expected[1:4], strict=True):
            np.testing.assert_allclose([column[row, b] for _, b in both], [wanted[row, a] for a, _ in both], atol=2e-5)


def test_a_least_score_and_pages(engine: EngineClient) -> None:
    (all_scores,) = engine.retrieve(["red sofa"], ["US"], k=30).scores
    least = float(all_scores[14])
    matches = engine.retrieve(["red sofa"], ["US"], k=30, min_score=least)
    assert (matches.document_ids[0] != "").sum() == 15
    assert matches.document_ids[0, 15:].tolist() == [""] * 15
    assert [column[0, 20] for column in matches[1:4]] == [-1, -1, 0]
    pages = list(engine.pages("red sofa", "US", page_size=6, min_score=least))
    assert [len(page.document_ids) for page in pages] == [6, 6, 3]
    assert [name for page in pages for name in page.document_ids] == matches.document_ids[0, :15].tolist()
    assert {page.version for page in pages} == {1}


def test_queries_without_words_or_rows(engine: EngineClient) -> None:
    assert engine.retrieve([], k=3).document_ids.shape == (0, 3)
    matches = engine.retrieve(["???", "red sofa"], k=3)
    assert (matches.document_ids[1] != "").all()
    assert (matches.lexical_scores[0] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 16_385}, "k must be at most 16,384, the limit of Milvus, got 16385"),
        ({"k": 0}, "k must be a whole number of at least 1"),
        ({"effort": 4}, "effort must be 0 for Milvus"),
        ({"filters": {"colour": "red"}}, 'no filter "colour"; products_1 was published to filter by country'),
        ({"filters": ["country"]}, "filters must be a dict"),
        ({"filters": {"country": ["US", "JP"]}}, "filter country must have one value for each of 1 queries, got 2"),
        ({"lexical_weight": 101.0}, "lexical_weight must be at most 100"),
        ({"min_score": float("nan")}, "min_score must be a finite number"),
        ({"countries": [1.5]}, "countries must be texts"),
        ({"version": 9}, "NOT_FOUND"),
    ],
)
def test_wrong_arguments_are_named(engine: EngineClient, arguments: dict, message: str) -> None:
    with pytest.raises((InputError, ServingError), match=message):
        engine.retrieve(["lamp"], **{"version": 1, **arguments})


def test_the_served_tower_of_the_run_embeds(catalogue: Catalogue, engine: EngineClient, retriever: Client) -> None:
    with EngineClient(catalogue.uri, ServedQueryTower(retriever, catalogue.models)) as client:
        got, expected = client.retrieve(["red sofa"], ["US"]), engine.retrieve(["red sofa"], ["US"])
        assert got.document_ids.tolist() == expected.document_ids.tolist()
        manifest = catalogue.models / "query_tower" / "1" / "assets.extra" / "manifest.json"
        assert client.channel_names == json.loads(manifest.read_text())["channels"]


def test_the_collection_of_another_run_is_refused(
    catalogue: Catalogue, towers: Towers, retriever: Client, tmp_path: Path
) -> None:
    uri = str(tmp_path / "other.db")
    rows = make_documents(30, 2, "o")
    table = pa.Table.from_pylist(rows)
    embeddings = encode(towers.document, table)["embedding"]
    columns = {name: table[name].to_pylist() for name in ("title", "country")}
    publish(write_embeddings(tmp_path / "other", table["document_id"].to_pylist(), embeddings, columns), uri)
    with EngineClient(uri, LocalQueryTower(towers)) as client, pytest.raises(InputError, match="is of another run"):
        client.retrieve(["lamp"])
    served = ServedQueryTower(retriever, catalogue.models)
    with EngineClient(uri, served) as client, pytest.raises(InputError, match="no query tower of the run of the coll"):
        client.retrieve(["lamp"])
    with pytest.raises(InputError, match="were embedded with other weights"):
        change_documents(catalogue.run, uri, upsert=catalogue.documents)


class VersionsClient:
    """A client of a query tower whose served versions embed any query as their number."""

    target = "there:1"

    def __init__(self, *served: int):
        self.served = served

    def embed_query(self, queries: list[str], countries: list[str], version: int) -> Embeddings:
        if version not in self.served:
            raise ServingError(grpc.StatusCode.NOT_FOUND, "no such version")
        return Embeddings(np.full((1, 1), version), np.ones((1, 1)), version)


def test_the_version_of_the_run_is_asked_not_the_newest(tmp_path: Path) -> None:
    hashes = {"tokenizer_sha256": "t", "weights_sha256": "old"}
    for version, weights in ((1, "old"), (2, "old"), (3, "new")):
        folder = tmp_path / "query_tower" / str(version) / "assets.extra"
        folder.mkdir(parents=True)
        manifest = {**hashes, "weights_sha256": weights, "channels": [f"channel of {version}"]}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    client: Any = VersionsClient(1, 2, 3)
    tower = ServedQueryTower(client, tmp_path)
    assert tower.embed(["sofa"], ["US"], hashes).version == 2
    assert tower.embed(["sofa"], ["US"], {**hashes, "weights_sha256": "new"}).version == 3
    assert tower.channel_names == ["channel of 3"]
    client.served = (1, 3)
    assert tower.embed(["sofa"], ["US"], hashes).version == 1
    client.served = (3,)
    with pytest.raises(InputError, match="at there:1 has no query tower of the run .*serve one of its versions 1, 2"):
        tower.embed(["sofa"], ["US"], hashes)
    with pytest.raises(InputError, match="export that run"):
        tower.embed(["sofa"], ["US"], {**hashes, "weights_sha256": "other"})


def test_the_demo_page_searches_milvus(catalogue: Catalogue, engine: EngineClient) -> None:
    search = Search(engine, catalogue.documents)
    page = search.page("red sofa", "US", 2)
    assert [result["rank"] for result in page["hybrid"]["results"]] == list(range(11, 21))
    (expected,) = engine.retrieve(["red sofa"], ["US"], k=20).document_ids
    assert [result["document_id"] for result in page["hybrid"]["results"]] == expected[10:].tolist()
    assert [channel["name"] for channel in page["channels"]] == engine.channel_names


def q2s(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    monkeypatch.setattr(sys, "argv", ["q2s", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        cli.run(app)
    return exit_.value.code, *capsys.readouterr()


def test_the_query_command_searches_milvus(
    catalogue: Catalogue,
    engine: EngineClient,
    retriever: Client,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["query", "red sofa", "--country", "US", "--k", 3, "--filter", "country=it's", "--engine", "milvus"]
    arguments += ["--uri", catalogue.uri, "--documents", catalogue.documents]
    ids = engine.retrieve(["red sofa"], ["US"], k=3, filters={"country": "it's"}).document_ids[0].tolist()
    for tower in (["--run", catalogue.run], ["--target", retriever.target, "--models", catalogue.models]):
        status, output, _ = q2s(capsys, monkeypatch, *arguments, *tower)
        assert status == 0
        assert [line.split()[4] for line in output.splitlines()[1:4]] == ids
        assert "channel weights: query_trigrams" in output
    status, _, error = q2s(capsys, monkeypatch, *arguments, "--run", catalogue.run, "--version", "7")
    assert (status, error.count("\n")) == (2, 1)
    assert "refused: NOT_FOUND" in error


def test_evaluate_measures_the_ranking_of_milvus(market: TinyMarket, run: Path, towers: Towers, tmp_path: Path) -> None:
    uri = str(tmp_path / "market.db")
    table = pq.read_table(market.documents)
    columns = {"title": table["title"].to_pylist()}
    vectors, ids = encode(towers.document, table)["embedding"], table["document_id"].to_pylist()
    publish(write_embeddings(tmp_path / "e", ids, vectors, columns, hash_towers(towers)), uri)
    tables = {"documents": market.documents, "judgements": market.judgements}
    results = q2s_tf.evaluate(run, **tables, out=tmp_path / "out", encoder="none", uri=uri).results
    assert results["index"] == {"version": 1, "index": {"kind": "milvus", "collection": "products_1"}}
    assert results["lexical_weight"] == 0.5
    systems = results["systems"]
    assert systems[INDEX]["mrr@100"] == systems[MODEL]["mrr@100"]
    assert systems[INDEX]["index_recall@10"]["value"] == 1
    with pytest.raises(InputError, match="models and uri: one index is measured"):
        q2s_tf.evaluate(run, **tables, out=tmp_path / "out", models=tmp_path, uri=uri)


def change(catalogue: Catalogue, folder: Path, rounds: int) -> None:
    """Changes, adds and deletes documents in milvus-lite and in a new version of the retriever, several times."""
    folder.mkdir(exist_ok=True)
    for number in range(rounds):
        first = 40 * number
        changed = make_documents(DOCUMENTS, 50 + number, "d")[first : first + 25]
        added = make_documents(15, 80 + number, f"new{number}-")
        deleted = [f"d{row}'\"\\é" for row in range(first + 25, first + 40)]
        pq.write_table(pa.Table.from_pylist(changed + added), folder / "changed.parquet")
        pq.write_table(pa.table({"document_id": [*deleted, "unknown"]}), folder / "gone.parquet")
        paths = folder / "changed.parquet", folder / "gone.parquet"
        exported = update_index(catalogue.run, catalogue.models, *paths)
        published = change_documents(catalogue.run, catalogue.uri, *paths)
        assert published[1:] == exported[1:]


@pytest.fixture(scope="module")
def changed(catalogue: Catalogue, run: Path, towers: Towers, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """The same catalogue published once more, under another name, and changed; version 1 of the retriever stays."""
    folder = tmp_path_factory.mktemp("changed")
    rows = pq.read_table(catalogue.documents).to_pylist()
    lexical = {"title": 2.0}
    export(run, catalogue.documents, folder / "models", "exact", filters=["country"], lexical=lexical)
    uri = str(folder / "catalogue.db")
    publish(embed(folder / "embeddings", rows, towers), uri, filters=["country"], lexical=lexical)
    copy = catalogue._replace(models=folder / "models", uri=uri)
    change(copy, folder / "changes", 2)
    return copy


def compare(changed: Catalogue, towers: Towers, count: int) -> tuple[float, float]:
    """Checks that cosines rank the same documents after changes.

    Returns the overlaps of hybrid results, without and with filters.
    """
    requests = make_requests(count, 7)
    arguments, wanted = (requests.queries, requests.countries, 10), {"country": requests.filters}
    with (
        Server(changed.models, port=0) as server,
        Client(server.address) as retriever,
        EngineClient(changed.uri, LocalQueryTower(towers)) as engine,
    ):
        for filters in (None, wanted):
            options = {"filters": filters, "lexical_weight": 0.0}
            check_equal(engine.retrieve(*arguments, **options), retriever.retrieve(*arguments, **options))
        overlaps = [
            overlap(engine.retrieve(*arguments, filters=filters), retriever.retrieve(*arguments, filters=filters))
            for filters in (None, wanted)
        ]
    return overlaps[0], overlaps[1]


def test_searches_go_on_during_a_change(changed: Catalogue, towers: Towers, tmp_path: Path) -> None:
    """Documents are replaced by themselves, so a search must find the same before, during and after that."""
    upsert = tmp_path / "same.parquet"
    pq.write_table(pq.read_table(changed.documents).slice(1_000, 20), upsert)
    texts = ["red sofa", "wooden table", "small lamp"]
    with EngineClient(changed.uri, LocalQueryTower(towers)) as engine, ThreadPoolExecutor(1) as pool:
        before = engine.retrieve(texts, k=5)
        change = pool.submit(change_documents, changed.run, changed.uri, upsert)
        found = []
        while not change.done() or not found:
            found.append(engine.retrieve(texts, k=5, lexical_weight=0.0))
        assert change.result().upserted == 20
        cosines = engine.retrieve(texts, k=5, lexical_weight=0.0)
        for matches in found:
            np.testing.assert_allclose(matches.scores, cosines.scores, atol=2e-5)
        np.testing.assert_allclose(engine.retrieve(texts, k=5).scores, before.scores, atol=2e-5)


def test_changes_are_those_of_the_retriever(changed: Catalogue, towers: Towers) -> None:
    assert min(compare(changed, towers, 30)) >= 0.99


@pytest.mark.slow
def test_1_000_queries_with_filters_after_changes(changed: Catalogue, towers: Towers) -> None:
    assert min(compare(changed, towers, 1_000)) >= 0.99


@pytest.mark.slow
def test_1_000_hybrid_queries_with_filters(engine: EngineClient, retriever: Client) -> None:
    requests = make_requests(1_000, 8)
    for filters in (None, {"country": requests.filters}):
        for weight in (0.05, 0.5, 3.0):
            options = {"filters": filters, "version": 1, "lexical_weight": weight}
            got, expected = (
                client.retrieve(requests.queries, requests.countries, 10, **options) for client in (engine, retriever)
            )
            assert overlap(got, expected) >= 0.99
