"""Pretrained text encoders: the vectors and tokens of the model, in a run that is independent of its preset."""

import functools
import importlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_market import TinyMarket, judged_auc
from tiny_presets import (
    CHARACTERS,
    MAX_TOKENS,
    SLOW_RATES,
    bert_vocabulary,
    build,
    make_bert,
    make_xlm_roberta,
    prepared,
    tower_config,
    train_pretrained,
)

import q2s_tf
from q2s_tf.config_files import check_config
from q2s_tf.errors import InputError
from q2s_tf.examples.stored_rows import store_rows
from q2s_tf.layers import TextEncoder
from q2s_tf.models import Tower, Towers, fill_encoders
from q2s_tf.models.towers import precomputed_input
from q2s_tf.text import WordPiece

TEXTS = [
    "red sofa",
    "Table, chair",
    "a",
    "диван лампа",
    "lamp/lamp-lamp lamp lamp lamp lamp lamp",
    "ソファ 9.5",
    "qqq 猫",
]
"""Without accents: keras_hub's BERT leaves them, where the original strips them, as `test_word_pieces_…` shows."""


class Model(NamedTuple):
    """A preset, and what keras_hub makes of it: the oracle."""

    folder: Path
    backbone: Any
    tokenizer: Any
    begin: int
    end: int
    padding: int


@pytest.fixture(scope="module")
def models_by_family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("presets")
    vocabulary = bert_vocabulary()
    special = [vocabulary.index(piece) for piece in ("[CLS]", "[SEP]", "[PAD]")]
    return {
        "bert": Model(folder / "bert", *make_bert(folder / "bert"), *special),
        "xlm_roberta": Model(folder / "xlmr", *make_xlm_roberta(folder / "xlmr"), 0, 2, 1),
    }


@pytest.fixture(params=["bert", "xlm_roberta"])
def model(request: pytest.FixtureRequest, models_by_family: dict[str, Model]) -> Model:
    return models_by_family[request.param]


def rows_of_the_model(model: Model, texts: list[str]) -> list[list[int]]:
    """What the model's own preprocessing makes of texts, in its own ids."""
    rows = [[int(token) for token in model.tokenizer(text)] for text in texts]
    return [[model.begin, *row[: MAX_TOKENS - 2], model.end] for row in rows]


def vectors_of_the_model(model: Model, texts: list[str], num_layers: int, pooling: str) -> np.ndarray:
    """keras_hub's own vectors, each text by itself, without padding."""
    last = model.backbone.get_layer(f"transformer_layer_{num_layers - 1}").output
    cut = keras.Model(model.backbone.input, last)
    vectors = []
    for row in rows_of_the_model(model, texts):
        ids = np.array([row])
        inputs = {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": np.ones_like(ids)}
        hidden = np.asarray(cut({name: inputs[name] for name in model.backbone.input}))[0]
        vectors.append(hidden[0] if pooling == "cls" else hidden.mean(axis=0))
    return np.array(vectors)


def own_encoder(towers: Towers) -> TextEncoder:
    return towers.document.text_encoders["own"]


def inner_kernel(model: Model, layer: int) -> np.ndarray:
    """A weight of the preset."""
    weights = model.backbone.transformer_layers[layer].weights
    return next(weight.numpy() for weight in weights if weight.path.endswith("feedforward_intermediate_dense/kernel"))


# --- tokens


def test_tokens_are_the_models_own_with_0_as_padding(model: Model) -> None:
    ids = prepared(build(tower_config(model.folder)), TEXTS)
    swap = {0: model.padding, model.padding: 0}
    own = [[swap.get(token, token) for token in row] for row in rows_of_the_model(model, TEXTS)]
    assert ids.shape[1] == max(map(len, own)) == MAX_TOKENS
    assert [[token for token in row if token] for row in ids.tolist()] == own
    assert all(not any(row[len(ids_) :]) for row, ids_ in zip(ids.tolist(), own, strict=True)), "padding comes last"


def test_a_text_of_invisible_characters_is_missing(model: Model) -> None:
    towers = build(tower_config(model.folder))
    assert not prepared(towers, ["", " \t ", "\u200d"]).any()
    assert not towers.encode_documents(["", "red"])[0].any()


RARE = ["İ", "ẞ", "\u00a0", "\u3000", " ", " ", "猫", "#", "\u0301", "\u200b", "가", *"AÉÀŽЁЙСВИ"]
LETTERS = st.sampled_from([*CHARACTERS, *RARE])


@functools.cache
def word_pieces(lowercase: bool) -> tuple[WordPiece, tokenizers.BertWordPieceTokenizer]:
    """Ours, and that of Hugging Face."""
    places = {piece: place for place, piece in enumerate(bert_vocabulary())}
    ours = WordPiece("\n".join(bert_vocabulary()).encode(), lowercase)
    return ours, tokenizers.BertWordPieceTokenizer(places, lowercase=lowercase)


@given(st.lists(LETTERS, max_size=25).map(lambda letters: "".join(letters) or "a"), st.booleans())
@settings(deadline=None, max_examples=150)
def test_word_pieces_are_those_of_bert(text: str, lowercase: bool) -> None:
    tokenizer, reference = word_pieces(lowercase)
    ours = tokenizer.token_ids(tf.constant([text]), 99).numpy()[0].tolist()
    swap = {0: tokenizer.padding, tokenizer.padding: 0}
    assert [swap.get(token, token) for token in ours] == reference.encode(text).ids


# --- vectors


@pytest.mark.parametrize(("num_layers", "pooling"), [(3, "mean"), (3, "cls"), (1, "mean"), (2, "cls")])
def test_vectors_are_the_models_own(model: Model, num_layers: int, pooling: str) -> None:
    towers = build(tower_config(model.folder, num_layers=num_layers, pooling=pooling))
    expected = vectors_of_the_model(model, TEXTS, num_layers, pooling)
    np.testing.assert_allclose(own_encoder(towers)(prepared(towers, TEXTS)), expected, atol=1e-5)


def test_all_layers_are_used_by_default(model: Model) -> None:
    (encoder,) = fill_encoders(tower_config(model.folder))[0].encoders.values()
    sizes = (encoder.num_layers, encoder.num_heads, encoder.hidden_dim, encoder.intermediate_dim)
    assert sizes == (3, 2, 8, 16)


def test_a_tower_begins_with_the_cosines_of_its_encoder(model: Model) -> None:
    vectors = vectors_of_the_model(model, TEXTS, 3, "mean")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for dimension in (8, 20):
        towers = build(tower_config(model.folder, dimension=dimension, pooling="mean"))
        embeddings = towers.encode_documents(TEXTS)
        np.testing.assert_allclose(embeddings @ embeddings.T, vectors @ vectors.T, atol=1e-5)


# --- in a run


def test_towers_with_other_channels_begin_with_the_cosines_of_their_encoders(
    market: TinyMarket, models_by_family: dict[str, Model], tmp_path: Path
) -> None:
    """A run without pairs and epoch 0 rank as the encoder. The other channels are trained from epoch 1 on."""
    preset = models_by_family["bert"].folder
    query = '{ tower = "query", kind = "text", input = "query", encoder = "own", max_tokens = 8 }'
    overrides = (f"channels.query_text={query}", "stage1.max_epochs=1", "stage1.learning_rate=1e-3")
    trained = train_pretrained(market, preset, tmp_path / "trained", *overrides)
    assert all(len(tower.channel_names) > 1 for tower in (trained.query, trained.document))
    untrained = q2s_tf.train(trained.config, documents=market.documents, out=tmp_path / "untrained")
    texts = [row["title"] for row in market.document_rows]
    single = tower_config(preset, trained.config.dimension, 8, num_layers=2, pooling="mean")
    alone = build(single).encode_documents(texts)
    documents = untrained.encode_documents(pa.Table.from_pylist(market.document_rows))
    np.testing.assert_allclose(untrained.encode_queries(texts) @ documents.T, alone @ alone.T, atol=1e-5)
    lines = (tmp_path / "trained" / "metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(line)["val_roc_auc"] for line in lines]
    assert epochs[0] == pytest.approx(judged_auc(untrained, market), abs=0.03), "up to the order of equal titles"
    assert epochs[1] > epochs[0]
    for tower in (trained.query, trained.document):
        others = np.array([not name.endswith("_text") for name in tower.channel_names])
        weights = tower.predict(tower.as_inputs(texts), verbose=0)["channel_weights"][:, others]
        assert 0 < weights.max() < 0.5, "the other channels take part, beside the encoder"


@pytest.fixture
def presets(models_by_family: dict[str, Model], tmp_path: Path) -> Path:
    """A folder with a copy of each preset."""
    for name, model in models_by_family.items():
        shutil.copytree(model.folder, tmp_path / "presets" / name)
    return tmp_path / "presets"


@pytest.mark.slow
def test_a_run_is_independent_of_its_presets(
    market: TinyMarket,
    models_by_family: dict[str, Model],
    presets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """BERT in the document tower, XLM-R in the query tower. The training is interrupted before its first weights."""

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    query = '{ tower = "query", kind = "text", input = "query", encoder = "typed", max_tokens = 8 }'
    typed = f'encoders.typed={{ preset = "{presets / "xlm_roberta"}", pooling = "cls" }}'
    overrides = (f"channels.query_text={query}", typed, *SLOW_RATES)
    run, texts = tmp_path / "run", ["red sofa", "красный диван", "Blue LAMP", ""]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(importlib.import_module("q2s_tf.training.train"), "build_examples", interrupt)
        train_pretrained(market, presets / "bert", run, *overrides)
    towers = train_pretrained(market, presets / "bert", run, *overrides, resume=True)
    kernel = own_encoder(towers).blocks[1]["inner_kernel"]
    expected = inner_kernel(models_by_family["bert"], 1)
    np.testing.assert_allclose(kernel, expected, atol=1e-6, err_msg="training begins with the preset's weights")
    queries, documents = towers.encode_queries(texts), towers.encode_documents(texts)

    shutil.rmtree(presets)
    reloaded = q2s_tf.load(run)
    np.testing.assert_allclose(reloaded.encode_queries(texts), queries, atol=1e-5)
    np.testing.assert_allclose(reloaded.encode_documents(texts), documents, atol=1e-5)
    reloaded.document.save(tmp_path / "tower.keras")
    loaded = keras.saving.load_model(tmp_path / "tower.keras")
    outputs = loaded.predict(loaded.as_inputs(texts), verbose=0)
    np.testing.assert_allclose(outputs["embedding"], documents, atol=1e-5)

    longer = train_pretrained(market, presets / "bert", run, *overrides, "stage1.max_epochs=2", resume=True)
    np.testing.assert_allclose(longer.encode_queries(texts), queries, atol=1e-5)
    with pytest.raises(InputError, match="was trained with another config .differs in encoders."):
        train_pretrained(market, presets / "bert", run, *overrides, 'encoders.own.pooling="cls"', resume=True)
    (run / "tokenizer-own.model").unlink()
    with pytest.raises(InputError, match=r"tokenizer .*tokenizer-own.model: there is no such file"):
        q2s_tf.load(run)


def losses(run: Path) -> list[float]:
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_a_pretrained_encoder_learns_with_a_small_query_tower(
    market: TinyMarket, models_by_family: dict[str, Model], tmp_path: Path
) -> None:
    query = '{ tower = "query", kind = "text", input = "query", encoder = "query", max_tokens = 8 }'
    small = "encoders.query={ num_layers = 1, num_heads = 2, hidden_dim = 8, intermediate_dim = 16 }"
    overrides = (f"channels.query_text={query}", small, "stage1.max_epochs=6", "stage1.text_learning_rate=5e-3")
    model = models_by_family["bert"]
    towers = train_pretrained(market, model.folder, tmp_path / "run", *overrides)
    epochs = losses(tmp_path / "run")
    assert epochs[-1] < epochs[0] / 2
    assert np.abs(own_encoder(towers).blocks[0]["inner_kernel"].numpy() - inner_kernel(model, 0)).max() > 1e-3


def test_an_encoder_that_is_not_trainable_gives_what_one_with_a_tiny_rate_gives(
    market: TinyMarket, models_by_family: dict[str, Model], presets: Path, tmp_path: Path
) -> None:
    def best_validation(run: Path) -> float:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return max(json.loads(line)["val_roc_auc"] for line in lines)

    preset, common = presets / "bert", ["clip_norm=1e9", "stage1.max_epochs=2"]  # the norm is over all gradients
    tiny_rate = ["encoders.own.dropout=0", "encoders.own.learning_rate_factor=1e-12"]
    trainable = train_pretrained(market, preset, tmp_path / "trainable", *common, *tiny_rate)
    fixed = train_pretrained(market, preset, tmp_path / "fixed", *common, "encoders.own.trainable=false")
    assert best_validation(tmp_path / "fixed") == pytest.approx(judged_auc(fixed, market), abs=1e-6)
    np.testing.assert_allclose(losses(tmp_path / "fixed"), losses(tmp_path / "trainable"), rtol=1e-4)
    embeddings = [towers.encode_documents(["red sofa", "lamp"]) for towers in (fixed, trainable)]
    np.testing.assert_allclose(*embeddings, atol=1e-4)

    shutil.rmtree(presets)
    more = ("clip_norm=1e9", "stage1.max_epochs=3", "encoders.own.trainable=false")
    longer = train_pretrained(market, preset, tmp_path / "fixed", *more, resume=True)
    assert len(losses(tmp_path / "fixed")) == 3
    for layer, block in enumerate(own_encoder(longer).blocks):
        expected = inner_kernel(models_by_family["bert"], layer)
        np.testing.assert_array_equal(block["inner_kernel"], expected)


def test_the_outputs_of_an_encoder_that_is_not_trainable_are_stored(model: Model, tmp_path: Path) -> None:
    tower = build(tower_config(model.folder, trainable=False)).document
    raw = tf.data.Dataset.from_tensor_slices(tower.as_inputs(TEXTS)).batch(4)
    rows = store_rows(tmp_path / "rows", tower, raw)
    before = embed_stored(tower, rows.read(np.arange(len(TEXTS))))
    np.testing.assert_allclose(before, tower.predict(tower.as_inputs(TEXTS), verbose=0)["embedding"], atol=1e-5)
    assert precomputed_input("text") in rows.read(np.arange(2))
    kernel = tower.channel_layers["text"].kernel
    kernel.assign(np.random.default_rng(1).normal(size=kernel.shape))
    after = embed_stored(tower, rows.read(np.arange(len(TEXTS))))
    np.testing.assert_allclose(after, tower.predict(tower.as_inputs(TEXTS), verbose=0)["embedding"], atol=1e-5)
    assert np.abs(after - before).max() > 0.1
    for weight in tower.text_encoders["own"].weights:
        weight.assign(tf.zeros_like(weight))
    unchanged = embed_stored(tower, rows.read(np.arange(len(TEXTS))))
    np.testing.assert_array_equal(unchanged, after, "the encoder is not computed again")


def embed_stored(tower: Tower, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(tower.fuse(*tower.encode_channels(inputs))[0])


# --- what is refused


def test_a_folder_that_is_no_preset_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"preset .*nowhere: there is no such folder, nor a keras_hub preset"):
        fill_encoders(tower_config(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"preset .*: cannot be read by keras_hub: .*mamba"):
        fill_encoders(tower_config(tmp_path))
    with pytest.raises(InputError, match=r"encoders\.own\.num_layers is 4, but preset .* has only 3 layers"):
        fill_encoders(tower_config(model.folder, num_layers=4))
    with pytest.raises(InputError, match=r"a channel has max_tokens = 25, but preset .* reads only 24"):
        fill_encoders(tower_config(model.folder, max_tokens=25))


def test_a_preset_of_another_family_is_refused(tmp_path: Path) -> None:
    import keras_hub

    sizes = {"num_layers": 1, "num_heads": 1, "hidden_dim": 4, "intermediate_dim": 4, "max_sequence_length": 8}
    keras_hub.models.DistilBertBackbone(vocabulary_size=9, **sizes).save_to_preset(str(tmp_path))
    with pytest.raises(InputError, match=r"is a DistilBertBackbone: give one of the BERT or XLM-R family"):
        fill_encoders(tower_config(tmp_path))


def test_what_contradicts_a_preset_is_refused() -> None:
    with pytest.raises(InputError, match="hidden_dim: comes from the preset there: leave it out"):
        tower_config(Path("there"), hidden_dim=16)
    with pytest.raises(InputError, match="trainable = false needs a pretrained encoder: give it a preset"):
        check_config({"encoders": {"own": {"trainable": False}}, "channels": {}}, "test")
    with pytest.raises(InputError, match="max_tokens is 2: .* must be at least 3"):
        tower_config(Path("there"), max_tokens=2)
