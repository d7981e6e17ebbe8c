"""Channel vectors, explanations of scores, channel importance and weights, against plain computations."""

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score
from test_command_lines import main_of
from tiny_market import TinyMarket

from q2s_tf.cli import run as run_command
from q2s_tf.errors import InputError
from q2s_tf.layers import AttentionFusion
from q2s_tf.models import Towers, encode
from q2s_tf.report.channels import ChannelVectors, fuse, read_channels, take_rows
from q2s_tf.report.explain import (
    Explanation,
    contributions,
    explain,
    print_explanation,
    trigram_contributions,
)
from q2s_tf.report.fusion_weights import mean_weights, weights_by_length, weights_by_missing
from q2s_tf.report.importance import Pairs, measure_importance
from q2s_tf.tables import open_documents

COLUMNS = ("title", "description", "language", "country", "image_embeddings")
QUERIES = ["red sofa", "диван", "赤いソファ", "bike", "", "أريكة أحمر 12"]
COUNTRIES = ["US", None, "JP", "nowhere", "US", None]


@pytest.fixture(scope="module")
def document_columns(market: TinyMarket) -> dict[str, list[Any]]:
    return {name: [row[name] for row in market.document_rows] for name in COLUMNS}


@pytest.fixture(scope="module")
def documents(towers: Towers, document_columns: dict[str, list[Any]]) -> ChannelVectors:
    return read_channels(towers.document, document_columns)


@pytest.fixture(scope="module")
def queries(towers: Towers) -> ChannelVectors:
    return read_channels(towers.query, {"query": QUERIES, "country": COUNTRIES})


# --- channel vectors


def test_channel_vectors_fuse_to_the_output_of_the_tower(
    towers: Towers, documents: ChannelVectors, document_columns: dict[str, list[Any]]
) -> None:
    expected = encode(towers.document, document_columns)
    np.testing.assert_allclose(documents.embedding, expected["embedding"], atol=1e-5)
    np.testing.assert_allclose(documents.weights, expected["channel_weights"], atol=1e-5)
    in_small_batches = read_channels(towers.document, document_columns, batch_size=7)
    np.testing.assert_allclose(in_small_batches.vectors, documents.vectors, atol=1e-5)


def test_missing_channels_are_marked_and_zero(documents: ChannelVectors, market: TinyMarket) -> None:
    present = documents.present[:, documents.names.index("images")]
    assert present.tolist() == [row["image_embeddings"] is not None for row in market.document_rows]
    assert not documents.vectors[~documents.present].any()


def test_rows_of_a_table_are_taken_in_the_given_order(market: TinyMarket) -> None:
    rows = take_rows(open_documents(market.documents), [41, 3, 3, 59])
    assert rows["document_id"].to_pylist() == ["d41", "d03", "d03", "d59"]


# --- contributions


def test_contributions_add_up_to_the_score(queries: ChannelVectors, documents: ChannelVectors) -> None:
    for query in range(len(QUERIES)):
        for document in range(0, 60, 7):
            parts = contributions(queries, query, documents, document)
            assert parts.shape == (3, 5)
            assert parts.sum() == pytest.approx(
                float(queries.embedding[query] @ documents.embedding[document]), abs=1e-5
            )
            assert not parts[~queries.present[query]].any()
            assert not parts[:, ~documents.present[document]].any()


def test_a_contribution_is_its_formula() -> None:
    channels = _hand_made(np.array([[[3.0, 0.0], [0.0, 8.0]]]), np.ones((1, 2), bool))
    parts = contributions(channels, 0, channels, 0)
    # Equal weights: f = (1.5, 4), |f|² = 18.25; the two channels are at right angles.
    np.testing.assert_allclose(parts, [[2.25 / 18.25, 0], [0, 16 / 18.25]], atol=1e-6)


def test_trigrams_add_up_to_their_channel(
    towers: Towers, queries: ChannelVectors, documents: ChannelVectors, market: TinyMarket
) -> None:
    for query, document in ((0, 0), (1, 20), (2, 33), (5, 50)):
        parts = contributions(queries, query, documents, document)
        found = trigram_contributions(
            towers.query, queries, query, "query_trigrams", QUERIES[query], documents.embedding[document]
        )
        assert sum(share for _, share in found.values()) == pytest.approx(parts[0].sum(), abs=1e-5)
        title = market.document_rows[document]["title"]
        found = trigram_contributions(
            towers.document, documents, document, "title_trigrams", title, queries.embedding[query]
        )
        column = documents.names.index("title_trigrams")
        assert sum(share for _, share in found.values()) == pytest.approx(parts[:, column].sum(), abs=1e-5)


def test_trigrams_are_those_of_the_normalised_text(towers: Towers, queries: ChannelVectors) -> None:
    found = trigram_contributions(towers.query, queries, 0, "query_trigrams", " ＢＯ  bo", np.ones(16))
    assert {trigram: count for trigram, (count, _) in found.items()} == {" bo": 2, "bo ": 2, "o b": 1}
    long = trigram_contributions(towers.query, queries, 0, "query_trigrams", "x" * 500, np.ones(16))
    assert sum(count for count, _ in long.values()) == 24, "the channel reads max_trigrams and no more"


# --- explain


@pytest.fixture(scope="module")
def explanation(run: Path, market: TinyMarket) -> Explanation:
    return explain(run, market.documents, "red sofa", None, "d20", k=3)


def test_an_explanation_agrees_with_the_towers(
    explanation: Explanation, towers: Towers, documents: ChannelVectors
) -> None:
    query = encode(towers.query, {"query": ["red sofa"]})
    scores = documents.embedding @ query["embedding"][0]
    order = np.argsort(-scores)
    assert explanation.score == pytest.approx(scores[20], abs=1e-5)
    assert sum(sum(row.values()) for row in explanation.contributions.values()) == pytest.approx(scores[20], abs=1e-5)
    assert order[explanation.rank - 1] == 20
    assert [match.document_id for match in explanation.best] == [f"d{row:02}" for row in order[:3]]
    assert [match.rank for match in explanation.best] == [1, 2, 3]
    rival = order[explanation.rank - 2] if explanation.rank > 1 else order[1]
    assert explanation.competitor is not None
    assert explanation.competitor.document_id == f"d{rival:02}"
    assert explanation.competitor.score == pytest.approx(scores[rival], abs=1e-5)
    assert sum(explanation.competitor.contributions.values()) == pytest.approx(scores[rival], abs=1e-5)
    assert explanation.query.weights["query_country"] is None, "no country was given"
    assert explanation.query.weights["query_text"] == pytest.approx(query["channel_weights"][0, 2], abs=1e-5)


def test_the_first_document_competes_with_the_second(run: Path, market: TinyMarket, explanation: Explanation) -> None:
    first = explain(run, market.documents, "red sofa", None, explanation.best[0].document_id, k=0)
    assert (first.rank, first.best) == (1, [])
    assert first.competitor is not None
    assert first.competitor.document_id == explanation.best[1].document_id


def test_shared_trigrams_are_marked(run: Path, market: TinyMarket) -> None:
    told = explain(run, market.documents, "red lamp", "US", "d00")  # "red sofa"
    shared = {each.trigram for each in told.query.trigrams if each.shared}
    assert shared == {" re", "red", "ed "}
    assert {each.trigram for each in told.document.trigrams if each.shared} == shared
    adds = [each.contribution for each in told.query.trigrams]
    assert adds == sorted(adds, reverse=True)


def test_wrong_input_of_an_explanation_raises(run: Path, market: TinyMarket) -> None:
    with pytest.raises(
        InputError, match=r"--document nothere: no such document_id among the 60 of .*documents.parquet"
    ):
        explain(run, market.documents, "red sofa", "US", "nothere")
    with pytest.raises(InputError, match="query ' ': every channel of this run is missing for it"):
        explain(run, market.documents, " ", "nowhere", "d00")


def test_the_command_line_prints_json(
    run: Path, market: TinyMarket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--document", "d00", "--run", str(run), "--documents", str(market.documents), "--json"]
    monkeypatch.setattr(sys, "argv", ["explain.py", "red sofa", *common])
    with pytest.raises(SystemExit) as exit_:
        run_command(main_of("explain"))
    assert exit_.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["match"]["title"] == "red sofa"
    assert told["document"]["weights"]["description_text"] is None, "d00 has no description"
    assert told["document"]["inputs"]["image_embeddings"] is None


def test_an_explanation_is_printed_as_tables(explanation: Explanation) -> None:
    console = Console(file=io.StringIO(), width=140)
    print_explanation(explanation, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"score {explanation.score:.4f}, rank {explanation.rank} of 60 documents" in text
    assert "query_country (missing)" in text
    assert f"→ {explanation.rank}" in text
    assert "◀ " in text
    for query, row in explanation.contributions.items():
        assert query in text
        for value in row.values():
            assert value == 0 or f"{value:+.4f}" in text


# --- importance


def _hand_made(vectors: np.ndarray, present: np.ndarray) -> ChannelVectors:
    """Rows of an artificial tower whose fusion gives equal weights to all channels that are present."""
    fusion = AttentionFusion()
    fusion.build((None, *vectors.shape[1:]))
    vectors = vectors.astype(np.float32)
    embedding, weights = fuse(fusion, vectors, present)
    names = [f"channel{at}" for at in range(vectors.shape[1])]
    return ChannelVectors(names, vectors, present, weights, embedding, fusion)


def test_importance_in_an_artificial_tower() -> None:
    # Channel 0 is a one-hot vector of the row; channel 1 is always zero.
    vectors = np.stack([np.eye(12), np.zeros((12, 12))], axis=1)
    channels = _hand_made(vectors, np.ones((12, 2), bool))
    query, document = (places.ravel() for places in np.mgrid[:12, :12])
    relevant = query == document
    full, found = measure_importance(channels, channels, Pairs(query, document, relevant, relevant), seed=1)
    assert full == {"roc_auc": 1, "recall@10": 1}
    by_key = {(each.tower, each.channel, each.method): each for each in found}
    assert len(by_key) == 8
    for tower in ("query", "document"):
        masked = by_key[tower, "channel0", "missing"]
        assert (masked.roc_auc_drop, masked.recall_drop, masked.share) == (0.5, 1, 1), "all scores are 0 without it"
        permuted = by_key[tower, "channel0", "permuted"]
        # No row keeps its own vector: 12 of the 132 irrelevant pairs score 1, all other pairs 0.
        assert permuted.roc_auc_drop == pytest.approx(1 - 0.5 * 120 / 132)
        assert permuted.recall_drop == 1
        for method in ("missing", "permuted"):
            constant = by_key[tower, "channel1", method]
            assert (constant.roc_auc_drop, constant.recall_drop, constant.share) == (0, 0, 0)


def test_masking_a_channel_equals_a_missing_input(
    towers: Towers, market: TinyMarket, documents: ChannelVectors, document_columns: dict[str, list[Any]]
) -> None:
    rows = market.judgement_rows
    searches = list(dict.fromkeys((row["query"], row["country"]) for row in rows))
    columns = {"query": [query for query, _ in searches], "country": [country for _, country in searches]}
    query = np.array([searches.index((row["query"], row["country"])) for row in rows])
    document = np.array([int(row["document_id"][1:]) for row in rows])
    relevant = np.array([row["relevance"] >= 2 for row in rows])
    pairs = Pairs(query, document, relevant, relevant)
    full, found = measure_importance(read_channels(towers.query, columns), documents, pairs, seed=1)
    by_key = {(each.channel, each.method): each for each in found}
    questions = encode(towers.query, columns)["embedding"]

    def figures(answers: np.ndarray) -> tuple[float, float]:
        scores = questions @ answers.T
        best = np.argsort(-scores, axis=1)[:, :10]
        recall = np.mean([at in best[number] for number, at in zip(query[relevant], document[relevant], strict=True)])
        return roc_auc_score(relevant, scores[query, document]), float(recall)

    whole = figures(encode(towers.document, document_columns)["embedding"])
    assert (full["roc_auc"], full["recall@10"]) == pytest.approx(whole, abs=1e-3)
    for name, channel in (("image_embeddings", "images"), ("language", "language")):
        without = figures(encode(towers.document, {**document_columns, name: [None] * 60})["embedding"])
        drops = (by_key[channel, "missing"].roc_auc_drop, by_key[channel, "missing"].recall_drop)
        assert drops == pytest.approx((whole[0] - without[0], whole[1] - without[1]), abs=2e-3)
    assert by_key["images", "missing"].present == 0.75


def test_importance_is_none_where_nothing_is_relevant(queries: ChannelVectors, documents: ChannelVectors) -> None:
    nothing = np.zeros(3, bool)
    full, found = measure_importance(queries, documents, Pairs(np.arange(3), np.arange(3), nothing, nothing), seed=1)
    assert full == {"roc_auc": None, "recall@10": None}
    assert {(each.roc_auc_drop, each.recall_drop, each.share) for each in found} == {(None, None, 0.0)}


# --- weights


def test_mean_weights_are_plain_means(documents: ChannelVectors, market: TinyMarket) -> None:
    groups = [row["country"] for row in market.document_rows]
    found = {group.group: group for group in mean_weights(documents, groups)}
    assert set(found) == {"US", "JP", "AE"}
    rows = [at for at, country in enumerate(groups) if country == "JP"]
    for place, name in enumerate(documents.names):
        values = [float(documents.weights[row, place]) for row in rows]
        mean = sum(values) / len(values)
        error = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
        assert found["JP"].mean[name] == pytest.approx(mean)
        assert found["JP"].error[name] == pytest.approx(error, abs=1e-6)
    assert found["JP"].rows == 16


def test_weights_by_length_are_in_order_and_without_empty_queries(documents: ChannelVectors) -> None:
    queries = [None, " ", "a", " abcd ", "abcde", "x" * 39, "x" * 40]
    groups = [(group.group, group.rows) for group in weights_by_length(documents, queries)]
    assert groups == [("1–4", 2), ("5–9", 1), ("30–39", 1), ("40+", 1)]


def test_weights_by_missing_channel(documents: ChannelVectors) -> None:
    found = {group.group: group for group in weights_by_missing(documents)}
    assert {name: group.rows for name, group in found.items()} == {
        "nothing missing": 60 - 12 - 15 + 3,
        "no description_text": 12,
        "no images": 15,
    }
    assert found["no images"].mean["images"] == 0
