"""The towers as a user meets them: plain lists in, unit vectors out, and the same ones from a run directory."""

import shutil
from pathlib import Path
from typing import Any

import fresh_process
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_market import IMAGE_DIM, TinyMarket

import q2s_tf
from q2s_tf.config import IMAGES, read_config
from q2s_tf.errors import InputError
from q2s_tf.models import Towers, embed_catalogue, embed_documents, read_ids
from q2s_tf.tables import open_documents

QUERIES = ["red sofa", "", "ソファ", "أريكة حمراء", "👩‍👩‍👧", "RED SOFA " * 50, "x\0y", "диван"]


def document_columns(market: TinyMarket, rows: slice = slice(None)) -> dict[str, list[Any]]:
    names = ["title", "description", "language", "country", IMAGES]
    return {name: [row[name] for row in market.document_rows[rows]] for name in names}


# --- vectors


def test_embeddings_have_unit_length_and_weights_sum_to_one(towers: Towers, market: TinyMarket) -> None:
    for tower, columns in (
        (towers.query, {"query": QUERIES, "country": ["US"] * len(QUERIES)}),
        (towers.document, document_columns(market)),
    ):
        result = tower.predict(columns)
        rows = len(next(iter(columns.values())))
        assert result["embedding"].shape == (rows, 16)
        assert result["embedding"].dtype == np.float32
        assert result["channel_weights"].shape == (rows, len(tower.channels))
        np.testing.assert_allclose(np.linalg.norm(result["embedding"], axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(result["channel_weights"].sum(axis=1), 1, atol=1e-5)
        assert (result["channel_weights"] >= 0).all()


def test_channels_are_named_in_the_order_of_their_weights(towers: Towers) -> None:
    assert towers.query.channels == ["query_trigrams", "query_country", "query_text"]
    weights = towers.query.predict({"query": ["", "sofa"], "country": ["US", None]})["channel_weights"]
    assert (weights != 0).tolist() == [[False, True, False], [True, False, True]]


def test_a_row_with_no_channel_at_all_is_zero(towers: Towers) -> None:
    for tower in (towers.query, towers.document):
        result = tower.predict({name: [None] for name in tower.preprocessor.inputs})
        assert not result["embedding"].any()
        assert not result["channel_weights"].any()


def test_every_way_to_be_missing_is_the_same(towers: Towers) -> None:
    document = {"title": ["red sofa"], "country": ["US"]}
    expected = towers.document.predict(document)
    ways: list[dict[str, list[Any]]] = [
        {"description": [None]},
        {"description": [""]},
        {"description": [" \u3000\t"]},
        {"description": ["\u200b"]},
        {"description": ["\0"]},
        {"language": ["klingon"]},
        {"language": [""]},
        {IMAGES: [None]},
        {IMAGES: [[]]},
        {IMAGES: [[[0.0] * IMAGE_DIM] * 2]},
    ]
    for way in ways:
        result = towers.document.predict({**document, **way})
        for key in expected:
            np.testing.assert_allclose(result[key], expected[key], atol=1e-6, err_msg=str(way))
    assert np.count_nonzero(expected["channel_weights"]) == 2, "title_text and title_trigrams, nothing else"


def test_every_channel_says_something_after_training(towers: Towers, market: TinyMarket) -> None:
    row = document_columns(market, slice(7, 8))
    assert all(row[name][0] for name in row)
    whole = towers.document.predict(row)["embedding"]
    for name in ("title", "description", "language", IMAGES):
        without = towers.document.predict({**row, name: [None]})["embedding"]
        assert np.abs(whole - without).max() > 1e-4, name


def test_a_vector_does_not_depend_on_its_batch(towers: Towers, market: TinyMarket) -> None:
    queries: dict[str, list[Any]] = {"query": QUERIES * 8, "country": [None, "US", "JP", "ZZ"] * 16}
    for tower, columns in ((towers.query, queries), (towers.document, document_columns(market))):
        alone, together = tower.predict(columns, batch_size=1), tower.predict(columns, batch_size=64)
        for key in together:
            np.testing.assert_allclose(alone[key], together[key], atol=1e-5)


def test_the_writing_of_a_query_does_not_matter(towers: Towers) -> None:
    vectors = towers.query.predict({"query": ["red sofa", " RED  Sofa ", "ＲＥＤ　ｓｏｆａ"]})["embedding"]
    np.testing.assert_allclose(vectors[1:], vectors[[0, 0]], atol=1e-6)


def test_order_of_image_vectors_does_not_matter_and_only_so_many_are_read(towers: Towers) -> None:
    images = np.random.default_rng(1).normal(size=(4, IMAGE_DIM)).tolist()
    a, b, c, more = images
    sets = [[a, b, c], [c, a, b], [a, b, c, more], [a, b]]
    vectors = towers.document.predict({"title": ["red sofa"] * 4, IMAGES: sets})["embedding"]
    np.testing.assert_allclose(vectors[1:3], vectors[[0, 0]], atol=1e-6)
    assert np.abs(vectors[3] - vectors[0]).max() > 1e-4


# --- predict's input


def test_predict_takes_lists_tuples_and_arrays(towers: Towers) -> None:
    images = np.random.default_rng(2).normal(size=(2, 3, IMAGE_DIM)).astype(np.float32)
    titles = ["red sofa", "ソファ"]
    expected = towers.document.predict({"title": titles, IMAGES: images.tolist()})["embedding"]
    same: list[tuple[Any, Any]] = [
        (tuple(titles), tuple(map(tuple, images.tolist()))),
        (np.array(titles), images),
        (np.array(titles, object), list(images)),
        ([text.encode() for text in titles], images.tolist()),
    ]
    for title, image in same:
        result = towers.document.predict({"title": title, IMAGES: image})["embedding"]
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_predict_of_no_rows_gives_no_rows(towers: Towers) -> None:
    result = towers.query.predict({"query": [], "country": []})
    assert result["embedding"].shape == (0, 16)
    assert result["channel_weights"].shape == (0, 3)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"title": ["a"]}, "query_tower: unknown input title; it takes query, country"),
        ({}, "query_tower: no input for any of its channels; it reads country, query"),
        ({"query": "red sofa"}, "'query' must be a list of values, one a row; got one text: 'red sofa'"),
        ({"query": ["a", "b"], "country": ["US"]}, "same number of rows; got .'query': 2, 'country': 1"),
    ],
)
def test_wrong_input_is_one_clear_line(towers: Towers, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        towers.query.predict(inputs)


@pytest.mark.parametrize("vectors", [[[1.0, 2.0]], [1.0] * IMAGE_DIM])
def test_image_vectors_of_another_shape_are_refused(towers: Towers, vectors: list[Any]) -> None:
    with pytest.raises(InputError, match="image_embeddings: row 1 must be a list of vectors of"):
        towers.document.predict({"title": ["a", "b"], IMAGES: [None, vectors]})


# --- a whole catalogue


def test_a_catalogue_is_embedded_in_its_own_order(towers: Towers, market: TinyMarket) -> None:
    table = open_documents(market.documents)
    ids, embeddings = embed_catalogue(towers.document, table)
    assert ids.to_pylist() == [row["document_id"] for row in market.document_rows] == read_ids(table).to_pylist()
    expected = towers.document.predict(document_columns(market))["embedding"]
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    np.testing.assert_allclose(embed_documents(towers.document, table.read(), batch_size=7), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "a"], "may occur once; 'a' occurs more often"),
        (["a", None], "1 have none"),
        ([], "catalogue is empty"),
    ],
)
def test_a_catalogue_without_proper_ids_is_refused(tmp_path: Path, ids: list[str | None], message: str) -> None:
    columns = {"document_id": pa.array(ids, pa.string()), "title": pa.array(["t"] * len(ids), pa.string())}
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=message):
        read_ids(open_documents(tmp_path / "d.parquet"))


# --- run directories


def test_a_run_gives_the_same_vectors_in_a_fresh_process(
    run: Path, towers: Towers, market: TinyMarket, tmp_path: Path
) -> None:
    asked = {"query": {"query": QUERIES, "country": ["US"] * len(QUERIES)}, "document": document_columns(market)}
    answers = fresh_process.answers([("towers", run, tower, columns) for tower, columns in asked.items()], tmp_path)
    for (tower, columns), answer in zip(asked.items(), answers, strict=True):
        expected = {"query": towers.query, "document": towers.document}[tower].predict(columns)
        for key in expected:
            np.testing.assert_allclose(answer[key], expected[key], atol=1e-6)


def test_a_stage_can_be_chosen(run: Path, towers: Towers) -> None:
    first, last = (q2s_tf.load(run, stage).query.predict({"query": QUERIES})["embedding"] for stage in (1, None))
    np.testing.assert_allclose(last, towers.query.predict({"query": QUERIES})["embedding"], atol=1e-6)
    assert np.abs(first - last).max() > 1e-4


@pytest.fixture
def copied_run(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))


def test_a_run_of_another_format_is_refused(copied_run: Path) -> None:
    config = copied_run / "config.toml"
    config.write_text(config.read_text().replace("format = 1", "format = 2"))
    with pytest.raises(InputError, match="its format is 2, this q2s_tf reads 1: train it again"):
        q2s_tf.load(copied_run)


def test_what_is_not_a_whole_run_is_refused(copied_run: Path, tmp_path: Path, market: TinyMarket) -> None:
    with pytest.raises(InputError, match=r"not a run directory \(no config.toml in it\)"):
        q2s_tf.load(tmp_path / "absent")
    weights = copied_run / "stage2.weights.h5"
    weights.write_bytes(weights.read_bytes()[:1_000])
    with pytest.raises(InputError, match="stage2.weights.h5: damaged, or of a model with other channels or sizes"):
        q2s_tf.load(copied_run)
    weights.unlink()
    assert q2s_tf.load(copied_run).query.dimension == 16, "stage 1 is what there is then"
    with pytest.raises(InputError, match=r"no trained weights \(stage2.weights.h5\)"):
        q2s_tf.load(copied_run, stage=2)
    config = copied_run / "config.toml"
    config.write_text(config.read_text().replace("buckets = 500", "buckets = 400"))
    with pytest.raises(InputError, match="stage1.weights.h5: damaged, or of a model with other channels or sizes"):
        q2s_tf.load(copied_run)
    (copied_run / "tokenizer.model").unlink()
    with pytest.raises(InputError, match="tokenizer .*tokenizer.model: there is no such file"):
        q2s_tf.load(copied_run)


# --- a new channel is a change to a config alone


def test_a_new_column_is_a_channel_by_config_alone(market: TinyMarket, tmp_path: Path) -> None:
    import tensorflow as tf

    from q2s_tf.serving.export import export
    from q2s_tf.training import train

    brands = ["acme", "globex", None]
    rows = [{**row, "brand": brands[number % 3]} for number, row in enumerate(market.document_rows)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "documents.parquet")
    channels = [
        'channels.brand={ tower = "document", input = "brand", kind = "categorical" }',
        'channels.brand_trigrams={ tower = "document", input = "brand", kind = "trigrams", buckets = 99 }',
    ]
    config = read_config(market.lean_config, [*channels, "stage1.max_epochs=1"])
    trained = train(config, tmp_path / "documents.parquet", market.positives, market.judgements, tmp_path / "run")

    assert trained.document.channels == ["title_trigrams", "brand", "brand_trigrams"]
    assert trained.config.channels["brand"].values == ("acme", "globex")  # type: ignore[union-attr]
    columns: dict[str, list[Any]] = {"title": ["red sofa"] * 3, "brand": brands}
    expected = trained.document.predict(columns)
    assert np.abs(expected["embedding"][0] - expected["embedding"][1]).max() > 1e-4
    assert (expected["channel_weights"] != 0).tolist() == [[True] * 3, [True] * 3, [True, False, False]]

    export(tmp_path / "run", tmp_path / "documents.parquet", tmp_path / "models")
    signature = tf.saved_model.load(str(tmp_path / "models/document_tower/1")).signatures["serving_default"]
    inputs = signature.structured_input_signature[1]
    assert set(inputs) == {"title", "description", "language", "country", IMAGES, "brand"}
    assert inputs["brand"].dtype == tf.string
    texts = {
        name: tf.constant([value or "" for value in columns.get(name, [""] * 3)]) for name in set(inputs) - {IMAGES}
    }
    answer = signature(**texts, image_embeddings=tf.zeros((3, 0, 1)))
    np.testing.assert_allclose(answer["embedding"], expected["embedding"], atol=1e-5)
