"""Distillation: the text channels of the query tower learn the embeddings of a teacher, which is not changed."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_market import TinyMarket, market_tokenizer
from tiny_presets import make_bert

import q2s_tf
from q2s_tf.config import Distillation
from q2s_tf.config_files import check_config, read_config
from q2s_tf.errors import InputError
from q2s_tf.examples.prepare import build_examples
from q2s_tf.layers import aligned_projection
from q2s_tf.losses import cosine_distillation
from q2s_tf.models import build_towers, encode, load_weights, read_tokenizers
from q2s_tf.tables import open_documents, open_positives
from q2s_tf.training import RetrievalModel, train
from q2s_tf.training.distillation import read_teacher
from q2s_tf.training.retrieval_model import compile_stage

CONFIG = q2s_tf.CONFIGS / "distil.toml"
QUERIES: dict[str, list[Any]] = {"query": ["red sofa", "Лампа", "", "ソファ"], "country": ["US", None, "US", "JP"]}
TEXT_CHANNEL = '{ tower = "query", kind = "text", input = "query", encoder = "query", max_tokens = 8 }'
SMALL = "{ num_layers = 1, num_heads = 2, hidden_dim = 16, intermediate_dim = 32, dropout = 0.0 }"


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


# --- the loss


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_the_loss_is_1_minus_the_cosine(seed: int, rows: int) -> None:
    student, teacher = np.random.default_rng(seed).normal(size=(2, rows, 3)).astype(np.float32)
    expected = [1 - a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(student, teacher, strict=True)]
    np.testing.assert_allclose(cosine_distillation(student, teacher, reduction="none"), expected, atol=1e-5)


def test_a_student_of_0_has_a_gradient_and_a_teacher_of_0_gives_none() -> None:
    student = tf.Variable([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    with tf.GradientTape() as tape:
        losses = cosine_distillation(student, tf.constant([[3.0, 0.0], [0.0, 0.0], [0.0, -1.0]]), reduction="none")
    np.testing.assert_allclose(losses, [1, 0, 2], atol=1e-6)
    gradient = tape.gradient(losses, student).numpy()
    assert gradient[0, 0] < 0 and gradient[0, 1] == 0 and np.isfinite(gradient).all()
    assert not gradient[1].any()


def test_its_gradient_equals_finite_differences() -> None:
    generator = np.random.default_rng(3)
    student, teacher = tf.Variable(generator.normal(size=(3, 4))), tf.constant(generator.normal(size=(3, 4)))

    def loss(vectors: tf.Tensor) -> tf.Tensor:
        return cosine_distillation(vectors, teacher, sample_weight=[1.0, 2.0, 3.0], reduction="sum")

    with tf.GradientTape() as tape:
        value = loss(student)
    gradient = tape.gradient(value, student).numpy()
    for place in np.ndindex(3, 4):
        nudge = np.zeros((3, 4))
        nudge[place] = 1e-6
        slope = (float(loss(student + nudge)) - float(loss(student - nudge))) / 2e-6
        assert gradient[place] == pytest.approx(slope, abs=1e-7)


# --- the teacher


def test_the_targets_of_a_run_are_its_query_embeddings(run: Path) -> None:
    teacher = read_teacher(Distillation(teacher=str(run)), 16)
    assert teacher is not None
    expected = encode(q2s_tf.load(run).query, QUERIES)["embedding"]
    np.testing.assert_allclose(teacher(QUERIES), expected, atol=1e-5)
    wider = read_teacher(Distillation(teacher=str(run)), 24)
    assert wider is not None
    np.testing.assert_allclose(wider(QUERIES) @ wider(QUERIES).T, expected @ expected.T, atol=1e-5)


def test_the_targets_of_a_preset_are_its_vectors_in_the_space_of_pretrained_towers(tmp_path: Path) -> None:
    backbone, tokenizer = make_bert(tmp_path)
    teacher = read_teacher(Distillation(teacher=str(tmp_path)), 12)
    assert teacher is not None
    rows = [[1, *np.asarray(tokenizer(text)).tolist(), 2] for text in ("red sofa", "Лампа")]
    inputs = [{"token_ids": np.array([row]), "segment_ids": np.zeros((1, len(row)))} for row in rows]
    hidden = [backbone({**one, "padding_mask": np.ones_like(one["segment_ids"])})["sequence_output"] for one in inputs]
    own = np.array([np.asarray(each)[0].mean(axis=0) for each in hidden])
    projected = own @ np.asarray(aligned_projection()((8, 12)))
    vectors = teacher(QUERIES)
    np.testing.assert_allclose(vectors[:2], projected / np.linalg.norm(projected, axis=1, keepdims=True), atol=1e-5)
    assert not vectors[2].any(), "a query without text"


def test_an_unusable_teacher_is_refused(market: TinyMarket) -> None:
    with pytest.raises(InputError, match="preset nowhere: there is no such folder"):
        read_teacher(Distillation(teacher="nowhere"), 16)
    with pytest.raises(InputError, match="distillation.teacher is given, but the query tower has no text channel"):
        read_config(market.lean_config, ['distillation.teacher="nowhere"'])
    tables = {"distillation": {"teacher": "x", "weight": 0}}
    with pytest.raises(InputError, match="distillation.weight"):
        check_config(tables, "test")


# --- a table of embeddings

WIDTH = 6


def given(texts: list[str]) -> np.ndarray:
    """Vectors of texts, as a service would give them: the sums of those of the words."""
    words = [[np.random.default_rng(sum(map(ord, word))).normal(size=WIDTH) for word in text.split()] for text in texts]
    return np.array([np.sum(vectors, axis=0) for vectors in words], np.float32)


def write_vectors(path: Path, texts: list[str], vectors: Any) -> Path:
    rows = [
        {"query": text, "embedding": np.asarray(vector, float).tolist()}
        for text, vector in zip(texts, vectors, strict=True)
    ]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".tsv":
        lines = ["query\tembedding", *(f"{row['query']}\t{json.dumps(row['embedding'])}" for row in rows)]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["parquet", "tsv", "jsonl"])
def test_the_targets_of_a_table_are_its_vectors_in_the_space_of_given_document_vectors(
    tmp_path: Path, suffix: str
) -> None:
    texts = ["Red  SOFA", "Лампа", "ソファ", "red sofa"]
    vectors = given(texts)
    vectors[3] = 9  # the same query again: the first one counts
    path = write_vectors(tmp_path / f"queries.{suffix}", texts, vectors)
    teacher = read_teacher(Distillation(teacher=str(path)), 8, WIDTH)
    assert teacher is not None
    found = teacher({"query": ["red sofa", "chair", None, "лампа", "ソファ"], "country": [None] * 5})
    np.testing.assert_allclose(found, [vectors[0] @ kernel(), *np.zeros((2, 8)), *(vectors[1:3] @ kernel())], atol=1e-5)


def kernel() -> np.ndarray:
    return np.asarray(aligned_projection()((WIDTH, 8)))


def test_given_document_vectors_keep_their_cosines(market: TinyMarket) -> None:
    config = check_config(given_tables(market, Path("queries.tsv")), "test")
    towers = build_towers(config, dict.fromkeys(config.encoders, market_tokenizer(market)))
    vectors = unit(given([row["title"] for row in market.document_rows]))
    embeddings = towers.encode_documents({"embedding": vectors[:, np.newaxis]})
    np.testing.assert_allclose(embeddings @ embeddings.T, vectors @ vectors.T, atol=1e-5)
    np.testing.assert_allclose(embeddings @ unit(vectors @ kernel()).T, vectors @ vectors.T, atol=1e-5)


def given_tables(market: TinyMarket, teacher: Path) -> dict[str, Any]:
    """The shipped config, smaller."""
    tables = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    tables["channels"]["vector"]["dimension"] = WIDTH
    tables["channels"]["query_trigrams"]["buckets"] = 500
    tables["encoders"]["student"] = {"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "intermediate_dim": 64}
    tables["distillation"] |= {"teacher": str(teacher), "epochs": 40, "batch_size": 16, "learning_rate": 0.01}
    return tables | {"dimension": 8, "tokenizer": {"vocabulary_size": 200}, "stage1": {"max_epochs": 1}}


def test_a_query_tower_learns_given_embeddings(market: TinyMarket, tmp_path: Path) -> None:
    """The vectors of a query and of a product with the same title are equal, so that the product is found."""
    titles = [row["title"] for row in market.document_rows]
    rows = [
        {**row, "embedding": vector.tolist()} for row, vector in zip(market.document_rows, given(titles), strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "documents.parquet")
    teacher = write_vectors(tmp_path / "queries.parquet", titles, given(titles))
    tables = given_tables(market, teacher)
    tables["stage1"] |= {"learning_rate": 1e-12, "text_learning_rate": 1e-12, "batch_size": 16}
    config = check_config(tables, "test")
    train(config, tmp_path / "documents.parquet", market.positives, market.judgements, tmp_path / "run")
    towers = q2s_tf.load(tmp_path / "run")
    documents = towers.encode_documents({"embedding": given(titles)[:, np.newaxis]})
    queries = towers.encode_queries(titles)
    assert np.mean(np.sum(queries * documents, axis=1)) > 0.7
    assert np.mean(np.argmax(queries @ documents.T, axis=1) == np.arange(len(titles))) > 0.5


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 2.0], [1.0]], "must be a list of vectors of 2 finite numbers.*got a vector of 1"),
        ([[1.0, 2.0], [1.0, float("nan")]], "finite numbers.*got nan"),
        ([[1.0, 2.0], []], "got a vector of 0"),
        ([[[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]], "query 'лампа': needs one embedding"),
    ],
)
def test_a_table_with_other_vectors_is_refused(tmp_path: Path, vectors: Any, message: str) -> None:
    path = write_vectors(tmp_path / "queries.parquet", ["sofa", "лампа"], vectors)
    with pytest.raises(InputError, match=message):
        read_teacher(Distillation(teacher=str(path)), 8, 2)


def test_an_unusable_table_is_refused(market: TinyMarket, run: Path, tmp_path: Path) -> None:
    path = write_vectors(tmp_path / "queries.parquet", ["sofa", "лампа"], [[1.0, 2.0], [1.0, 2.0, 3.0]])
    with pytest.raises(InputError, match="query 'лампа': needs one embedding, as wide as that of the first query"):
        read_teacher(Distillation(teacher=str(path)), 8)
    with pytest.raises(InputError, match=r"absent\.tsv: there is no such file"):
        read_teacher(Distillation(teacher=str(tmp_path / "absent.tsv")), 8)
    with pytest.raises(InputError, match="needs the column embedding"):
        read_teacher(Distillation(teacher=str(market.positives)), 8)
    other = write_vectors(tmp_path / "other.parquet", ["nothing like it"], given(["x"]))
    config = read_config(run / "config.toml", [f'distillation.teacher="{other}"'])
    towers = build_towers(config, read_tokenizers(run, config))
    catalogue = open_documents(market.documents, config.tower_inputs("document"), config.vector_inputs())
    teacher = read_teacher(config.distillation, 16)
    with pytest.raises(InputError, match=r"other\.parquet has an embedding for none of the"):
        build_examples(tmp_path / "stores", towers, catalogue, open_positives(market.positives), teacher)


# --- in training


def test_the_step_adds_the_loss_of_the_text_channels(market: TinyMarket, run: Path, tmp_path: Path) -> None:
    overrides = [f'distillation={{ teacher = "{run}", weight = 0.7 }}', "encoders.query.dropout=0.0"]
    config = read_config(run / "config.toml", [*overrides, "encoders.document.dropout=0.0"])
    towers = build_towers(config, read_tokenizers(run, config))
    load_weights(towers, run / "stage1.weights.h5")  # the vectors of a new encoder are 0
    catalogue = open_documents(market.documents, config.tower_inputs("document"), config.vector_inputs())
    pairs, teacher = open_positives(market.positives), read_teacher(config.distillation, 16)
    examples = build_examples(tmp_path / "stores", towers, catalogue, pairs, teacher)
    batch = next(iter(examples.dataset(16, (1,))))
    query = towers.query
    texts = query.channel_layers["query_text"](query.text_encoders["query"](batch["query"]["query_text"])).numpy()
    expected = 0.7 * (1 - (unit(texts) * unit(batch["teacher"].numpy())).sum(axis=1)).mean()
    model = RetrievalModel(towers)
    compile_stage(model, stage=1, steps_per_epoch=10)
    reported = model.train_step(batch)
    np.testing.assert_allclose(reported["distillation_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(reported["loss"], reported["retrieval_loss"] + reported["distillation_loss"], rtol=1e-5)


def test_every_query_has_its_own_teacher_embedding(market: TinyMarket, run: Path, tmp_path: Path) -> None:
    config = read_config(run / "config.toml", [f'distillation.teacher="{run}"'])
    towers = build_towers(config, read_tokenizers(run, config))
    embedded: list[str] = []

    def teacher(columns: Any) -> np.ndarray:
        embedded.extend(columns["query"])
        return np.array([[len(text), sum(map(ord, text)), *[0] * 14] for text in columns["query"]], np.float32)

    catalogue = open_documents(market.documents, config.tower_inputs("document"), config.vector_inputs())
    examples = build_examples(tmp_path / "stores", towers, catalogue, open_positives(market.positives), teacher)
    typed = sorted({(row["query"], row["country"] or "") for row in market.positive_rows})
    assert sorted(embedded) == sorted(query for query, _ in typed), "once for every country"
    batch = examples.batch(np.arange(40))
    lengths = (batch["query"]["query_trigrams"] != 0).sum(axis=1)
    np.testing.assert_array_equal(batch["teacher"][:, 0], lengths, "one 3-gram for each character")


def test_a_student_approaches_its_teacher_in_the_stages(market: TinyMarket, run: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    distillation = f'distillation={{ teacher = "{run}", weight = 2.0 }}'
    overrides = [f"channels.query_text={TEXT_CHANNEL}", f"encoders.query={SMALL}", distillation]
    longer = ["stage1.max_epochs=20", "stage1.patience=20", "stage1.text_learning_rate=0.02"]
    config = read_config(market.lean_config, [*overrides, *longer])
    train(config, market.documents, market.positives, market.judgements, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["distillation_loss"] for line in lines if line["epoch"]]
    assert losses[0] / 2 > 0.6
    assert losses[-1] / 2 < 0.5, "1 - cos, on average"
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_before_stage_1_only_the_text_channels_learn(
    market: TinyMarket, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = "{ num_layers = 1, num_heads = 2, hidden_dim = 32, intermediate_dim = 64, dropout = 0 }"
    before = [f'distillation.teacher="{run}"', "distillation.epochs=80", "distillation.learning_rate=0.02"]
    before += ["distillation.batch_size=16"]
    still = ["stage1.max_epochs=1", "stage1.learning_rate=1e-12", "stage1.text_learning_rate=1e-12"]
    overrides = [f"channels.query_text={TEXT_CHANNEL}", f"encoders.query={encoder}", *before, *still]
    config = read_config(market.lean_config, overrides)
    towers = train(config, market.documents, market.positives, market.judgements, tmp_path / "run")
    assert "distillation done: mean cosine" in capsys.readouterr().err
    queries = {name: [row[name] for row in market.positive_rows] for name in ("query", "country")}
    vectors, mask = towers.query.encode_channels(towers.query.preprocessor(towers.query.as_inputs(queries)))
    texts = towers.query.fuse(vectors, mask & [name == "query_text" for name in towers.query.channel_names])[0]
    cosines = (texts.numpy() * encode(q2s_tf.load(run).query, queries)["embedding"]).sum(axis=1)
    assert cosines.mean() > 0.8
    config = read_config(tmp_path / "run/config.toml")
    initial = build_towers(config, read_tokenizers(tmp_path / "run", config))
    for old, new in zip(initial.document.weights, towers.document.weights, strict=True):
        np.testing.assert_allclose(old, new, atol=1e-6)
    tables = [each.query.channel_layers["query_trigrams"].table for each in (initial, towers)]
    np.testing.assert_allclose(*tables, atol=1e-6)
