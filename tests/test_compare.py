"""Comparison of two runs: equal runs do not differ, and a planted difference is significant."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from tiny_market import TinyMarket

from q2s_tf.errors import InputError
from q2s_tf.evaluation.compare import compare, comparison_tables
from q2s_tf.evaluation.evaluate import evaluate
from q2s_tf.evaluation.system_metrics import SystemMetrics
from q2s_tf.models import Towers, build_towers, load, read_tokenizers, save_weights


@pytest.fixture(scope="module")
def untrained(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with random weights."""
    other = tmp_path_factory.mktemp("other") / "untrained"
    other.mkdir()
    for name in ("config.toml", "tokenizer.model"):
        shutil.copy(run / name, other / name)
    towers = load(run)
    fresh: Towers = build_towers(towers.config, read_tokenizers(run, towers.config))
    generator = np.random.default_rng(9)
    for tower in (fresh.query, fresh.document):
        tower.set_weights([generator.normal(size=weight.shape) for weight in tower.get_weights()])
    save_weights(fresh, other / "stage1.weights.h5")
    return other


@pytest.fixture(scope="module")
def compared(
    run: Path, untrained: Path, market: TinyMarket, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("comparison") / "new"
    return compare(untrained, run, market.documents, market.judgements, out, market.positives), out


def test_a_run_is_no_better_than_itself(run: Path, market: TinyMarket) -> None:
    told = compare(run, run, market.documents, market.judgements)
    assert told["systems"]["A"] == told["systems"]["B"]
    assert {row["metric"] for row in told["significance"]} == {
        "roc_auc",
        "ndcg@10",
        "mrr@100",
        "recall@10",
        "recall@100",
    }
    for row in told["significance"]:
        assert (row["difference"], row["low"], row["high"], row["p"], row["p_holm"]) == (0, 0, 0, 1, 1)
        assert not row["wins"] and not row["losses"]
    assert told["movers"] == {"metric": "ndcg@10", "gained": [], "lost": []}


def test_a_trained_run_is_better_than_random_weights(compared: tuple[dict[str, Any], Path]) -> None:
    told, _ = compared
    rows = {row["metric"]: row for row in told["significance"]}
    assert {"later_recall@10", "later_recall@100"} <= set(rows)
    for metric in ("roc_auc", "ndcg@10", "recall@10", "later_recall@10"):
        assert rows[metric]["low"] > 0 and rows[metric]["p_holm"] < 0.05, metric
        assert rows[metric]["difference"] == pytest.approx(
            told["systems"]["B"][metric]["value"] - told["systems"]["A"][metric]["value"]
        )
    assert rows["recall@100"]["difference"] == 0, "there are 60 documents"


def test_figures_are_those_of_an_evaluation(
    compared: tuple[dict[str, Any], Path], run: Path, market: TinyMarket, tmp_path: Path
) -> None:
    alone = evaluate(run, market.documents, market.judgements, tmp_path, encoder="none").results["systems"]["q2s_tf"]
    for metric in ("roc_auc", "ndcg@10", "mrr@100", "recall@10"):
        assert compared[0]["systems"]["B"][metric]["value"] == pytest.approx(alone[metric]["value"]), metric


def test_movers_are_the_queries_that_changed_most(compared: tuple[dict[str, Any], Path]) -> None:
    told, out = compared
    table = {(row["query"], row["country"]): row for row in pq.read_table(out / "per_query.parquet").to_pylist()}
    changes = [row["B/ndcg@10"] - row["A/ndcg@10"] for row in table.values() if row["A/ndcg@10"] is not None]
    gained = told["movers"]["gained"]
    assert len(gained) == min(10, sum(change > 0 for change in changes))
    np.testing.assert_allclose([row["B"] - row["A"] for row in gained], sorted(changes, reverse=True)[: len(gained)])
    for row in gained:
        assert table[row["query"], row["country"]]["A/ndcg@10"] == row["A"]
    assert all(row["B"] < row["A"] for row in told["movers"]["lost"])


def test_what_is_returned_is_written_and_printed(compared: tuple[dict[str, Any], Path]) -> None:
    told, out = compared
    assert json.loads((out / "comparison.json").read_text(encoding="utf-8")) == told
    assert {path.name for path in out.iterdir()} == {"comparison.json", "per_query.parquet"}
    console = Console(width=160, file=io.StringIO())
    for table in comparison_tables(told):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "A untrained, B tiny" in text
    for row in told["significance"]:
        assert row["metric"] in text and f"{row['difference']:+.4f}" in text
    for row in told["movers"]["gained"]:
        assert row["query"] in text


def test_a_query_is_printed_as_it_is() -> None:
    movers = {
        "metric": "recall@10",
        "gained": [{"query": "[bold]sofa[/x]\x1b[2J\x9b2J", "country": None, "A": 0.0, "B": 1.0}],
        "lost": [],
    }
    told = {"runs": {"A": "a", "B": "[b]"}, "sizes": {"pairs": 1, "queries": 1}, "significance": [], "movers": movers}
    console = Console(width=100, file=io.StringIO())
    for table in comparison_tables(told):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]sofa[/x]" in text
    assert not {"\x1b", "\x9b"} & set(text)


def test_only_a_planted_difference_is_significant() -> None:
    generator = np.random.default_rng(1)
    query, relevant = np.repeat(np.arange(100), 10), generator.random(1000) < 0.3
    noise = generator.normal(size=(3, 1000))
    scores = {"weak": relevant + noise[0], "strong": 2 * relevant + noise[1], "as weak": relevant + noise[2]}
    values = {"weak": generator.random(100), "as weak": generator.random(100)}
    values["strong"] = values["weak"] + 0.1
    metrics = SystemMetrics(query, relevant, scores, {system: {"ndcg@10": values[system]} for system in scores})
    found = metrics.differences([("strong", "weak"), ("as weak", "weak")], seed=2)
    by_pair = {(row["a"], row["metric"]): row for row in found}
    for metric in ("roc_auc", "ndcg@10"):
        assert by_pair["strong", metric]["p_holm"] < 0.01 < by_pair["as weak", metric]["p_holm"]
        assert by_pair["strong", metric]["low"] > 0
        assert by_pair["as weak", metric]["low"] < 0 < by_pair["as weak", metric]["high"]
    row = by_pair["strong", "ndcg@10"]
    assert (row["wins"], row["losses"], row["ties"]) == (100, 0, 0)
    assert row["high"] - row["low"] < 1e-9, "pairing removes the common variance"


def test_wrong_input_is_refused(run: Path, untrained: Path, market: TinyMarket, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run directory"):
        compare(run, tmp_path, market.documents, market.judgements)
    text = (untrained / "config.toml").read_text(encoding="utf-8")
    stricter = shutil.copytree(untrained, tmp_path / "stricter")
    (stricter / "config.toml").write_text(text.replace("relevant_at = 2.0", "relevant_at = 1.0"), encoding="utf-8")
    with pytest.raises(InputError, match=r"must have the same relevant_at .* have \(2.0, 2.0\) and \(1.0, 1.0\): give"):
        compare(run, stricter, market.documents, market.judgements)
