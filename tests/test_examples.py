"""Training examples: a batch equals what the raw rows of its positives give."""

import collections
import dataclasses
import datetime
import random
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_market import TinyMarket

from q2s_tf.config_files import read_config
from q2s_tf.errors import InputError
from q2s_tf.examples import batches as examples_module
from q2s_tf.examples.batches import Examples, HeadLabels, shuffled
from q2s_tf.examples.join import read_records, write_labels
from q2s_tf.examples.prepare import build_examples, pseudo_query
from q2s_tf.examples.table_scan import TableScan
from q2s_tf.models import Tower, Towers, build_towers, read_tokenizers
from q2s_tf.tables import open_documents, open_positives
from q2s_tf.text import normalise
from q2s_tf.training.retrieval_model import match_countries

MOMENT = datetime.datetime(2024, 3, 1, tzinfo=datetime.UTC)


def positives_of(market: TinyMarket) -> list[dict[str, Any]]:
    """47 positives, with one query in several spellings, a pair that comes twice, and rows that cannot be used."""
    spelled = ["red sofa", "RED SOFA", "ＲＥＤ　ｓｏｆａ", " red  sofa "]
    pairs: list[tuple[str | None, str | None, str]] = [
        (query, "US", f"d{number:02}") for number, query in enumerate(spelled * 2)
    ]
    pairs += [("red sofa", "JP", "d09"), ("red sofa", "US", "d00"), (None, "US", "d01"), ("", "US", "d01")]
    pairs += [("red sofa", "US", "gone"), ("lamp", None, "gone too")]
    pairs += [(row["title"], row["country"], row["document_id"]) for row in market.document_rows[10:43]]
    pairs += [(row["title"].upper(), "US", row["document_id"]) for row in market.document_rows[10:14]]
    return [
        # Every weight is another, so that a row of a batch tells which positive it is.
        {"query": query, "country": country, "document_id": document, "timestamp": MOMENT, "weight": float(number + 1)}
        for number, (query, country, document) in enumerate(pairs)
    ]


@pytest.fixture(scope="module")
def rows(market: TinyMarket) -> list[dict[str, Any]]:
    """The positives that can be used, in the order of the file."""
    return [row for row in positives_of(market) if row["query"] and not row["document_id"].startswith("gone")]


@pytest.fixture(scope="module")
def examples(towers: Towers, market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    folder = tmp_path_factory.mktemp("examples")
    pq.write_table(pa.Table.from_pylist(positives_of(market)), folder / "positives.parquet")
    documents, positives = open_documents(market.documents), open_positives(folder / "positives.parquet")
    return build_examples(folder / "store", towers, documents, positives)


def positive_numbers(batch: dict[str, Any], rows: list[dict[str, Any]]) -> list[int]:
    """Which positives the rows of a batch are, told by their weights."""
    expected = np.array([1 + np.log(row["weight"]) for row in rows])
    gaps = np.abs(expected[None, :] - np.asarray(batch["weight"])[:, None])
    assert (gaps.min(axis=1) < 1e-4).all()
    return gaps.argmin(axis=1).tolist()


# --- the order


@given(st.integers(0, 500), st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 9))
@settings(deadline=None)
def test_shuffled_gives_every_number_once(total: int, seed: int, shard: int, together: int) -> None:
    pieces = list(shuffled(total, (seed, 1, 2), shard, together))
    assert sorted(number for piece in pieces for number in piece.tolist()) == list(range(total))
    assert all(len(piece) <= shard * together for piece in pieces)


def test_shuffled_order_follows_the_seed() -> None:
    orders = [np.concatenate(list(shuffled(200, seed, 16, 3))).tolist() for seed in ((1, 1, 1), (1, 1, 1), (1, 1, 2))]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_an_epoch_has_every_positive_at_most_once_and_all_that_fill_batches(
    examples: Examples, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(examples) == len(rows) == 47

    def in_small_pieces(total: int, seed: tuple[int, ...]) -> Any:
        return shuffled(total, seed, shard=5, mixed=2)

    for shuffle in (shuffled, in_small_pieces):
        monkeypatch.setattr(examples_module, "shuffled", shuffle)
        for batch_size, batches in ((47, 1), (10, 4), (1, 47), (1_000, 1)):
            epoch = [positive_numbers(batch, rows) for batch in examples.batches(batch_size, (1, 1, 1))]
            size = min(batch_size, 47)
            assert [len(batch) for batch in epoch] == [size] * batches
            seen = [number for batch in epoch for number in batch]
            assert len(set(seen)) == len(seen) == size * batches


def test_the_same_seed_gives_the_same_batches(examples: Examples) -> None:
    first, again, other = (
        [batch["weight"].tolist() for batch in examples.batches(10, seed)] for seed in ((1, 1, 1), (1, 1, 1), (1, 1, 2))
    )
    assert first == again
    assert first != other


# --- what is in a batch


def test_the_mask_is_what_the_raw_strings_say(examples: Examples, rows: list[dict[str, Any]]) -> None:
    def spelled_alike(row: dict[str, Any]) -> bytes:
        return normalise(row["query"]).numpy()

    known = {(spelled_alike(row), row["document_id"]) for row in rows}
    masked = 0
    for epoch in range(3):
        for batch in examples.batches(15, (2, 1, epoch)):
            chosen = [rows[number] for number in positive_numbers(batch, rows)]
            for i, row in enumerate(chosen):
                for j, other in enumerate(chosen):
                    allowed = i == j or (spelled_alike(row), other["document_id"]) not in known
                    assert batch["score_mask"][i, j] == allowed, (row, other)
                    masked += not allowed
    assert masked > 50, "the rows hold enough known positives and duplicates to tell"


def test_inputs_equal_the_towers_own_preprocessing_of_the_raw_rows(
    examples: Examples, towers: Towers, rows: list[dict[str, Any]], market: TinyMarket
) -> None:
    documents = {row["document_id"]: row for row in market.document_rows}
    numbers = np.arange(47)
    batch = examples.batch(numbers)
    chosen = [documents[row["document_id"]] for row in rows]
    check_inputs(towers.query, batch["query"], rows)
    check_inputs(towers.document, batch["document"], chosen)
    check_inputs(towers.query, examples.batch(numbers[:1])["query"], rows[:1])


def check_inputs(tower: Tower, stored: dict[str, np.ndarray], rows: list[dict[str, Any]]) -> None:
    raw = tower.as_inputs({name: [row.get(name) for row in rows] for name in tower.input})
    assert set(stored) == set(tower.channels)
    for name, tensor in tower.preprocessor(raw).items():
        expected, width = tensor.numpy(), stored[name].shape[1]
        assert width >= 1
        np.testing.assert_array_equal(stored[name][:, : expected.shape[1]], expected[:, :width], err_msg=name)
        assert not expected[:, width:].any(), f"{name}: only padding may be cut"
        assert not stored[name][:, expected.shape[1] :].any(), f"{name}: only padding may be added"


def test_the_dataset_is_the_batches_in_another_order_in_each_epoch(examples: Examples) -> None:
    """The seed of an epoch is that of the data set and the number of the epoch, which a resumed training sets."""
    dataset = examples.dataset(10, (3, 1))
    assert int(dataset.cardinality()) == 4
    resumed = examples.dataset(10, (3, 1), epoch=lambda: 2)
    for epoch, iterated in ((1, dataset), (2, dataset), (2, resumed)):
        batches, from_dataset = list(examples.batches(10, (3, 1, epoch))), list(iterated.as_numpy_iterator())
        assert len(from_dataset) == len(batches) == 4
        for batch, other in zip(batches, from_dataset, strict=True):
            for part in ("query", "document"):
                assert set(batch[part]) == set(other[part])
                for name, inputs in batch[part].items():
                    np.testing.assert_array_equal(other[part][name], inputs)
                    assert other[part][name].dtype == inputs.dtype
            np.testing.assert_array_equal(other["weight"], batch["weight"])
            np.testing.assert_array_equal(other["score_mask"], batch["score_mask"])


def test_a_positive_without_weight_weighs_one(towers: Towers, market: TinyMarket, tmp_path: Path) -> None:
    rows = [{**row, "weight": weight} for row, weight in zip(market.positive_rows, (None, 1.0, 0.5, 9.0), strict=False)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "positives.parquet")
    positives = open_positives(tmp_path / "positives.parquet")
    examples = build_examples(tmp_path / "store", towers, open_documents(market.documents), positives)
    np.testing.assert_allclose(examples.batch(np.arange(4))["weight"], [1, 1, 1, 1 + np.log(9)], rtol=1e-6)


def test_countries_are_equal_where_the_raw_strings_say_so(
    market: TinyMarket, examples: Examples, run: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    changed = [{**row, "country": {"US": " us", "JP": ""}.get(row["country"], row["country"])} for row in rows]
    pq.write_table(pa.Table.from_pylist(changed), tmp_path / "positives.parquet")
    config = read_config(run / "config.toml", ["stage2.negatives=same_country"])
    towers = build_towers(config, read_tokenizers(run, config))
    documents, positives = open_documents(market.documents), open_positives(tmp_path / "positives.parquet")
    batch = build_examples(tmp_path / "store", towers, documents, positives).batch(np.arange(47))
    country_of = {row["document_id"]: row["country"] or "" for row in market.document_rows}
    of_query = [(row["country"] or "").strip().upper() for row in changed]
    of_document = [country_of[row["document_id"]] for row in changed]
    assert {"", "US"} <= set(of_query) and {"", "US", "JP"} <= set(of_document)
    expected = [[one in ("", other) or not other for other in of_document] for one in of_query]
    same = match_countries({name: tf.constant(batch[name]) for name in ("query_country", "document_country")})
    np.testing.assert_array_equal(same, expected)
    assert "query_country" not in examples.batch(np.arange(2)), "only with negatives of the same country"


# --- pseudo-queries


TITLES = st.lists(st.text("abcäöé дж赤-!.,", min_size=1, max_size=9), max_size=6).map(" ".join)


@given(TITLES, st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_pseudo_query_is_made_of_its_title(title: str, seed: int) -> None:
    query = pseudo_query(title, random.Random(seed))
    assert query == pseudo_query(title, random.Random(seed)), "the generator is the only source of chance"
    assert (query == "") == (not title.strip())
    assert query in " ".join(title.split()) or set(query.split()) <= set(title.split())


def test_a_channel_of_a_column_that_is_not_there_is_refused(market: TinyMarket, tmp_path: Path) -> None:
    pq.write_table(pa.table({"document_id": ["1"], "title": ["a"], "brand": ["b"]}), tmp_path / "documents.parquet")
    config = read_config(market.lean_config, ['channels.tint={tower="document", kind="trigrams", input="tint"}'])
    table = open_documents(tmp_path / "documents.parquet", config.tower_inputs("document"))
    with pytest.raises(InputError, match=r"channel tint reads the column tint, which is not there \(columns: doc"):
        TableScan(config, "document", table)


@pytest.fixture(scope="module")
def with_pseudo(market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    folder = tmp_path_factory.mktemp("pseudo")
    overrides = ["pseudo_queries.per_document=3", "pseudo_queries.batch_share=0.25"]
    lean = build_towers(read_config(market.lean_config, overrides), {})
    pq.write_table(pa.Table.from_pylist(market.positive_rows[:90]), folder / "positives.parquet")
    positives = open_positives(folder / "positives.parquet")
    return build_examples(folder / "store", lean, open_documents(market.documents), positives)


def test_pseudo_queries_fill_their_share_of_every_batch(with_pseudo: Examples) -> None:
    assert len(with_pseudo) == 90
    assert len(with_pseudo.pairs) == 90 + 60 * 3
    seen: list[int] = []
    drawn = set()
    number_of = {(int(pair["query"]), int(pair["document"])): at for at, pair in enumerate(with_pseudo.pairs)}
    for batch in recorded_batches(with_pseudo, 20):
        positives = [number for number in batch if number < 90]
        assert len(batch) == 20
        assert len(positives) == 15
        seen += positives
        drawn |= set(batch) - set(positives)
    assert sorted(seen) == list(range(90)), "every positive once an epoch"
    assert len(drawn) > 20, "and many different pseudo-queries"
    assert len(number_of) > 120, "made anew each time: two words of a title make several queries"


def recorded_batches(examples: Examples, batch_size: int) -> list[list[int]]:
    """The numbers of the pairs in each batch of an epoch."""
    numbers: list[list[int]] = []

    class Recorder(Examples):
        def batch(self, chosen: np.ndarray, hard_negatives: np.ndarray | None = None) -> dict[str, Any]:
            numbers.append(chosen.tolist())
            return {}

    fields = {field.name: getattr(examples, field.name) for field in dataclasses.fields(examples)}
    list(Recorder(**fields).batches(batch_size, (1, 1, 1)))
    return numbers


def test_a_pseudo_querys_own_document_is_no_negative_of_it(with_pseudo: Examples) -> None:
    numbers = np.arange(90, 120)
    mask = with_pseudo.batch(numbers)["score_mask"]
    documents = with_pseudo.pairs["document"][numbers]
    same = documents[:, None] == documents[None, :]
    assert same.sum() > len(numbers)
    assert (mask[same] == np.eye(len(numbers), dtype=bool)[same]).all()


def test_positives_of_another_catalogue_are_refused(towers: Towers, market: TinyMarket, tmp_path: Path) -> None:
    rows = [{**market.positive_rows[0], "document_id": "gone"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "positives.parquet")
    with pytest.raises(InputError, match="no row has a query and a document of"):
        build_examples(
            tmp_path / "store", towers, open_documents(market.documents), open_positives(tmp_path / "positives.parquet")
        )


# --- labels of the head


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.booleans()), max_size=30), st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_labels_are_the_frequent_queries_of_each_document(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, bool]], count: int
) -> None:
    """Query rows 2g and 2g + 1 are equal after normalisation. Pseudo-queries do not count."""
    folder = tmp_path_factory.mktemp("labels")
    with duckdb.connect() as join:
        join.execute("""
            CREATE TABLE groups AS SELECT range AS query, range // 2 AS text_group FROM range(7);
            CREATE TABLE pairs (query INTEGER, document INTEGER, pseudo BOOLEAN)""")
        join.executemany("INSERT INTO pairs VALUES (?, ?, ?)", rows) if rows else None
        number = write_labels(join, folder, count)
    labels = HeadLabels.from_records(read_records(folder, "labels"), number, num_documents=5)
    pairs = [(query // 2, document) for query, document, pseudo in rows if not pseudo]
    frequency = collections.Counter(query for query, _ in pairs)
    chosen = sorted(frequency, key=lambda number: (-frequency[number], number))[:count]
    assert labels.count == len(chosen)
    read = labels.read(np.arange(5))
    for row in range(5):
        expected = {chosen.index(number) for number, its in pairs if its == row and number in chosen}
        assert sorted(read[row][read[row] >= 0]) == sorted(expected)
