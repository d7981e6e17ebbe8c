"""Channel vectors, explanations of scores, channel importance and weights, against plain computations."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from rich.console import Console
from sklearn.metrics import roc_auc_score
from test_command_lines import main_of
from tiny_market import TinyMarket

from q2s_tf.cli import run as run_command
from q2s_tf.errors import InputError
from q2s_tf.evaluation.judgements import Judgements
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
from q2s_tf.report.fusion_weights import compare_means, group_by_length, group_by_missing, mean_weights
from q2s_tf.report.importance import measure_importance, weight_agreement
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


@pytest.mark.parametrize("numbers", [[41, 3, 3, 59], [0], [59]])
def test_rows_of_a_table_are_taken_in_the_given_order(market: TinyMarket, numbers: list[int]) -> None:
    rows = take_rows(open_documents(market.documents), numbers)
    assert rows["document_id"].to_pylist() == [f"d{number:02}" for number in numbers]


def test_a_table_is_read_up_to_the_last_row_that_is_taken(tmp_path: Path) -> None:
    images = [None] * 9_000 + [[[1.0, 0.0, 0.0]]]  # the last vector is too long, and reading it an error
    columns = {"document_id": [f"d{number}" for number in range(9_001)], "title": ["sofa"] * 9_001}
    pq.write_table(pa.table(columns | {"image_embeddings": images}), tmp_path / "documents.parquet")
    table = open_documents(tmp_path / "documents.parquet", vectors={"image_embeddings": 2})
    assert take_rows(table, [70])["document_id"].to_pylist() == ["d70"]
    with pytest.raises(InputError, match="d9000"):
        take_rows(table, [8_999])


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
        inputs = {"query": QUERIES[query], "country": COUNTRIES[query]}
        found = trigram_contributions(towers.query, queries, query, inputs, documents.embedding[document])
        assert sum(each["contribution"] for each in found) == pytest.approx(parts[0].sum(), abs=1e-5)
        row = market.document_rows[document]
        found = trigram_contributions(towers.document, documents, document, row, queries.embedding[query])
        column = documents.names.index("title_trigrams")
        assert {each["channel"] for each in found} == {"title_trigrams"}
        assert sum(each["contribution"] for each in found) == pytest.approx(parts[:, column].sum(), abs=1e-5)


def test_trigrams_are_those_of_the_normalised_text(towers: Towers, queries: ChannelVectors) -> None:
    found = trigram_contributions(towers.query, queries, 0, {"query": " ＢＯ  bo", "country": None}, np.ones(16))
    assert {each["trigram"]: each["count"] for each in found} == {" bo": 2, "bo ": 2, "o b": 1}
    long = trigram_contributions(towers.query, queries, 0, {"query": "x" * 500, "country": None}, np.ones(16))
    assert sum(each["count"] for each in long) == 24, "the channel reads max_trigrams and no more"


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
    rival = explanation.rank - 1 if explanation.rank > 1 else 2
    assert [match["rank"] for match in explanation.ranking] == sorted({1, 2, 3, rival, explanation.rank})
    for match in explanation.ranking:
        row = order[match["rank"] - 1]
        assert match["document_id"] == f"d{row:02}"
        assert match["score"] == pytest.approx(scores[row], abs=1e-5)
        assert sum(match["contributions"].values()) == pytest.approx(scores[row], abs=1e-5)
    assert explanation.query.weights["query_country"] is None, "no country was given"
    assert explanation.query.weights["query_text"] == pytest.approx(query["channel_weights"][0, 2], abs=1e-5)


def test_the_first_document_competes_with_the_second(run: Path, market: TinyMarket, explanation: Explanation) -> None:
    best = [match["document_id"] for match in explanation.ranking[:2]]
    first = explain(run, market.documents, "red sofa", None, best[0], k=0)
    assert first.rank == 1
    assert [match["document_id"] for match in first.ranking] == best


def test_shared_trigrams_are_marked(run: Path, market: TinyMarket) -> None:
    told = explain(run, market.documents, "red lamp", "US", "d00")  # "red sofa"
    shared = {each["trigram"] for each in told.query.trigrams if each["shared"]}
    assert shared == {" re", "red", "ed "}
    assert {each["trigram"] for each in told.document.trigrams if each["shared"]} == shared
    adds = [each["contribution"] for each in told.query.trigrams]
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
    assert "red sofa" in [match["title"] for match in told["ranking"]]
    assert told["document"]["weights"]["description_text"] is None, "d00 has no description"
    assert told["document"]["inputs"]["image_embeddings"] is None


def test_an_explanation_is_printed_as_tables(explanation: Explanation) -> None:
    console = Console(file=io.StringIO(), width=140)
    print_explanation(explanation, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"score {explanation.score:.4f}, rank {explanation.rank} of 60 documents" in text
    assert "query_country (missing)" in text
    assert f"→ {explanation.rank}" in text
    for query, row in explanation.contributions.items():
        assert query in text
        for value in row.values():
            assert value == 0 or f"{value:+.4f}" in text


def test_escape_sequences_of_a_catalogue_are_not_printed(
    run: Path, market: TinyMarket, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "\x1b]0;owned\x07\x1b[31mred\x9b2J \u202esofa"
    rows = [{**row, "title": f"{row['title']} {evil}"} for row in market.document_rows]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "documents.parquet")
    options = ["--document", "d00", "--run", str(run), "--documents", str(tmp_path / "documents.parquet")]
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["explain.py", f"red sofa {evil}", *options, *more])
        with pytest.raises(SystemExit):
            run_command(main_of("explain"))
        printed = capsys.readouterr().out
        assert "sofa" in printed
        assert [character for character in printed if not character.isprintable() and character != "\n"] == []


# --- importance


def _hand_made(vectors: np.ndarray, present: np.ndarray) -> ChannelVectors:
    """Rows of an artificial tower whose fusion gives equal weights to all channels that are present."""
    fusion = AttentionFusion()
    fusion.build((None, *vectors.shape[1:]))
    vectors = vectors.astype(np.float32)
    embedding, weights = fuse(fusion, vectors, present)
    names = [f"channel{at}" for at in range(vectors.shape[1])]
    return ChannelVectors(names, vectors, present, weights, embedding, fusion)


def _judged(query: np.ndarray, document: np.ndarray, relevance: np.ndarray) -> Judgements:
    queries: dict[str, list[str | None]] = {"query": [str(number) for number in range(query.max() + 1)]}
    return Judgements(queries, query, document, relevance.astype(float), True, 0, {})


def test_importance_in_an_artificial_tower() -> None:
    # Channel 0 is a one-hot vector of the row; channel 1 is always zero.
    vectors = np.stack([np.eye(24), np.zeros((24, 24))], axis=1)
    channels = _hand_made(vectors, np.ones((24, 2), bool))
    query, document = (places.ravel() for places in np.mgrid[:24, :24])
    full, found = measure_importance(channels, channels, _judged(query, document, query == document), (1, 1), seed=1)
    assert full == {"roc_auc": 1, "recall@10": 1}
    by_key = {(each["tower"], each["channel"]): each for each in found}
    assert len(by_key) == 4
    for tower in ("query", "document"):
        useful, constant = by_key[tower, "channel0"], by_key[tower, "channel1"]
        assert useful["losses"]["roc_auc"]["difference"] == 0.5, "all scores are 0 without it"
        assert useful["losses"]["recall@10"]["difference"] == pytest.approx(14 / 24), "ten are first by their index"
        assert useful["losses"]["roc_auc"]["p_holm"] < 0.05
        assert (useful["share"], constant["share"]) == (1, 0)
        assert (useful["weight"], constant["weight"]) == (1, 0), "a vector of zeros has no part in the embedding"
        assert useful["dependence"]["roc_auc"]["difference"] > 0.4, "almost every row has the vector of another one"
        assert constant["dependence"]["roc_auc"]["difference"] == 0
        for test in constant["losses"].values():
            assert (test["difference"], test["low"], test["high"], test["p_holm"]) == (0, 0, 0, 1)


def test_weights_and_importance_are_compared_by_their_order() -> None:
    def row(tower: str, weight: float, loss: float) -> dict[str, Any]:
        return {"tower": tower, "weight": weight, "dependence": {"roc_auc": {"difference": loss}}}

    rows = [row("query", 0.2, 0.1), row("query", 0.5, 0.3), row("query", 0.3, 0.2), row("document", 1, 0.3)]
    assert weight_agreement(rows) == {"query": 1}, "a tower of one channel has no order"
    assert weight_agreement([*rows[:3], row("query", 0.6, 0)]) == {"query": pytest.approx(-0.2)}
    assert weight_agreement([row("query", 0.5, 0), row("query", 0.5, 0.1)]) == {}


def test_masking_a_channel_equals_a_missing_input(
    towers: Towers, market: TinyMarket, documents: ChannelVectors, document_columns: dict[str, list[Any]]
) -> None:
    rows = market.judgement_rows
    searches = list(dict.fromkeys((row["query"], row["country"]) for row in rows))
    columns = {"query": [query for query, _ in searches], "country": [country for _, country in searches]}
    query = np.array([searches.index((row["query"], row["country"])) for row in rows])
    document = np.array([int(row["document_id"][1:]) for row in rows])
    relevance = np.array([row["relevance"] for row in rows])
    relevant = relevance >= 2
    judged = _judged(query, document, relevance)
    full, found = measure_importance(read_channels(towers.query, columns), documents, judged, (2, 2), seed=1)
    by_key = {each["channel"]: each for each in found}
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
        losses = [by_key[channel]["losses"][metric]["difference"] for metric in ("roc_auc", "recall@10")]
        assert losses == pytest.approx([whole[0] - without[0], whole[1] - without[1]], abs=2e-3)
    assert by_key["images"]["present"] == 0.75


# --- weights


def test_mean_weights_are_plain_means(documents: ChannelVectors, market: TinyMarket) -> None:
    countries = np.array([row["country"] or "none" for row in market.document_rows])
    groups = {name: countries == name for name in ("US", "JP", "AE", "nowhere")}
    found = {group["group"]: group for group in mean_weights(documents, groups)}
    assert {name: group["rows"] for name, group in found.items()} == {"US": 16, "JP": 16, "AE": 12}
    for place, name in enumerate(documents.names):
        values = [float(documents.weights[row, place]) for row in np.flatnonzero(groups["JP"])]
        assert found["JP"]["mean"][name] == pytest.approx(sum(values) / len(values))


def test_queries_are_grouped_by_their_length() -> None:
    groups = group_by_length([None, " ", "a", " abcd ", "abcde", "x" * 29, "x" * 30])
    assert {name: np.flatnonzero(rows).tolist() for name, rows in groups.items() if rows.any()} == {
        "1–4": [2, 3],
        "5–9": [4],
        "20–29": [5],
        "30+": [6],
    }


def test_weights_by_missing_channel(documents: ChannelVectors) -> None:
    found = {group["group"]: group for group in mean_weights(documents, group_by_missing(documents))}
    assert {name: group["rows"] for name, group in found.items()} == {
        "nothing missing": 60 - 12 - 15 + 3,
        "no description_text": 12,
        "no images": 15,
    }
    assert found["no images"]["mean"]["images"] == 0


def test_the_interval_of_two_means_is_that_of_welch() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.normal(0.5, 0.1, 400), generator.normal(0.4, 0.3, 300)
    means = compare_means(first, second)
    expected = scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert (means["low"], means["high"]) == pytest.approx((expected.low, expected.high), abs=1e-3)
    assert (means["first"], means["second"]) == pytest.approx((first.mean(), second.mean()))
    assert compare_means(first[:1], second) == {}
