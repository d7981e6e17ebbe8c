"""The towers: plain data in, unit vectors out, the same ones from a run directory."""

import shutil
from pathlib import Path
from typing import Any

import fresh_process
import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from tiny_market import IMAGE_DIM, TinyMarket, filled_config, market_tokenizer, random_towers

import q2s_tf
from q2s_tf.config import FORMAT, IMAGES
from q2s_tf.config_files import read_config, save_config
from q2s_tf.errors import InputError
from q2s_tf.models import Tower, Towers, build_towers, embed_catalogue, encode, read_ids, save_weights
from q2s_tf.tables import open_documents

QUERIES = ["red sofa", "", "ソファ", "أريكة حمراء", "👩‍👩‍👧", "RED SOFA " * 50, "x\0y", "диван"]
DOCUMENT_INPUTS = ["title", "description", "language", "country", IMAGES]


@pytest.fixture(scope="module")
def towers(market: TinyMarket) -> Towers:
    return random_towers(filled_config(market), market_tokenizer(market))


@pytest.fixture(scope="module")
def saved_run(market: TinyMarket, towers: Towers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with the weights of `towers` as its stage 2 and other weights as its stage 1."""
    run = tmp_path_factory.mktemp("runs") / "saved"
    run.mkdir()
    tokenizer = market_tokenizer(market)
    save_config(towers.config, run / "config.toml")
    (run / "tokenizer.model").write_bytes(tokenizer)
    save_weights(random_towers(towers.config, tokenizer, seed=2), run / "stage1.weights.h5")
    save_weights(towers, run / "stage2.weights.h5")
    return run


def both(towers: Towers) -> tuple[Tower, Tower]:
    return towers.query, towers.document


def document_columns(market: TinyMarket, rows: slice = slice(None)) -> dict[str, list[Any]]:
    return {name: [row[name] for row in market.document_rows[rows]] for name in DOCUMENT_INPUTS}


# --- vectors


def test_embeddings_have_unit_length_and_weights_sum_to_one(towers: Towers, market: TinyMarket) -> None:
    queries = {"query": QUERIES, "country": ["US"] * len(QUERIES)}
    for tower, columns in zip(both(towers), (queries, document_columns(market)), strict=True):
        outputs = encode(tower, columns)
        rows = len(next(iter(columns.values())))
        assert outputs["embedding"].shape == (rows, 16)
        assert outputs["embedding"].dtype == np.float32
        assert outputs["channel_weights"].shape == (rows, len(tower.channel_names))
        np.testing.assert_allclose(np.linalg.norm(outputs["embedding"], axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(outputs["channel_weights"].sum(axis=1), 1, atol=1e-5)
        assert (outputs["channel_weights"] >= 0).all()


def test_channels_are_named_in_the_order_of_their_weights(towers: Towers) -> None:
    assert towers.query.channel_names == ["query_trigrams", "query_country", "query_text"]
    weights = encode(towers.query, {"query": ["", "sofa"], "country": ["US", None]})["channel_weights"]
    assert (weights != 0).tolist() == [[False, True, False], [True, False, True]]


def test_a_row_without_any_channel_is_zero(towers: Towers) -> None:
    for tower in both(towers):
        outputs = encode(tower, {name: [None] for name in tower.input})
        assert not outputs["embedding"].any()
        assert not outputs["channel_weights"].any()


MISSING: list[dict[str, list[Any]]] = [
    {"description": [None]},
    {"description": [float("nan")]},
    {"description": [pd.NA]},
    {"description": [pd.NaT]},
    {"description": [""]},
    {"description": [" \u3000\t"]},
    {"description": ["\u200b"]},
    {"description": ["\0"]},
    {"description": ["\ud800"]},
    {"language": ["klingon"]},
    {"language": [""]},
    {IMAGES: [None]},
    {IMAGES: [float("nan")]},
    {IMAGES: [pd.NA]},
    {IMAGES: [[]]},
    {IMAGES: [[[0.0] * IMAGE_DIM] * 2]},
]


def test_every_form_of_a_missing_input_gives_the_same(towers: Towers) -> None:
    document = {"title": ["red sofa"], "country": ["US"]}
    expected = encode(towers.document, document)
    for missing in MISSING:
        outputs = encode(towers.document, {**document, **missing})
        for key in expected:
            np.testing.assert_allclose(outputs[key], expected[key], atol=1e-6, err_msg=str(missing))
    assert np.count_nonzero(expected["channel_weights"]) == 2, "title_text and title_trigrams, nothing else"


def test_every_channel_changes_the_embedding(towers: Towers, market: TinyMarket) -> None:
    columns = document_columns(market, slice(7, 8))
    assert all(column[0] for column in columns.values())
    whole = towers.encode_documents(columns)
    for name in ("title", "description", "language", IMAGES):
        assert np.abs(whole - towers.encode_documents({**columns, name: [None]})).max() > 1e-4, name


def test_a_vector_does_not_depend_on_its_batch(towers: Towers, market: TinyMarket) -> None:
    queries: dict[str, list[Any]] = {"query": QUERIES * 8, "country": [None, "US", "JP", "ZZ"] * 16}
    for tower, columns in zip(both(towers), (queries, document_columns(market)), strict=True):
        single, batches = encode(tower, columns, batch_size=1), encode(tower, columns, batch_size=64)
        for key in batches:
            np.testing.assert_allclose(single[key], batches[key], atol=1e-5)


def test_the_normalised_form_of_a_query_decides(towers: Towers) -> None:
    vectors = towers.encode_queries(["red sofa", " RED  Sofa ", "ＲＥＤ　ｓｏｆａ"])
    np.testing.assert_allclose(vectors[1:], vectors[[0, 0]], atol=1e-6)


def test_the_order_of_image_vectors_does_not_matter_and_their_number_is_limited(towers: Towers) -> None:
    a, b, c, fourth = np.random.default_rng(1).normal(size=(4, IMAGE_DIM)).tolist()
    sets = [[a, b, c], [c, a, b], [a, b, c, fourth], [a, b]]
    vectors = towers.encode_documents({"title": ["red sofa"] * 4, IMAGES: sets})
    np.testing.assert_allclose(vectors[1:3], vectors[[0, 0]], atol=1e-6)
    assert np.abs(vectors[3] - vectors[0]).max() > 1e-4


def test_an_image_vector_that_is_not_finite_is_refused_in_plain_data_and_padding_in_the_graph(towers: Towers) -> None:
    vectors = np.random.default_rng(3).normal(size=(1, 2, IMAGE_DIM)).astype(np.float32)
    expected = towers.encode_documents({"title": ["red sofa"], IMAGES: vectors[:, :1]})
    vectors[0, 1, 3] = np.inf
    with pytest.raises(InputError, match="row 0 must be a list of vectors of 8 finite numbers; got a number that is"):
        towers.encode_documents({"title": ["red sofa"], IMAGES: vectors})
    inputs = {**towers.document.as_inputs(["red sofa"]), IMAGES: tf.constant(vectors)}
    np.testing.assert_allclose(towers.document(inputs)["embedding"], expected, atol=1e-6)


def test_both_towers_together_give_the_cosine(towers: Towers, market: TinyMarket) -> None:
    columns = document_columns(market, slice(0, 3))
    inputs = {
        "query": towers.query.as_inputs({"query": columns["title"], "country": columns["country"]}),
        "document": towers.document.as_inputs(columns),
    }
    queries = towers.encode_queries(columns["title"], columns["country"])
    expected = (queries * towers.encode_documents(columns)).sum(axis=1)
    np.testing.assert_allclose(towers(inputs), expected, atol=1e-5)


def test_training_leaves_no_weight_of_a_channel_as_it_was(market: TinyMarket) -> None:
    """All channels are connected: the gradient of the cosines reaches every weight."""
    towers = random_towers(filled_config(market), market_tokenizer(market))
    columns = document_columns(market)
    inputs = {
        "query": towers.query.as_inputs({"query": columns["title"], "country": ["US"] * len(columns["title"])}),
        "document": towers.document.as_inputs(columns),
    }
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(towers(inputs, training=True))
    gradients = tape.gradient(total, towers.trainable_variables)
    for weight, gradient in zip(towers.trainable_variables, gradients, strict=True):
        assert gradient is not None, weight.path
        values = tf.convert_to_tensor(gradient).numpy()
        assert np.isfinite(values).all()
        assert values.any(), weight.path


def test_the_initial_weights_depend_on_the_seed_alone(market: TinyMarket) -> None:
    tokenizer = market_tokenizer(market)
    configs = [filled_config(market), filled_config(market), filled_config(market, "seed=6")]
    first, second, other = (build_towers(config, dict.fromkeys(config.encoders, tokenizer)) for config in configs)
    for weight, same in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    assert any(not np.array_equal(*pair) for pair in zip(first.get_weights(), other.get_weights(), strict=True))


# --- plain data


def test_columns_of_every_kind_give_the_same(towers: Towers) -> None:
    images = np.random.default_rng(2).normal(size=(2, 3, IMAGE_DIM)).astype(np.float32)
    titles = ["red sofa", "ソファ"]
    expected = towers.encode_documents({"title": titles, IMAGES: images.tolist()})
    columns: list[tuple[Any, Any]] = [
        (tuple(titles), tuple(map(tuple, images.tolist()))),
        (np.array(titles), images),
        (np.array(titles, object), list(images)),
        ([text.encode() for text in titles], images.tolist()),
        (tf.constant(titles), tf.constant(images)),
        (pd.Series(titles), pd.Series(images.tolist())),
        (pd.Series(titles, index=[7, 7]), pd.Series(list(images))),
        (pd.Series(titles, dtype="string"), images),
        (pa.array(titles), pa.array(images.tolist())),
        (pa.chunked_array([titles[:1], titles[1:]]), pa.array(images.tolist(), pa.list_(pa.list_(pa.float32())))),
    ]
    for title, vectors in columns:
        embeddings = towers.encode_documents({"title": title, IMAGES: vectors})
        np.testing.assert_allclose(embeddings, expected, atol=1e-6)


def test_data_frames_and_arrow_tables_may_have_other_and_missing_columns(towers: Towers, market: TinyMarket) -> None:
    rows = [{**row, "price": 3.5} for row in market.document_rows[:9]]
    expected = towers.encode_documents(document_columns(market, slice(0, 9)))
    table = pa.Table.from_pylist(rows)
    (batch,) = table.to_batches()
    for data in (pd.DataFrame(rows), pd.DataFrame(rows, index=range(9, 0, -1)), table, batch, table.to_pandas()):
        np.testing.assert_allclose(towers.encode_documents(data), expected, atol=1e-6)
    without = towers.encode_documents({"title": [row["title"] for row in rows]})
    for data in (pd.DataFrame(rows)[["price", "title"]], table.select(["price", "title"])):
        np.testing.assert_allclose(towers.encode_documents(data), without, atol=1e-6)


def test_pandas_columns_with_missing_values(towers: Towers) -> None:
    expected = towers.encode_documents({"title": ["red sofa", "lamp"], "description": ["a red one", None]})
    for kind in ("object", "string", "category"):
        frame = pd.DataFrame({"title": ["red sofa", "lamp"], "description": pd.Series(["a red one", None], dtype=kind)})
        np.testing.assert_allclose(towers.encode_documents(frame), expected, atol=1e-6, err_msg=kind)
    empty = pd.DataFrame({"title": ["red sofa", "lamp"], "description": [np.nan, np.nan]})
    np.testing.assert_allclose(towers.encode_documents(empty), towers.encode_documents(["red sofa", "lamp"]), atol=1e-6)


def test_one_column_is_the_queries_or_the_titles(towers: Towers) -> None:
    texts = ["red sofa", "lamp"]
    for column in (texts, tuple(texts), np.array(texts), pd.Series(texts), pa.array(texts), tf.constant(texts)):
        queries, documents = towers.encode_queries(column), towers.encode_documents(column)
        np.testing.assert_allclose(queries, towers.encode_queries({"query": texts}), atol=1e-6)
        np.testing.assert_allclose(documents, towers.encode_documents({"title": texts}), atol=1e-6)


def test_countries_are_a_column_or_one_for_all(towers: Towers) -> None:
    texts = ["red sofa", "lamp", "диван"]
    expected = towers.encode_queries({"query": texts, "country": ["US"] * 3})
    for countries in ("US", ["US"] * 3, pd.Series(["US"] * 3), np.array(["us", "US", " US"])):
        np.testing.assert_allclose(towers.encode_queries(texts, countries=countries), expected, atol=1e-6)
    without = towers.encode_queries(texts)
    assert np.abs(expected - without).max() > 1e-4
    np.testing.assert_allclose(towers.encode_queries(texts, [None] * 3), without, atol=1e-6)
    np.testing.assert_allclose(towers.encode_queries(pd.Series(texts), "US"), expected, atol=1e-6)
    frame = pd.DataFrame({"query": texts, "country": ["US"] * 3, "clicks": [1, 2, 3]})
    np.testing.assert_allclose(towers.encode_queries(frame), expected, atol=1e-6)


def test_lone_surrogates_are_like_other_bytes_that_are_not_utf8(towers: Towers) -> None:
    vectors = towers.encode_queries(["red \ud800 sofa", b"red \xff sofa", "red sofa", "\udfff"])
    np.testing.assert_allclose(vectors[:2], vectors[[2, 2]], atol=1e-6)
    assert not vectors[3].any()


def test_no_rows_give_no_rows(towers: Towers) -> None:
    for data in (
        {"query": [], "country": []},
        [],
        pd.DataFrame({"query": []}),
        pa.table({"query": pa.array([], "string")}),
    ):
        outputs = encode(towers.query, data)
        assert outputs["embedding"].shape == (0, 16)
        assert outputs["channel_weights"].shape == (0, 3)
    assert towers.encode_queries([], countries="US").shape == (0, 16)
    assert towers.encode_documents([]).shape == (0, 16)


def test_inputs_of_a_tower_are_tensors_for_predict_and_tf_data(towers: Towers) -> None:
    inputs = towers.document.as_inputs({"title": ["a", "b", "c"], IMAGES: [None, [[1.0] * 8] * 2, []]})
    assert list(inputs) == DOCUMENT_INPUTS
    assert inputs[IMAGES].shape == (3, 2, IMAGE_DIM)
    assert inputs["country"].numpy().tolist() == [b""] * 3
    for name, spec in towers.document.signature().items():
        assert spec.is_compatible_with(inputs[name])
    without = towers.document.as_inputs(["a"])
    assert without[IMAGES].shape == (1, 0, IMAGE_DIM)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"title": ["a"]}, "query_tower: unknown input title; the inputs are query, country"),
        ({"query": ["a"], "color": ["b"]}, "query_tower: unknown input color; the inputs are query, country"),
        ({}, "query_tower: none of the columns  is an input; the inputs are query, country"),
        (pd.DataFrame({"price": [1]}), "query_tower: none of the columns price is an input; the inputs are query"),
        (pa.table({"price": [1]}), "query_tower: none of the columns price is an input; the inputs are query"),
        ("red sofa", "'query' must be a list of values, one a row; got one text: 'red sofa'"),
        (b"red sofa", "'query' must be a list of values, one a row; got one text: b'red sofa'"),
        ({"query": "red sofa"}, "'query' must be a list of values, one a row; got one text: 'red sofa'"),
        (None, "'query' must be a list of values, one a row; got None"),
        ({"query": ["a", "b"], "country": ["US"]}, "same number of rows; got .'query': 2, 'country': 1"),
        (["a", 3], "query: row 1 must be a text; got 3"),
        ({"query": ["a", ["b"]]}, r"query: row 1 must be a text; got \['b'\]"),
    ],
)
def test_wrong_data_is_one_clear_line(towers: Towers, data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        towers.encode_queries(data)
    assert "\n" not in str(caught.value)


def test_countries_of_another_length_and_a_single_query_are_refused(towers: Towers) -> None:
    with pytest.raises(InputError, match="same number of rows; got .'query': 2, 'country': 1"):
        towers.encode_queries(["a", "b"], countries=["US"])
    for countries in ("US", ["US"]):
        with pytest.raises(InputError, match="'query' must be a list of values, one a row; got one text: 'red sofa'"):
            towers.encode_queries("red sofa", countries=countries)


def test_a_table_without_an_input_of_any_channel_is_refused(market: TinyMarket) -> None:
    towers = build_towers(read_config(market.lean_config), {})
    with pytest.raises(InputError, match="document_tower: no input of any channel; the channels read title"):
        towers.encode_documents({"country": ["US"]})


@pytest.mark.parametrize(
    ("vectors", "received"),
    [
        ([[1.0, 2.0]], r"8 finite numbers; got shape \[1, 2\]"),
        ([1.0] * IMAGE_DIM, r"8 finite numbers; got shape \[8\]: put the one vector of a row into a list"),
        ([[1.0] * IMAGE_DIM, [1.0]], "equal length; got"),
        ([["a"] * IMAGE_DIM], "equal length; got"),
        (3.0, "equal length; got 3.0"),
        ([[float("nan")] * IMAGE_DIM], "8 finite numbers; got a number that is not finite"),
    ],
)
def test_image_vectors_of_another_shape_are_refused(towers: Towers, vectors: Any, received: str) -> None:
    with pytest.raises(InputError, match=f"image_embeddings: row 1 must be a list of vectors of {received}"):
        towers.encode_documents({"title": ["a", "b"], IMAGES: [None, vectors]})


# --- a whole catalogue


def test_a_catalogue_is_embedded_in_its_own_order(towers: Towers, market: TinyMarket) -> None:
    table = open_documents(market.documents)
    ids, embeddings = embed_catalogue(towers.document, table)
    assert ids.to_pylist() == [row["document_id"] for row in market.document_rows] == read_ids(table).to_pylist()
    expected = towers.encode_documents(document_columns(market))
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    np.testing.assert_allclose(towers.encode_documents(table.read(), batch_size=7), expected, atol=1e-5)


def test_wrong_image_vectors_of_a_catalogue_are_reported_with_the_document(towers: Towers, tmp_path: Path) -> None:
    rows = [{"document_id": "x", "title": "a", IMAGES: None}, {"document_id": "y", "title": "a", IMAGES: [[1.0, 2.0]]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    with pytest.raises(
        InputError, match=r"documents .*d\.parquet: document_id 'y': image_embeddings must be a list of"
    ):
        embed_catalogue(towers.document, open_documents(tmp_path / "d.parquet"))


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
    saved_run: Path, towers: Towers, market: TinyMarket, tmp_path: Path
) -> None:
    inputs = {"query": {"query": QUERIES, "country": ["US"] * len(QUERIES)}, "document": document_columns(market)}
    jobs = [("towers", saved_run, side, columns) for side, columns in inputs.items()]
    for (side, columns), outputs in zip(inputs.items(), fresh_process.answers(jobs, tmp_path), strict=True):
        expected = encode(getattr(towers, side), columns)
        for key in expected:
            np.testing.assert_allclose(outputs[key], expected[key], atol=1e-6)


def test_a_stage_can_be_chosen(saved_run: Path, towers: Towers) -> None:
    first, second, last = (q2s_tf.load(saved_run, stage).encode_queries(QUERIES) for stage in (1, 2, None))
    np.testing.assert_allclose(last, towers.encode_queries(QUERIES), atol=1e-6)
    np.testing.assert_array_equal(second, last)
    assert np.abs(first - last).max() > 1e-4
    with pytest.raises(InputError, match="stage must be 1, 2 or None for the last one; got 3"):
        q2s_tf.load(saved_run, 3)


@pytest.fixture
def copied_run(saved_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved_run, tmp_path / "run")


def test_a_run_of_another_format_is_refused(copied_run: Path) -> None:
    config = copied_run / "config.toml"
    config.write_text(config.read_text().replace(f"format = {FORMAT}", "format = 1"))
    with pytest.raises(InputError, match="its format is 1, this q2s_tf reads 3: train it again"):
        q2s_tf.load(copied_run)


def test_an_incomplete_run_is_refused(copied_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a run directory \(no config.toml in it\)"):
        q2s_tf.load(tmp_path / "absent")
    weights = copied_run / "stage2.weights.h5"
    weights.write_bytes(weights.read_bytes()[:1_000])
    with pytest.raises(InputError, match="stage2.weights.h5: damaged, or of a model with other channels or sizes"):
        q2s_tf.load(copied_run)
    weights.unlink()
    assert q2s_tf.load(copied_run).encode_queries(["a"]).shape == (1, 16), "stage 1 is the last one then"
    with pytest.raises(InputError, match=r"no trained weights \(stage2.weights.h5\)"):
        q2s_tf.load(copied_run, stage=2)
    config = copied_run / "config.toml"
    config.write_text(config.read_text().replace("buckets = 500", "buckets = 400"))
    with pytest.raises(InputError, match="stage1.weights.h5: damaged, or of a model with other channels or sizes"):
        q2s_tf.load(copied_run)
    (copied_run / "tokenizer.model").unlink()
    with pytest.raises(InputError, match="tokenizer .*tokenizer.model: there is no such file"):
        q2s_tf.load(copied_run)


# --- as a Keras object


def test_towers_are_built_again_from_their_config(towers: Towers) -> None:
    for model in (*both(towers), towers):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
        assert again.get_config() == model.get_config()
        assert [weight.shape for weight in again.weights] == [weight.shape for weight in model.weights]


# --- a new channel is a change to a config alone


def test_a_new_column_is_a_channel_by_config_alone(market: TinyMarket, tmp_path: Path) -> None:
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

    assert trained.document.channel_names == ["title_trigrams", "brand", "brand_trigrams"]
    assert trained.config.channels["brand"].values == ("acme", "globex")  # type: ignore[union-attr]
    columns: dict[str, list[Any]] = {"title": ["red sofa"] * 3, "brand": brands}
    expected = encode(trained.document, columns)
    assert np.abs(expected["embedding"][0] - expected["embedding"][1]).max() > 1e-4
    assert (expected["channel_weights"] != 0).tolist() == [[True] * 3, [True] * 3, [True, False, False]]

    assert list(trained.document.input) == [*DOCUMENT_INPUTS, "brand"]
    assert trained.document.signature()["brand"].dtype == tf.string
    embeddings = q2s_tf.load(tmp_path / "run").encode_documents(columns)
    np.testing.assert_allclose(embeddings, expected["embedding"], atol=1e-6)
