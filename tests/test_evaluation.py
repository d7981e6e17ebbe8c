"""Evaluation of a run: every figure against one computed from the raw rows in plain Python."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score
from tiny_market import TinyMarket

from q2s_tf.errors import InputError
from q2s_tf.evaluation.evaluate import evaluate, metrics_table
from q2s_tf.evaluation.judgements import read_judgements
from q2s_tf.evaluation.rankers import Bm25
from q2s_tf.tables import open_documents, open_judgements
from q2s_tf.towers import Towers


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def results(run: Path, market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("evaluation") / "new"
    return evaluate(run, market.documents, market.judgements, out), out


@pytest.fixture(scope="module")
def cosines(towers: Towers, market: TinyMarket) -> dict[tuple[str, str], dict[str, float]]:
    """For each judged query the cosine of every document, by id."""
    columns = ("title", "description", "language", "country", "image_embeddings")
    documents = towers.document.predict({name: [row[name] for row in market.document_rows] for name in columns})
    ids = [row["document_id"] for row in market.document_rows]
    found = {}
    for row in market.judgement_rows:
        query = towers.query.predict({"query": [row["query"]], "country": [row["country"]]})["embedding"][0]
        scores = documents["embedding"] @ query
        found[row["query"], row["country"]] = dict(zip(ids, scores.tolist(), strict=True))
    return found


# --- the figures


def test_figures_are_what_the_raw_rows_give(
    results: tuple[dict[str, Any], Path], cosines: dict[Any, dict[str, float]], market: TinyMarket
) -> None:
    figures = results[0]["systems"]["q2s_tf"]
    rows = market.judgement_rows
    scores = [cosines[row["query"], row["country"]][row["document_id"]] for row in rows]
    assert figures["roc_auc"] == pytest.approx(roc_auc_score([row["relevance"] >= 2 for row in rows], scores), abs=1e-4)
    for k in (10, 100):
        shares = []
        for query, by_document in cosines.items():
            wanted = {
                row["document_id"] for row in rows if (row["query"], row["country"]) == query and row["relevance"] >= 2
            }
            first = sorted(by_document, key=lambda each: -by_document[each])[:k]
            shares.append(len(wanted & set(first)) / len(wanted))
        assert figures[f"recall@{k}"] == pytest.approx(np.mean(shares))
    assert figures["recall@100"] == 1, "there are 60 documents"
    gains = []
    for query, by_document in cosines.items():
        judged = [row for row in rows if (row["query"], row["country"]) == query]
        judged.sort(key=lambda row: -by_document[row["document_id"]])
        # Of grades 2, 1, 0, 0 only the first gains: 2^(2-1) - 1 = 1.
        place = [row["relevance"] for row in judged].index(2)
        gains.append(1 / math.log2(place + 2))
    assert figures["ndcg@10"] == pytest.approx(np.mean(gains), abs=1e-6)


def test_batch_recall_is_over_the_relevant_pairs(
    results: tuple[dict[str, Any], Path], cosines: dict[Any, dict[str, float]], market: TinyMarket
) -> None:
    relevant = [row for row in market.judgement_rows if row["relevance"] >= 2]
    for k in (1, 10):
        hits = 0
        for row in relevant:
            mine = cosines[row["query"], row["country"]]
            hits += sum(mine[other["document_id"]] > mine[row["document_id"]] for other in relevant) < k
        assert results[0]["systems"]["q2s_tf"][f"batch_recall@{k}"] == pytest.approx(hits / len(relevant))


def test_sizes_and_thresholds_are_told(results: tuple[dict[str, Any], Path]) -> None:
    told, _ = results
    sizes = {name: told[name] for name in ("queries", "pairs", "relevant_pairs", "left_out_pairs", "documents")}
    assert sizes == {"queries": 30, "pairs": 120, "relevant_pairs": 30, "left_out_pairs": 0, "documents": 60}
    assert (told["relevant_at"], told["recall_relevant_at"], told["negatives"]) == (2, 2, "rated")


def test_what_is_returned_is_written_and_printed(results: tuple[dict[str, Any], Path]) -> None:
    told, out = results
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8")) == told
    assert [path.name for path in out.iterdir()] == ["metrics.json"]
    console = Console(width=100, file=io.StringIO())
    console.print(metrics_table(told))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for system, figures in told["systems"].items():
        assert system in text
        for metric, value in figures.items():
            assert metric in text
            assert value is None or f"{value:.4f}" in text


def test_other_thresholds_can_be_asked_for(run: Path, market: TinyMarket, tmp_path: Path) -> None:
    told = evaluate(run, market.documents, market.judgements, tmp_path / "a", relevant_at=1)
    assert (told["relevant_at"], told["recall_relevant_at"], told["relevant_pairs"]) == (1, 1, 60)
    told = evaluate(
        run, market.documents, market.judgements, tmp_path / "b", relevant_at=1, recall_relevant_at=2, stage=1
    )
    assert (told["relevant_at"], told["recall_relevant_at"]) == (1, 2)


def test_later_positives_stand_against_sampled_negatives(run: Path, market: TinyMarket, tmp_path: Path) -> None:
    told = evaluate(run, market.documents, market.positives, tmp_path)
    assert told["negatives"] == "sampled"
    assert told["systems"]["q2s_tf"]["ndcg@10"] is None
    assert told["systems"]["q2s_tf"]["roc_auc"] > 0.7
    pairs = {(row["query"], row["country"], row["document_id"]) for row in market.positive_rows}
    assert told["relevant_pairs"] == len(pairs)


# --- BM25


def test_bm25_is_its_formula(tmp_path: Path) -> None:
    # Numbers are words that no stemmer touches.
    texts = ["11 22 33", "11 11 44", "55", "22 66 77 88 99", "11"]
    documents = [{"document_id": str(at), "title": text, "description": None} for at, text in enumerate(texts)]
    bm25 = Bm25(open_documents(write_rows(tmp_path / "d.parquet", documents)))
    words = [text.split() for text in texts]
    mean_length = sum(map(len, words)) / len(words)

    def score(query: str, document: list[str]) -> float:
        total = 0.0
        for word in query.split():
            containing = sum(word in other for other in words)
            frequency = document.count(word)
            idf = math.log(1 + (len(words) - containing + 0.5) / (containing + 0.5))
            total += idf * frequency / (frequency + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean_length))
        return total

    queries = ["11 22", "99", "１１", "nothing of this", "", None]
    expected = [[score((query or "").replace("１１", "11"), document) for document in words] for query in queries]
    np.testing.assert_allclose(np.concatenate(list(bm25.scores(queries))), expected, atol=1e-5)


# --- judgements


def test_judgements_are_joined_with_the_catalogue(tmp_path: Path) -> None:
    rows = [
        ("a", "US", "d1", 1.0),
        ("a", "US", "d1", 3.0),  # twice: the higher counts
        ("a", "JP", "d1", 0.0),  # another country is another query
        ("b", None, "d2", 2.0),
        ("b", None, "gone", 2.0),
        (None, "US", "d1", 2.0),
        ("b", "US", "d2", None),
        ("b", "US", "d2", math.nan),
    ]
    names = ("query", "country", "document_id", "relevance")
    table = open_judgements(write_rows(tmp_path / "j.parquet", [dict(zip(names, row, strict=True)) for row in rows]))
    judged = read_judgements(table, pa.array(["d0", "d1", "d2"]), seed=1)
    queries = list(zip(judged.queries["query"], judged.queries["country"], strict=True))
    found = {
        (*queries[query], int(document), float(relevance))
        for query, document, relevance in zip(judged.query, judged.document, judged.relevance, strict=True)
    }
    assert found == {("a", "US", 1, 3.0), ("a", "JP", 1, 0.0), ("b", None, 2, 2.0)}
    assert judged.rated
    assert judged.left_out == 4
    by_query = judged.by_query()
    assert [set(judged.query[pairs]) for pairs in by_query] == [{0}, {1}, {2}]


def test_sampled_negatives_are_no_positives_and_follow_the_seed(market: TinyMarket) -> None:
    ids = pa.array([row["document_id"] for row in market.document_rows])
    table = open_judgements(market.positives)
    judged, again, other = (read_judgements(table, ids, seed) for seed in (1, 1, 2))
    positive = judged.relevance == 1
    pairs = set(zip(judged.query[positive].tolist(), judged.document[positive].tolist(), strict=True))
    negatives = list(zip(judged.query[~positive].tolist(), judged.document[~positive].tolist(), strict=True))
    assert not judged.rated
    assert pairs.isdisjoint(negatives)
    assert 0.9 * positive.sum() < len(negatives) <= positive.sum()
    np.testing.assert_array_equal(judged.document, again.document)
    assert judged.document.tolist() != other.document.tolist()


# --- what is refused


def test_wrong_input_is_refused_and_nothing_is_written(run: Path, market: TinyMarket, tmp_path: Path) -> None:
    foreign = write_rows(tmp_path / "foreign.parquet", [{**row, "document_id": "x"} for row in market.judgement_rows])
    with pytest.raises(InputError, match="no row has a query, a rating and a document of the catalogue"):
        evaluate(run, market.documents, foreign, tmp_path / "out")
    twice = write_rows(tmp_path / "twice.parquet", [*market.document_rows, market.document_rows[3]])
    with pytest.raises(InputError, match="may occur once; 'd03'"):
        evaluate(run, twice, market.judgements, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="must be a folder"):
        evaluate(run, market.documents, market.judgements, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
