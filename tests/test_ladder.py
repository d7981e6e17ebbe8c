"""The ladder benchmark: what each row has, what it measures, what it keeps, and what it draws."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from tiny_market import CONFIG, TinyMarket

from q2s_tf.config import Config
from q2s_tf.config_files import read_config
from q2s_tf.errors import InputError

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
STAGE2 = {"max_epochs": 1, "batch_size": 16, "learning_rate": 2e-3, "text_learning_rate": 3e-3}
FULL = (
    "stage1={max_epochs=9, batch_size=16, patience=1, learning_rate=1e-9, text_learning_rate=1e-3}",
    "stage2={" + ", ".join(f"{key} = {value}" for key, value in STAGE2.items()) + "}",
    "head.queries=4",
    "blending.weight=0.1",
)
"""What makes the tiny config a full model whose stage 1 does not rise for long."""


@pytest.fixture(scope="module")
def ladder(ladder_rows: ModuleType) -> ModuleType:
    return importlib.import_module("ladder")


@pytest.fixture(scope="module")
def ladder_results(ladder_rows: ModuleType) -> ModuleType:
    return importlib.import_module("ladder_results")


@pytest.fixture(scope="module")
def ladder_rows() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("ladder_rows")


@pytest.fixture(scope="module")
def full(market: TinyMarket) -> Config:
    return read_config(market.config, list(FULL))


def differences(a: dict[str, Any], b: dict[str, Any], at: str = "") -> set[str]:
    """The dotted keys in which two tables differ."""
    found = set()
    for key in {*a, *b}:
        one, other = a.get(key), b.get(key)
        if isinstance(one, dict) and isinstance(other, dict) and not at.startswith("channels"):
            found |= differences(one, other, f"{at}{key}.")
        elif one != other:
            found.add(f"{at}{key}")
    return found


def test_each_row_adds_one_technique_to_the_one_before(ladder_rows: ModuleType, full: Config) -> None:
    trainings = ladder_rows.TRAININGS
    made = {name: ladder_rows.ablate(full, trainings[name], 3).model_dump() for name in trainings}
    text = {f"channels.{name}" for name, channel in full.channels.items() if channel.kind == "text"}
    text |= {"encoders.query", "encoders.document"}
    expected = {
        ("trigrams", "text"): text,
        ("trigrams", "images"): {"channels.images"},
        ("text", "curriculum"): {"channels.images", *(f"stage2.{key}" for key in STAGE2)},
        ("curriculum", "rate"): {"stage1.text_learning_rate", "stage2.text_learning_rate"},
        ("rate", "head"): {"head"},
        ("head", "full"): {"blending.weight"},
        ("full", "continued"): set(),  # these two are variants of the code: see test_comparisons.py
        ("full", "concat"): set(),
    }
    for (a, b), keys in expected.items():
        assert differences(made[a], made[b]) == keys
    assert differences(made["full"], full.model_dump()) == {"seed"}
    assert made["rate"]["stage1"]["text_learning_rate"] == 1e-3
    assert made["head"]["seed"] == 3
    for row in ladder_rows.ROWS[1:]:
        assert row.against in {(other.training, other.stage) for other in ladder_rows.ROWS}
        assert row.stage == 1 or made[row.training]["stage2"]["max_epochs"]


def test_data_without_images_have_fewer_rows(ladder_rows: ModuleType, full: Config) -> None:
    channels = {name: channel for name, channel in full.channels.items() if channel.kind != "vectors"}
    rows = ladder_rows.rows_of(full.model_copy(update={"channels": channels}))
    assert [row.name for row in rows][:3] == ["3-grams", "+ text", "+ curriculum (stage 2)"]
    assert not {"text", "images"} & {row.training for row in rows}
    assert ladder_rows.rows_of(full) == list(ladder_rows.ROWS)


def test_a_config_that_lacks_a_technique_is_refused(ladder_rows: ModuleType, market: TinyMarket, full: Config) -> None:
    ladder_rows.check_full(full)
    lacking = r"lacks head.queries, blending.weight, a stage1.text.* own, stage2.unconverged = false: set it"
    with pytest.raises(InputError, match=lacking):
        ladder_rows.check_full(read_config(market.config, ["stage1.text_learning_rate=5e-3"]))


def test_a_stage_is_measured_as_the_evaluator_does(
    ladder: ModuleType, run: Path, market: TinyMarket, tmp_path: Path
) -> None:
    from q2s_tf.evaluation.evaluate import evaluate

    data = ladder.Data(market.documents, market.positives, market.judgements, market.judgements)
    systems = evaluate(run, market.documents, market.judgements, tmp_path, encoder="none").results["systems"]
    mine = ladder.measure_stage(run, 2, data)
    assert mine == pytest.approx({metric: systems["q2s_tf"][metric]["value"] for metric in mine}, abs=1e-6)
    assert list(mine) == ["roc_auc", "ndcg@10", "recall@10", "recall@100"]


# --- the figures

VALUES = {("a", 1): (0.70, 0.75), ("a", 2): (0.72, 0.76), ("b", 1): (0.80, 0.85), ("b", 2): (0.84, 0.87)}
"""ROC AUC of both stages by training and seed."""


@pytest.fixture(scope="module")
def found(ladder_rows: ModuleType, ladder_results: ModuleType) -> dict[str, Any]:
    others = dict.fromkeys(("ndcg@10", "recall@10", "recall@100"), 0.5)
    figures = {
        job: {
            "metrics": {str(stage): {"roc_auc": value, **others} for stage, value in enumerate(values, 1)},
            "validation": {"1": [0.6, 0.7, 0.65], "2": [0.71]},
        }
        for job, values in VALUES.items()
    }
    rows = [
        ladder_rows.Row("first", "a", 1, None),
        ladder_rows.Row("next <&>", "b", 2, ("a", 1)),
        ladder_rows.Row("not trained", "c", 1, ("a", 1)),
        ladder_rows.Row("last", "b", 1, ("c", 1)),
    ]
    return {"title": "A market", "rows": ladder_results.summarise(rows, figures)}


def test_rows_are_summed_up_over_seeds_and_compared_seed_by_seed(found: dict[str, Any]) -> None:
    first, second, last = found["rows"]
    assert first["roc_auc"]["mean"] == pytest.approx(0.71)
    assert first["roc_auc"]["sd"] == pytest.approx(0.02 / 2**0.5)
    assert "gain" not in first
    assert second["gain"]["values"] == pytest.approx({"1": 0.15, "2": 0.15})
    assert second["gain"]["sd"] == pytest.approx(0)
    assert last["gain"]["values"] == pytest.approx({"1": 0.10, "2": 0.12}), "over what the missing row is compared with"
    assert (second["gain_over"], last["gain_over"]) == ("first", "first")
    assert (first["epochs"], second["epochs"]) == ({"1": 3, "2": 3}, {"1": 1, "2": 1})


def test_the_markdown_table_has_every_row_and_seed(ladder_results: ModuleType, found: dict[str, Any]) -> None:
    lines = ladder_results.markdown(found).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    others = " | ".join([".500 ±.000"] * 3)
    assert lines[3] == f"| next <&> | .8600 ±.0141 | +.1500 ±.0000 | first | {others} | .8500, .8700 |"


def test_the_chart_has_a_dot_a_seed_and_a_line_a_mean(ladder_results: ModuleType, found: dict[str, Any]) -> None:
    space = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(ladder_results.draw(found))
    dots = [(float(each.get("cy", 0)), float(each.get("cx", 0))) for each in root.iter(f"{space}circle")][:-1]
    means = [each.get("d", "") for each in root.iter(f"{space}path") if each.get("stroke-width")][:-1]
    places = [tuple(map(float, re.findall(r"[\d.]+", path)[:2])) for path in means]
    assert [len([y for y, _ in dots if y == height]) for height in dict(dots)] == [2, 2, 2]
    assert [(x, y) for x, y in places if x] == [
        (pytest.approx(sum(x for dot, x in dots if dot == y) / 2, abs=0.11), pytest.approx(y - 9)) for y in dict(dots)
    ]
    xs = [x for _, x in dots]
    scale = (xs[1] - xs[0]) / 0.02
    assert xs[3] - xs[0] == pytest.approx(scale * 0.17, rel=0.01), "one linear axis for all"
    assert {"first", "next <&>"} <= {each.text for each in root.iter(f"{space}text")}


@pytest.mark.slow
def test_it_trains_what_is_not_there_and_stops_at_what_it_does_not_know(market: TinyMarket, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    names = ("documents", "positives", "judgements_validation", "judgements_test")
    for name, path in zip(
        names, (market.documents, market.positives, market.judgements, market.judgements), strict=True
    ):
        (data / f"{name}.parquet").write_bytes(path.read_bytes())
    (tmp_path / "full.toml").write_text(CONFIG)
    command = [sys.executable, str(BENCHMARKS / "ladder.py"), "--data", data, "--config", tmp_path / "full.toml"]
    command += ["--out", out, "--seeds", "1,2", *(part for each in FULL for part in ("--set", each))]

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*map(str, command), *more], capture_output=True, text=True, check=False)

    done = call("--rows", "trigrams,full", "--processes", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "ladder.json").read_text())
    names = ["3-grams", "+ grouped blending: full model", "full model without stage 2"]
    assert [row["name"] for row in found["rows"]] == names
    assert all(row["roc_auc"]["values"].keys() == {"1", "2"} for row in found["rows"])
    assert (out / "ladder.svg").read_text().startswith("<svg")
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/*/figures.json")}
    assert len(stamps) == 4

    again = call("--rows", "trigrams,images,full")
    assert again.returncode == 0, again.stderr
    assert "images instead" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "what is there is not trained again"

    other = call("--rows", "trigrams", "--set", "dimension=8")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "trigrams/1: was trained with another config" in other.stderr
    assert "--rows text_only: must be some of trigrams, " in call("--rows", "text_only").stderr
