"""A fast run: the document tower of a run with a small query tower that learned its query embeddings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh_process import answers
from test_command_lines import call
from tiny_market import TinyMarket, judged_auc
from tiny_presets import make_bert

import q2s_tf
from q2s_tf.config_files import check_config
from q2s_tf.errors import InputError
from q2s_tf.models import Towers, build_towers, encode, read_run_config, read_tokenizers
from q2s_tf.training import train
from q2s_tf.training.distil_run import distil_run

FAST = ["distillation.epochs=30", "distillation.batch_size=16", "distillation.learning_rate=0.005"]
SMALL = ["pseudo_queries.per_document=2", "channels.query_trigrams.buckets=500", "tokenizer.vocabulary_size=200"]
QUERIES: dict[str, list[Any]] = {"query": ["red sofa", "Лампа", "", "ソファ"], "country": ["US", None, "US", "JP"]}


@pytest.fixture(scope="module")
def large(market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose towers share a pretrained encoder, with longer queries than titles."""
    folder = tmp_path_factory.mktemp("large")
    make_bert(folder / "preset")
    text = {"kind": "text", "encoder": "text", "max_tokens": 12}
    tables = {
        "dimension": 12,
        "evaluation": {"relevant_at": 2},
        "tokenizer": {"vocabulary_size": 200},
        "encoders": {"text": {"preset": str(folder / "preset"), "pooling": "mean"}},
        "channels": {
            "query_words": {"tower": "query", "input": "query", **text, "max_tokens": 16},
            "title_text": {"tower": "document", "input": "title", **text},
        },
    }
    train(check_config(tables, "test"), market.documents, None, None, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def fast(market: TinyMarket, large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its fast run."""
    out = tmp_path_factory.mktemp("fast") / "run"
    distil_run(large, market.documents, market.positives, market.judgements, out, [*FAST, *SMALL])
    return out


def mean_cosine(student: Towers, teacher: Towers, market: TinyMarket) -> float:
    queries = {name: [row[name] for row in market.positive_rows] for name in ("query", "country")}
    embeddings = [encode(towers.query, queries)["embedding"] for towers in (student, teacher)]
    return float(np.mean(np.sum(np.prod(embeddings, axis=0), axis=1)))


def test_the_student_is_near_its_teacher(market: TinyMarket, large: Path, fast: Path) -> None:
    student, teacher = q2s_tf.load(fast), q2s_tf.load(large)
    config = read_run_config(fast)
    untrained = build_towers(config, read_tokenizers(fast, config))
    assert mean_cosine(untrained, teacher, market) < 0.4
    assert mean_cosine(student, teacher, market) > 0.8


def test_it_has_the_document_tower_of_the_run_and_the_query_tower_of_the_paper(
    market: TinyMarket, large: Path, fast: Path, tmp_path: Path
) -> None:
    student, teacher = q2s_tf.load(fast), q2s_tf.load(large)
    titles = [row["title"] for row in market.document_rows]
    np.testing.assert_array_equal(student.encode_documents(titles), teacher.encode_documents(titles))
    jobs: list[Any] = [("towers", fast, "document", {"title": titles}), ("towers", fast, "query", QUERIES)]
    documents, queries = (outputs["embedding"] for outputs in answers(jobs, tmp_path))
    np.testing.assert_allclose(documents, teacher.encode_documents(titles), atol=1e-6)
    np.testing.assert_allclose(queries, encode(student.query, QUERIES)["embedding"], atol=1e-6)
    assert student.config.tower_channels("document") == teacher.config.tower_channels("document")
    assert student.config.encoders["text"] == teacher.config.encoders["text"]
    assert student.query.channel_names == ["query_trigrams", "query_text"]
    encoder = student.query.text_encoders["student"]
    assert [encoder.num_layers, encoder.num_heads, encoder.hidden_dim, encoder.intermediate_dim] == [2, 4, 128, 384]
    assert set(student.query.text_encoders) == {"student"}


def test_the_run_directory_holds_the_best_epoch(market: TinyMarket, fast: Path) -> None:
    files = {"config.toml", "metrics.jsonl", "stage1.weights.h5", "tokenizer.model", "tokenizer-text.model"}
    assert {path.name for path in fast.iterdir()} - {"training.lock"} == files
    lines = [json.loads(line) for line in (fast / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["epoch"] for line in lines] == list(range(31))
    assert judged_auc(q2s_tf.load(fast), market) == pytest.approx(max(line["val_roc_auc"] for line in lines), abs=1e-3)


def test_a_document_tower_from_scratch_keeps_its_tokenizer_and_the_query_tower_its_categories(
    market: TinyMarket, run: Path, tmp_path: Path
) -> None:
    """Without positives: the queries are made from titles."""
    overrides = ["distillation.epochs=1", "evaluation.validation_metric=recall@100", *SMALL]
    distil_run(run, market.documents, None, market.judgements, tmp_path / "fast", overrides)
    student, teacher = q2s_tf.load(tmp_path / "fast"), q2s_tf.load(run)
    assert (tmp_path / "fast/tokenizer.model").read_bytes() == (run / "tokenizer.model").read_bytes()
    rows = {name: [row[name] for row in market.document_rows] for name in market.document_rows[0]}
    del rows["document_id"]
    np.testing.assert_allclose(student.encode_documents(rows), teacher.encode_documents(rows), atol=1e-6)
    assert student.query.channels["query_country"] == teacher.query.channels["query_country"]
    assert student.config.evaluation.validation_metric == "recall@100"
    assert student.config.evaluation.relevant_at == 2


@pytest.mark.slow
def test_the_command_measures_both_query_towers(
    market: TinyMarket, large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "fast"
    options = {"run": large, "documents": market.documents, "validation": market.judgements, "out": out}
    status, printed, error = call("distil", {**options, "set": "distillation.epochs=1"}, capsys, monkeypatch)
    assert status == 0, error
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    figures = {metric: values for metric, *values in rows}
    for column, run in enumerate((large, out)):
        evaluation = q2s_tf.evaluate(run, documents=market.documents, judgements=market.judgements, out=tmp_path / "e")
        expected = evaluation.results["systems"]["q2s_tf"]
        for metric in ("recall@10", "recall@100", "mrr@100", "ndcg@10", "roc_auc"):
            assert float(figures[metric][column]) == pytest.approx(expected[metric]["value"], abs=1e-4)
        weights = q2s_tf.load(run).query.count_params()
        assert figures["weights"][column] == f"{weights:,}"
        assert int(figures["µs"][column].replace(",", "")) > 0
    assert q2s_tf.export(out, documents=market.documents, out=tmp_path / "models") == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pseudo_queries.per_document=0"], "there is no query to learn: give --positives"),
        (["distillation.epochs=0"], "distillation.epochs must be at least 1"),
        (["dimension=16"], "the document tower are those of --run"),
        (["channels.title_text.max_tokens=4"], "the document tower are those of --run"),
        (["distillation.teacher=other"], "the teacher, the dimension"),
        (["encoders.student.colour=1"], "unknown key 'encoders.student.colour'"),
    ],
)
def test_wrong_settings_are_refused(
    market: TinyMarket, large: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        distil_run(large, market.documents, None, market.judgements, tmp_path / "fast", overrides)
    assert not (tmp_path / "fast").exists()


def test_wrong_runs_and_tables_are_refused_and_leave_nothing(
    market: TinyMarket, large: Path, fast: Path, lean_run: Path, tmp_path: Path
) -> None:
    out, absent = tmp_path / "out", tmp_path / "absent.tsv"
    for run, documents, judgements, message in (
        (lean_run, market.documents, market.judgements, "its query tower has no text encoder"),
        (tmp_path, market.documents, market.judgements, "not a run directory"),
        (large, absent, market.judgements, "there is no such file"),
        (large, market.documents, market.documents, "needs the column query"),
    ):
        with pytest.raises(InputError, match=message):
            distil_run(run, documents, None, judgements, out, FAST)
        assert not out.exists()
    with pytest.raises(InputError, match="exists and is not empty"):
        distil_run(large, market.documents, None, market.judgements, fast)
