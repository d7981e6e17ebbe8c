"""Pages and filters: `paginate` with a simulated retriever, and the client with a real server."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import serving_models
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from q2s_tf.errors import InputError
from q2s_tf.server.server import Server
from q2s_tf.serving import ServingError
from q2s_tf.serving.client import Client
from q2s_tf.serving.pages import IndexInfo, Matches, Page, choose_efforts, paginate

PARTITIONS, DEFAULT_EFFORT = 12, 4


def test_the_effort_doubles_from_page_to_page() -> None:
    assert choose_efforts(IndexInfo(partitions=100, default_effort=20, version=1)) == [10, 20, 40, 80, 100]
    assert choose_efforts(IndexInfo(partitions=1, default_effort=1, version=1)) == [1]
    assert choose_efforts(IndexInfo(partitions=8, default_effort=1, version=1)) == [1, 2, 4, 8]


class Simulation:
    """Versions of a retriever whose results for one query are in another order at each effort.

    ``served`` is the version that is served at each request; the last one stays.
    """

    def __init__(self, documents: int, efforts: list[int], served: list[int], keeps_old: bool) -> None:
        self.documents, self.efforts, self.served, self.keeps_old = documents, efforts, served, keeps_old
        self.requests: list[tuple[int, int]] = []

    def retrieve(self, k: int, effort: int, version: int | str | None) -> Matches:
        newest = self.served[min(len(self.requests), len(self.served) - 1)]
        gone = isinstance(version, int) and version != newest and not self.keeps_old
        answered = version if isinstance(version, int) and not gone else newest
        self.requests.append((effort, answered))
        if gone:
            raise ServingError(grpc.StatusCode.NOT_FOUND, f"no version {version}")
        order = np.random.default_rng([answered, effort]).permutation(self.documents)
        searched = order[: max(1, self.documents * effort // self.efforts[-1])] if self.documents else order
        ids = [f"d{number}" for number in searched[:k]]
        ids += [""] * (k - len(ids))
        return Matches(np.array([ids], object), *np.zeros((3, 1, k)), answered)


def no_description(version: int | str | None) -> IndexInfo:
    raise AssertionError("the efforts are given")


@settings(deadline=None, max_examples=200)
@given(
    documents=st.integers(0, 60),
    page_size=st.integers(1, 9),
    efforts=st.lists(st.integers(1, 40), min_size=1, max_size=5, unique=True).map(sorted),
    served=st.lists(st.integers(1, 4), min_size=1, max_size=20).map(sorted),
    keeps_old=st.booleans(),
)
def test_every_document_comes_once_for_any_retriever(
    documents: int, page_size: int, efforts: list[int], served: list[int], keeps_old: bool
) -> None:
    simulation = Simulation(documents, efforts, served, keeps_old)
    pages = list(paginate(simulation.retrieve, no_description, page_size, efforts, None))
    names = [name for page in pages for name in page.document_ids]
    assert sorted(names) == sorted(f"d{number}" for number in range(documents))
    assert all(len(page.document_ids) == page_size for page in pages[:-1])
    assert [page.effort for page in pages] == sorted(page.effort for page in pages)
    versions = [page.version for page in pages]
    assert versions == sorted(versions)
    assert not keeps_old or len(set(versions)) <= 1


def test_a_version_given_by_number_is_not_replaced() -> None:
    simulation = Simulation(30, [1], served=[1, 2], keeps_old=False)
    pages = paginate(simulation.retrieve, no_description, 5, [1], 1)
    assert next(pages).version == 1
    with pytest.raises(ServingError, match="NOT_FOUND: no version 1"):
        next(pages)


def test_efforts_are_those_of_the_version_that_answers() -> None:
    indexes = {None: IndexInfo(2, 2, 1), 7: IndexInfo(64, 32, 7)}
    simulation = Simulation(100, [1, 64], served=[7], keeps_old=False)
    pages = paginate(simulation.retrieve, lambda version: indexes[version], 10, None, None)
    assert next(pages).effort == 16
    assert simulation.requests == [(1, 7), (16, 7)]


# --- a real server


VECTORS = serving_models._unit(np.random.default_rng(3).normal(size=(200, serving_models.DIM)))
CENTRES = serving_models._unit(np.random.default_rng(4).normal(size=(PARTITIONS, serving_models.DIM)))
PARTITION = np.argmax(VECTORS @ CENTRES.T, axis=1)
COUNTRIES = np.array(["US", "VN", ""] * 67)[:200]
LANGUAGES = np.array(["en", "vi", "en", "en"] * 50)
IDS = np.array([f"d{number}" for number in range(200)])
QUERY = tf.TensorSpec([None], tf.string, "query")
COUNTRY = tf.TensorSpec([None], tf.string, "country")
PARAMETERS = [
    tf.TensorSpec([], tf.int32, "k"),
    tf.TensorSpec([], tf.int32, "effort"),
    tf.TensorSpec([], tf.float32, "min_score"),
    tf.TensorSpec([], tf.float32, "lexical_weight"),
]


class Partitioned(tf.Module):
    """A retriever that searches the ``effort`` partitions nearest to the query, and takes equality filters."""

    def __init__(self, turn: int = 0, columns: tuple[str, ...] = ("country", "language")) -> None:
        super().__init__()
        self.tower = serving_models.Tower(turn)
        self.columns = {name: {"country": COUNTRIES, "language": LANGUAGES}[name] for name in columns}
        filters = [tf.TensorSpec([None], tf.string, f"filter_{name}") for name in columns]
        self.retrieve = tf.function(self._retrieve, input_signature=[QUERY, COUNTRY, *PARAMETERS, *filters])
        self.index = tf.function(
            lambda: {"partitions": tf.constant(PARTITIONS), "default_effort": tf.constant(DEFAULT_EFFORT)},
            input_signature=[],
        )

    def _retrieve(
        self,
        query: tf.Tensor,
        country: tf.Tensor,
        k: tf.Tensor,
        effort: tf.Tensor,
        min_score: tf.Tensor,
        _: tf.Tensor,
        *wanted,
    ) -> dict[str, tf.Tensor]:
        embedding = self.tower.embed(query, country)
        effort = tf.clip_by_value(tf.where(effort < 1, DEFAULT_EFFORT, effort), 1, PARTITIONS)
        nearest = tf.math.top_k(tf.matmul(embedding, CENTRES, transpose_b=True), effort).indices
        accepted = tf.gather(tf.reduce_max(tf.one_hot(nearest, PARTITIONS), axis=1), PARTITION, axis=1) > 0
        for value, column in zip(wanted, self.columns.values(), strict=True):
            accepted &= (value[:, None] == "") | (value[:, None] == column[None])
        scores = tf.where(accepted, tf.matmul(embedding, VECTORS, transpose_b=True), -2.0)
        best = tf.math.top_k(tf.pad(scores, [[0, 0], [0, k]], constant_values=-2.0), k)
        present = (best.values >= min_score) & (best.indices < len(IDS))
        ids = tf.gather(IDS, tf.minimum(best.indices, len(IDS) - 1))
        found = tf.where(present, best.values, -1.0)
        parts = {"embedding_score": found, "lexical_score": tf.zeros_like(found)}
        return {"document_id": tf.where(present, ids, ""), "score": found, **parts}

    def save(self, folder: Path) -> None:
        signatures = {"retrieve": self.retrieve, "index": self.index}
        tf.saved_model.save(self, str(folder), signatures=signatures)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    Partitioned().save(folder / "retriever" / "1")
    serving_models.save_query_tower(folder / "query_tower" / "1")
    return folder


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[Client]:
    with Server(models, port=0) as server, Client(server.address) as connected:
        yield connected


def cosines(client: Client, query: str, country: str = "") -> np.ndarray:
    return VECTORS @ client.embed_query([query], [country]).embedding[0]


def names(pages: list[Page]) -> list[str]:
    return [name for page in pages for name in page.document_ids]


def test_the_pages_of_a_query_hold_every_document_once(client: Client) -> None:
    pages = list(client.pages("red sofa", "US", page_size=30))
    assert [len(page.document_ids) for page in pages] == [30] * 6 + [20]
    assert sorted(names(pages)) == sorted(IDS)
    assert pages[0].effort == DEFAULT_EFFORT // 2 and pages[-1].effort == PARTITIONS
    assert {page.version for page in pages} == {1}
    scores = cosines(client, "red sofa", "US")
    for page in pages:
        np.testing.assert_allclose(page.scores, [scores[int(name[1:])] for name in page.document_ids], atol=1e-5)
        assert page.scores == sorted(page.scores, reverse=True)


def test_the_first_page_is_the_best_of_few_partitions(client: Client) -> None:
    vector = client.embed_query(["lamp"], ["FR"]).embedding[0]
    searched = np.isin(PARTITION, np.argsort(-(CENTRES @ vector))[: DEFAULT_EFFORT // 2])
    best = sorted(IDS[searched], key=lambda name: -(VECTORS @ vector)[int(name[1:])])[:5]
    assert next(client.pages("lamp", "FR", page_size=5)).document_ids == best


def test_pages_end_at_the_minimum_score(client: Client) -> None:
    scores = cosines(client, "lamp")
    pages = list(client.pages("lamp", page_size=7, min_score=0.2))
    assert sorted(names(pages)) == sorted(IDS[scores >= 0.2]) and len(pages) > 2
    assert list(client.pages("lamp", min_score=1.5)) == []


def test_pages_match_the_filters(client: Client) -> None:
    wanted = {"country": "VN", "language": "en"}
    pages = list(client.pages("red sofa", page_size=10, filters=wanted))
    assert sorted(names(pages)) == sorted(IDS[(COUNTRIES == "VN") & (LANGUAGES == "en")])
    assert list(client.pages("red sofa", filters={"country": "XX"})) == []


def test_efforts_can_be_given(client: Client) -> None:
    pages = client.pages("red sofa", page_size=3, efforts=[1, 5])
    assert [next(pages).effort for _ in range(3)] == [1, 5, 5]
    for arguments in ({"efforts": []}, {"efforts": [2.5]}, {"efforts": "all"}, {"page_size": 0}):
        with pytest.raises(InputError, match="must"):
            client.pages("red sofa", **arguments)


def test_pages_continue_with_the_next_version_when_theirs_is_gone(models: Path, tmp_path: Path) -> None:
    Partitioned().save(tmp_path / "retriever" / "1")
    with Server(tmp_path, port=0, poll_seconds=0.05) as server, Client(server.address) as client:
        pages = client.pages("red sofa", "US", page_size=60)
        first = next(pages)
        Partitioned(turn=3).save(tmp_path / "aside")
        (tmp_path / "aside").rename(tmp_path / "retriever" / "2")
        serving_models.wait_for(client, "retriever", 2)
        rest = list(pages)
        assert (first.version, {page.version for page in rest}) == (1, {2})
        assert sorted(names([first, *rest])) == sorted(IDS)
        assert next(client.pages("red sofa")).version == 2


# --- filters


def test_filters_are_equalities_that_all_hold(client: Client) -> None:
    matches = client.retrieve(["red sofa", "lamp"], ["US", ""], k=200, effort=PARTITIONS, filters={"country": "US"})
    for row in matches.document_ids:
        assert sorted(name for name in row if name) == sorted(IDS[COUNTRIES == "US"])
    by_query = {"country": ["US", ""], "language": ["vi", "en"]}
    matches = client.retrieve(["red sofa", "lamp"], ["US", ""], k=200, effort=PARTITIONS, filters=by_query)
    assert {name for name in matches.document_ids[0] if name} == set(IDS[(COUNTRIES == "US") & (LANGUAGES == "vi")])
    assert {name for name in matches.document_ids[1] if name} == set(IDS[LANGUAGES == "en"])


def test_an_unknown_filter_is_refused_with_the_known_ones(client: Client) -> None:
    with pytest.raises(InputError, match='no filter "colour"; the retriever was exported to filter by country, langua'):
        client.retrieve(["lamp"], [""], filters={"colour": "red"})
    with pytest.raises(InputError, match="2 of query, 2 of country, 1 of filter_country; give equally many"):
        client.retrieve(["lamp", "sofa"], ["", ""], filters={"country": ["US"]})


def test_a_retriever_without_filters_refuses_them(tmp_path: Path) -> None:
    serving_models.save_all(tmp_path)
    refused = pytest.raises(InputError, match="the retriever has no filters; .*--filter COLUMN")
    with Server(tmp_path, port=0) as server, Client(server.address) as client, refused:
        client.retrieve(["lamp"], [""], filters={"country": "US"})


def test_a_filter_that_a_new_version_brings_is_found(tmp_path: Path) -> None:
    Partitioned(columns=("country",)).save(tmp_path / "retriever" / "1")
    with Server(tmp_path, port=0, poll_seconds=0.05) as server, Client(server.address) as client:
        assert client.retrieve(["lamp"], [""], filters={"country": "US"}).version == 1
        with pytest.raises(InputError, match="filter by country;"):
            client.retrieve(["lamp"], [""], filters={"language": "vi"})
        Partitioned().save(tmp_path / "aside")
        (tmp_path / "aside").rename(tmp_path / "retriever" / "2")
        serving_models.wait_for(client, "retriever", 2)
        matches = client.retrieve(["lamp"], [""], k=20, effort=PARTITIONS, filters={"language": "vi"})
        assert matches.version == 2 and set(matches.document_ids[0]) <= set(IDS[LANGUAGES == "vi"])
