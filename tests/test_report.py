"""The report: complete, self-contained, safe against what a listing may say, and readable in a real browser."""

import dataclasses
import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_market import TinyMarket

from q2s_tf.config import save_config
from q2s_tf.evaluation.evaluate import evaluate
from q2s_tf.evaluation.evaluation import Evaluation
from q2s_tf.models import build_towers, save_weights
from q2s_tf.report.findings import check_paper, summarise
from q2s_tf.report.report import SECTIONS, write_report
from q2s_tf.report.study import Study, study
from q2s_tf.report.weights import GroupWeights
from q2s_tf.text import Tokenizer

HOSTILE = """</script><script>alert(1)</script><img src=https://x.test/a onerror="alert(2)"> {{ 7 * 7 }} | `x` '"&"""
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def evaluation(run: Path, market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The tiny run on a catalogue all of whose titles are hostile, as is the query that is answered worst."""
    folder = tmp_path_factory.mktemp("hostile")
    documents = [{**row, "title": f"{row['title']} {HOSTILE}"} for row in market.document_rows]
    # Twelve documents are relevant to it, so that its recall@10 cannot be 1.
    hostile = [{"query": HOSTILE, "country": "US", "document_id": f"d{at:02}", "relevance": 2.0} for at in range(12)]
    pq.write_table(pa.Table.from_pylist(documents), folder / "documents.parquet")
    pq.write_table(pa.Table.from_pylist([*market.judgement_rows, *hostile]), folder / "judgements.parquet")
    return evaluate(run, folder / "documents.parquet", folder / "judgements.parquet", folder / "out")


@pytest.fixture(scope="module")
def report(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(evaluation, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def known(evaluation: Evaluation) -> Study:
    return study(evaluation)


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


def test_every_section_is_there_and_in_the_contents(page: Page) -> None:
    assert [each["id"] for each in page.all("section")] == list(SECTIONS)
    links = [each["href"] for each in page.all("a")]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {f"#{name}" for name in SECTIONS} <= set(links)
    assert {str(link).removeprefix("#") for link in links} <= set(ids)
    for each in page.all("section"):
        assert each["aria-labelledby"] in ids


def test_it_is_one_file_that_loads_nothing(page: Page, report: Path) -> None:
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
    assert len(charts) >= 8
    assert all((each["aria-label"] or "").startswith("Chart: ") for each in charts)
    assert len(page.all("caption")) == len(page.all("table"))
    assert len(page.all("figcaption")) == len(page.all("figure")) == len(charts)


def test_hostile_text_is_shown_and_not_run(page: Page, report: Path) -> None:
    assert HOSTILE in page.text, "as it is, to be read"
    raw = report.read_text(encoding="utf-8")
    assert "<script>alert" not in raw
    assert "<img src" not in raw
    assert "</script><script>alert" not in raw
    markdown = (report.parent / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in markdown


def test_text_of_any_direction_stands_for_itself(page: Page) -> None:
    titles = [each for each in page.all("bdi") if each.get("class") == "title"]
    assert titles
    assert all(each.get("dir") == "auto" for each in page.all("bdi"))


def test_the_figures_are_those_of_the_evaluation(page: Page, evaluation: Evaluation, report: Path) -> None:
    markdown = (report.parent / "report.md").read_text(encoding="utf-8")
    for figures in evaluation.results["systems"].values():
        for figure in figures.values():
            for text in (page.text, markdown):
                assert f"{figure['value']:.3f}" in text
                assert f"{figure['low']:.3f}–{figure['high']:.3f}" in text


def test_the_worst_queries_show_what_came_and_what_should_have(report: Path, evaluation: Evaluation) -> None:
    worst = json.loads((report.parent / "insight.json").read_text(encoding="utf-8"))["worst"]
    recalls = [each["recall"]["q2s_tf"] for each in worst]
    assert recalls == sorted(recalls)
    hostile = next(each for each in worst if each["query"] == HOSTILE)
    assert hostile["wanted"] == 12
    place = evaluation.judged.queries["query"].index(HOSTILE)
    found = [f"d{row:02}" for row in evaluation.found["q2s_tf"][place] if row >= 0]
    assert [each["document_id"] for each in hostile["came"]] == found[:5]
    assert [each["rank"] for each in hostile["came"]] == [1, 2, 3, 4, 5]
    for each in hostile["should"]:
        assert found[each["rank"] - 1] == each["document_id"]
        assert each["grade"] == 2


@pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and "Q2S_REQUIRE_BROWSER" not in os.environ, reason="needs chromium and chromedriver"
)
def test_it_opens_in_a_browser_without_an_error(report: Path) -> None:
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


def results_with(evaluation: Evaluation, **changes: Any) -> dict[str, Any]:
    return {**evaluation.results, "slices": [], "significance": [], **changes}


def test_winning_and_losing_is_told_by_the_paired_test(evaluation: Evaluation, known: Study) -> None:
    tests = [
        {"metric": "roc_auc", "a": "q2s_tf", "b": "BM25", "difference": 0.1, "p_holm": 0.001},
        {"metric": "recall@10", "a": "BM25", "b": "q2s_tf", "difference": 0.2, "p_holm": 0.001},
        {"metric": "mrr@100", "a": "q2s_tf", "b": "BM25", "difference": 0.3, "p_holm": 0.2},
        {"metric": "ndcg@10", "a": "RRF", "b": "BM25", "difference": -0.3, "p_holm": 0.001},
    ]
    found = {finding.text: finding.kind for finding in summarise(results_with(evaluation, significance=tests), known)}
    assert found["The model beats BM25 in roc_auc (+0.100)."] == "good"
    assert found["The model loses to BM25 in recall@10 (-0.200)."] == "problem"
    assert found["The model cannot be told from BM25 in mrr@100 (+0.300)."] == "note"
    assert not any("ndcg@10" in text for text in found)


def test_a_slice_is_weak_when_its_interval_is_below_the_mean(evaluation: Evaluation, known: Study) -> None:
    def entry(value: str, high: float, small: bool = False) -> dict[str, Any]:
        figure = {"value": high - 0.1, "low": high - 0.2, "high": high, "queries": 50}
        return {"value": value, "small": small, "systems": {"q2s_tf": {"recall@10": figure}}}

    mean = evaluation.results["systems"]["q2s_tf"]["recall@10"]["value"]
    values = [entry("weak", mean - 0.01), entry("chance", mean + 0.01), entry("few", mean - 0.3, small=True)]
    slices = [{"name": "language", "about": "language", "values": values}]
    found = [finding.text for finding in summarise(results_with(evaluation, slices=slices), known)]
    assert [text for text in found if "slices" in text] == [
        f"Weakest slices, their whole interval below the mean recall@10 of {mean:.2f}: "
        f"language weak ({mean - 0.11:.2f})."
    ]


def test_problems_of_the_data_are_found(evaluation: Evaluation, known: Study) -> None:
    assert known.missing == {"title": 0, "description": 0.2, "language": 0, "image_embeddings": 0.25}
    texts = [finding.text for finding in summarise(results_with(evaluation), known)]
    assert "25% of the documents have no image_embeddings." in texts
    assert not any("have no description" in text for text in texts), "a fifth is not many"
    worse = dataclasses.replace(
        known, spread=0.8, duplicates=dataclasses.replace(known.duplicates, groups=3, documents=6)
    )
    texts = [finding.text for finding in summarise(results_with(evaluation), worse)]
    assert "6 documents (10.0%) are in 3 groups of near-duplicates." in texts
    assert "The embeddings are much alike: two random documents have a mean cosine of 0.80." in texts


def test_a_tower_that_hangs_on_one_channel_is_named(evaluation: Evaluation, known: Study) -> None:
    rows = [
        dataclasses.replace(each, share=float(each.channel in ("query_text", "images"))) for each in known.importance
    ]
    texts = [each.text for each in summarise(results_with(evaluation), dataclasses.replace(known, importance=rows))]
    assert [text.split(":")[0] for text in texts if "hangs on" in text] == [
        "The query tower hangs on query_text",
        "The document tower hangs on images",
    ]


@pytest.mark.parametrize(
    ("short", "longer", "answer"),
    [((0.6, 0.3), (0.2, 0.5), "yes"), ((0.2, 0.6), (0.3, 0.5), "no"), (None, (0.3, 0.5), "cannot be told")],
)
def test_the_papers_finding_about_trigrams_is_checked(
    evaluation: Evaluation, known: Study, short: tuple[float, float] | None, longer: tuple[float, float], answer: str
) -> None:
    groups = [
        GroupWeights(name, 10, {"query_trigrams": weights[0], "query_text": weights[1], "query_country": 0.1}, {})
        for name, weights in (("1–4", short), ("5–9", longer))
        if weights
    ]
    changed = dataclasses.replace(known, query_weights={**known.query_weights, "length": groups})
    text = check_paper(changed, evaluation.towers.config)[0].text
    assert text.startswith(f"3-grams weigh more on short queries: {answer}")
    if short:
        assert f"{short[0]:.2f} under five characters (10 queries) and {longer[0]:.2f} beyond" in text
        assert ("on short queries only (" in text) == (answer == "yes")


def test_the_papers_finding_about_images_is_checked(evaluation: Evaluation, known: Study) -> None:
    for leader, answer in (("images", "yes, 90%"), ("title_text", "no, 2%, behind title_text with 90%")):
        rows = [dataclasses.replace(each, share=0.9 if each.channel == leader else 0.02) for each in known.importance]
        texts = [
            each.text for each in check_paper(dataclasses.replace(known, importance=rows), evaluation.towers.config)
        ]
        assert texts[1] == (
            f"Images carry the largest importance on the document side, by masking: {answer} (55 % in the paper)."
        )


# --- other runs


def test_a_run_of_one_channel_a_tower_on_later_positives(run: Path, market: TinyMarket, tmp_path: Path) -> None:
    """No text, no images, no metrics.jsonl, no ratings: the report says what it can."""
    from q2s_tf.config import read_config

    lean, config = tmp_path / "lean", read_config(market.lean_config)
    lean.mkdir()
    shutil.copy(run / "tokenizer.model", lean)
    save_config(config, lean / "config.toml")
    save_weights(build_towers(config, Tokenizer.read(run / "tokenizer.model")), lean / "stage1.weights.h5")
    evaluation = evaluate(lean, market.documents, market.positives, tmp_path / "out")
    text = Page(write_report(evaluation, tmp_path / "out")).text
    assert "the query tower lacks one of the two" in text
    assert "cannot be told, no document has images" in text
    assert "The run holds no metrics.jsonl" in text
    assert "negatives sampled" in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("insight.json", "metrics.json", "per_query.parquet", "report.html", "report.md")
    ]
