"""The report is complete, self-contained, safe against hostile titles, and opens in a browser without errors."""

import dataclasses
import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_market import TinyMarket
from tiny_presets import make_bert

from q2s_tf.config_files import save_config
from q2s_tf.evaluation.evaluate import evaluate
from q2s_tf.evaluation.results import RunEvaluation
from q2s_tf.models import build_towers, read_tokenizers, save_weights
from q2s_tf.report.analysis import Analysis, analyse
from q2s_tf.report.findings import Finding, check_paper, summarise
from q2s_tf.report.report import write_report

HOSTILE = """</script><script>alert(1)</script><img src=https://x.test/a onerror="alert(2)"> {{ 7 * 7 }} | `x` '"&"""
SECTIONS = (
    "summary", "systems", "training", "slices", "weights", "importance", "won_lost", "worst", "duplicates",
)  # fmt: skip
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def evaluation(run: Path, market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> RunEvaluation:
    """The tiny run on a catalogue with hostile titles and a hostile query with a low recall.

    Its epochs are as if recall@100 had chosen the best one.
    """
    folder = tmp_path_factory.mktemp("hostile")
    run = shutil.copytree(run, folder / "run")
    epochs = (run / "metrics.jsonl").read_text(encoding="utf-8")
    (run / "metrics.jsonl").write_text(epochs.replace("val_roc_auc", "val_recall@100"), encoding="utf-8")
    documents = [{**row, "title": f"{row['title']} {HOSTILE}"} for row in market.document_rows]
    # The query has twelve relevant documents, so that its recall@10 cannot be 1.
    hostile = [{"query": HOSTILE, "country": "US", "document_id": f"d{at:02}", "relevance": 2.0} for at in range(12)]
    pq.write_table(pa.Table.from_pylist(documents), folder / "documents.parquet")
    pq.write_table(pa.Table.from_pylist([*market.judgement_rows, *hostile]), folder / "judgements.parquet")
    make_bert(folder / "preset")
    tables = folder / "documents.parquet", folder / "judgements.parquet"
    return evaluate(run, *tables, folder / "out", encoder=str(folder / "preset"))


@pytest.fixture(scope="module")
def report(evaluation: RunEvaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(evaluation, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def analysis(evaluation: RunEvaluation) -> Analysis:
    return analyse(evaluation)


def test_the_learning_curves_are_of_the_validation_metric_of_the_run(report: Path) -> None:
    assert "validation recall@100" in Page(report).text


class Page(HTMLParser):
    """The elements of a page, with their attributes, and the text outside of scripts."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.in_script = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self.in_script = False

    def handle_data(self, data: str) -> None:
        if not self.in_script:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report)


# --- the page


def test_the_contents_list_every_section(page: Page) -> None:
    assert [each["id"] for each in page.all("section")] == list(SECTIONS)
    links = [each["href"] for each in page.all("a")]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {f"#{name}" for name in SECTIONS} <= set(links)
    assert {str(link).removeprefix("#") for link in links} <= set(ids)
    for each in page.all("section"):
        assert each["aria-labelledby"] in ids


def test_the_page_loads_no_other_file(page: Page, report: Path) -> None:
    assert not page.all("link")
    assert not page.all("img")
    assert not page.all("iframe")
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], "no attribute runs code"
    assert any("default-src 'none'" in (each.get("content") or "") for each in page.all("meta"))
    assert report.stat().st_size < 8_000_000


def test_charts_and_tables_are_named(page: Page) -> None:
    charts = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    assert len(charts) >= 10
    assert all((each["aria-label"] or "").startswith("Chart: ") for each in charts)
    assert len(page.all("caption")) == len(page.all("table"))
    assert len(page.all("figcaption")) == len(page.all("figure")) == len(charts)


def test_hostile_text_is_shown_and_not_run(page: Page, report: Path) -> None:
    assert HOSTILE in page.text, "the text is shown unchanged"
    raw = report.read_text(encoding="utf-8")
    assert "<script>alert" not in raw
    assert "<img src" not in raw
    assert "</script><script>alert" not in raw
    markdown = (report.parent / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in markdown


def test_titles_have_their_own_text_direction(page: Page) -> None:
    titles = [each for each in page.all("bdi") if each.get("class") == "title"]
    assert titles
    assert all(each.get("dir") == "auto" for each in page.all("bdi"))


def test_the_figures_are_those_of_the_evaluation(page: Page, evaluation: RunEvaluation, report: Path) -> None:
    markdown = (report.parent / "report.md").read_text(encoding="utf-8")
    for figures in evaluation.results["systems"].values():
        for figure in figures.values():
            for text in (page.text, markdown):
                assert f"{figure['value']:.3f}" in text
                assert f"{figure['low']:.3f}–{figure['high']:.3f}" in text


def test_worst_queries_are_sorted_by_recall_relative_to_the_possible(report: Path, evaluation: RunEvaluation) -> None:
    worst = json.loads((report.parent / "insight.json").read_text(encoding="utf-8"))["worst"]
    reached = [each["recall"]["q2s_tf"] / each["possible"] for each in worst]
    assert reached == sorted(reached)
    assert max(reached) < 1
    hostile = next(each for each in worst if each["query"] == HOSTILE)
    assert (hostile["wanted"], hostile["possible"]) == (12, pytest.approx(10 / 12))
    number = evaluation.judged.queries["query"].index(HOSTILE)
    retrieved = [f"d{row:02}" for row in evaluation.retrieved["q2s_tf"][number] if row >= 0]
    assert [each["document_id"] for each in hostile["came"]] == retrieved[:5]
    assert [each["rank"] for each in hostile["came"]] == [1, 2, 3, 4, 5]
    for each in hostile["should"]:
        assert retrieved[each["rank"] - 1] == each["document_id"]
        assert each["grade"] == 2


@pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and "Q2S_REQUIRE_BROWSER" not in os.environ, reason="needs chromium and chromedriver"
)
def test_the_page_opens_in_a_browser_without_an_error(report: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        browser.get(report.as_uri())
        charts = browser.find_elements("css selector", ".js-plotly-plot")
        assert len(charts) == len(browser.find_elements("css selector", "[role=img]"))
        assert all(chart.find_elements("css selector", "svg.main-svg") for chart in charts)
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
        assert browser.get_log("browser") == []
    finally:
        browser.quit()


# --- findings


def results_with(evaluation: RunEvaluation, **changes: Any) -> dict[str, Any]:
    return {**evaluation.results, "slices": [], "significance": [], **changes}


def difference(metric: str, a: str, b: str, value: float, p: float) -> dict[str, Any]:
    return {"metric": metric, "a": a, "b": b, "difference": value, "p_holm": p, "low": value - p, "high": value + p}


def texts(findings: list[Finding]) -> list[str]:
    return [finding.text for finding in findings]


def test_the_advice_is_the_first_finding(
    evaluation: RunEvaluation, analysis: Analysis, page: Page, report: Path
) -> None:
    advice = evaluation.results["advice"]
    finding = summarise(evaluation.results, analysis)[0]
    assert (finding.kind, finding.text, finding.action) == (advice["kind"], advice["text"], advice["action"])
    for text in (advice["text"], advice["action"]):
        assert text in page.text


def test_queries_won_and_lost_are_side_by_side(evaluation: RunEvaluation, analysis: Analysis, page: Page) -> None:
    ours, other = evaluation.results["advice"]["ours"], evaluation.results["advice"]["other"]
    mine, theirs = (evaluation.metrics.per_query[name]["recall@10"] for name in (ours, other))
    tests = {(row["metric"], row["a"], row["b"]): row for row in evaluation.results["significance"]}
    for name, count in (("won", "wins"), ("lost", "losses")):
        assert len(analysis.changed[name]) == min(5, tests["recall@10", ours, other][count])
    assert analysis.changed["won"] or analysis.changed["lost"]
    for name, sign in (("won", 1), ("lost", -1)):
        changes = sorted((sign * (mine - theirs))[~np.isnan(mine)], reverse=True)
        for entry, change in zip(analysis.changed[name], changes, strict=False):
            number = evaluation.judged.queries["query"].index(entry["query"])
            assert entry["recall"] == {ours: mine[number], other: theirs[number]}
            assert sign * (mine[number] - theirs[number]) == pytest.approx(change) and change > 0
            for system in (ours, other):
                shown = [f"d{row:02}" for row in evaluation.retrieved[system][number][:5] if row >= 0]
                assert [each["document_id"] for each in entry["came"][system]] == shown
            assert entry["query"] in page.text


def test_a_slice_is_weak_when_its_interval_is_below_that_of_all(evaluation: RunEvaluation, analysis: Analysis) -> None:
    def entry(value: str, high: float, small: bool = False) -> dict[str, Any]:
        figure = {"value": high - 0.1, "low": high - 0.2, "high": high, "queries": 50}
        return {"value": value, "small": small, "systems": {"q2s_tf": {"recall@10": figure}}}

    whole = evaluation.results["systems"]["q2s_tf"]["recall@10"]
    values = [entry("weak", whole["low"] - 0.01), entry("chance", whole["low"] + 0.01), entry("few", 0.1, small=True)]
    slices = [{"name": "language", "about": "language", "values": values}]
    found = summarise(results_with(evaluation, slices=slices), analysis)
    (text,) = [text for text in texts(found) if "without overlap" in text]
    assert text == (
        f"The recall@10 of the model is below that of all queries, {whole['value']:.2f}, without overlap of the "
        f"intervals, in: language weak ({whole['low'] - 0.11:.2f})."
    )


def test_problems_of_the_data_are_found(evaluation: RunEvaluation, analysis: Analysis) -> None:
    assert analysis.missing == {"title": 0, "description": 0.2, "language": 0, "image_embeddings": 0.25}
    found = texts(summarise(results_with(evaluation), analysis))
    assert "25% of the documents have no image_embeddings." in found
    assert not any("have no description" in text for text in found), "a fifth is not many"
    worse = dataclasses.replace(analysis, spread=0.8, duplicates={**analysis.duplicates, "groups": 3, "documents": 6})
    found = texts(summarise(results_with(evaluation), worse))
    assert "6 documents (10.0%) are in 3 groups of near-duplicates." in found
    assert "All embeddings are similar: the mean cosine of two random documents is 0.80." in found


def importance(**losses: tuple[float, float]) -> list[dict[str, Any]]:
    """Rows of channels of the document tower; each has a loss of ROC AUC and its p-value."""
    return [
        {
            "tower": "document",
            "channel": name,
            "present": 1.0,
            "weight": 0.5,
            "share": max(0, loss),
            "dependence": {},
            "losses": {"roc_auc": difference("roc_auc", "all channels", name, loss, p)},
        }
        for name, (loss, p) in losses.items()
    ]


def test_channels_are_judged_by_significant_losses(evaluation: RunEvaluation, analysis: Analysis) -> None:
    rows = importance(images=(0.1, 0.01), title_text=(-0.02, 0.01), language=(0.3, 0.2))
    findings = summarise(results_with(evaluation), dataclasses.replace(analysis, importance=rows))
    found = [(finding.kind, finding.text) for finding in findings if finding.section == "importance"]
    assert found == [
        ("problem", "Metrics are significantly higher without these channels: title_text (roc_auc +0.020)."),
        ("good", "Metrics are significantly lower without these channels: images (roc_auc -0.100)."),
        ("note", "The data do not decide whether these channels matter: language."),
    ]


@pytest.mark.parametrize(
    ("means", "answer"),
    [
        ({"first": 0.6, "second": 0.2, "low": 0.3, "high": 0.5}, "it is too"),
        ({"first": 0.2, "second": 0.3, "low": -0.2, "high": -0.01}, "it is lower"),
        ({"first": 0.514, "second": 0.509, "low": -0.001, "high": 0.011}, "the data do not decide it"),
        ({}, "it cannot be measured: too few queries"),
    ],
)
def test_the_weight_of_trigrams_on_short_queries_is_compared_with_the_paper(
    analysis: Analysis, means: dict[str, float], answer: str
) -> None:
    assert set(analysis.short_queries) == {"trigrams", "text"}
    text = check_paper(dataclasses.replace(analysis, short_queries=dict.fromkeys(("trigrams", "text"), means)))[0].text
    assert f"Here {answer}" in text
    if means:
        assert f"{means['first']:.3f} on queries of up to four characters and {means['second']:.3f} on longer" in text


@pytest.mark.parametrize(
    ("losses", "answer"),
    [
        ({"images": (0.5, 0.01), "title_text": (0.1, 0.01)}, "they have the largest too: images have 50%"),
        ({"images": (0.1, 0.01), "title_text": (0.5, 0.01)}, "title_text has a larger one, 50%: images have 10%"),
        (
            {"images": (0.2, 0.1), "title_text": (0.1, 0.1)},
            "the data do not decide whether theirs or that of title_text",
        ),
        ({"images": (0.2, 0.1)}, "they are the only channel"),
        ({"title_text": (0.2, 0.1)}, "it cannot be measured"),
    ],
)
def test_the_importance_of_images_is_compared_with_the_paper(
    analysis: Analysis, losses: dict[str, tuple[float, float]], answer: str
) -> None:
    assert analysis.image_channels == ["images"]
    changed = dataclasses.replace(analysis, importance=importance(**losses))
    assert f"Here {answer}" in check_paper(changed)[1].text


# --- other runs


def test_a_run_of_one_channel_a_tower_on_later_positives(run: Path, market: TinyMarket, tmp_path: Path) -> None:
    """The report of a run without text, images, metrics.jsonl and ratings is complete."""
    from q2s_tf.config_files import read_config

    lean, config = tmp_path / "lean", read_config(market.lean_config)
    lean.mkdir()
    shutil.copy(run / "tokenizer.model", lean)
    save_config(config, lean / "config.toml")
    save_weights(build_towers(config, read_tokenizers(run, config)), lean / "stage1.weights.h5")
    evaluation = evaluate(lean, market.documents, market.positives, tmp_path / "out", encoder="none")
    text = Page(write_report(evaluation, tmp_path / "out")).text
    assert "the query tower has no 3-gram channel or no text channel" in text
    assert "it cannot be measured: no document has images" in text
    assert "The run has no metrics.jsonl" in text
    assert "pairs with sampled negatives" in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("insight.json", "metrics.json", "per_query.parquet", "report.html", "report.md")
    ]
