"""The demo page in a real browser, headless Chromium, by keyboard and by scrolling."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import demo_page
import httpx
import pytest
from demo_page import CHANNELS, HOSTILE, WORD, WORDS_SCORE, DemoPage
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from tiny_market import TinyMarket

from q2s_tf.server.server import Server

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM.exists() and DRIVER.exists()) and "Q2S_REQUIRE_BROWSER" not in os.environ,  # set in CI
    reason="needs Debian's packages chromium and chromium-driver",
)
FLAGS = ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update")
CONTRAST = """
function channels(colour) { return colour.match(/[\\d.]+/g).map(Number); }
function luminance(colour) {
  const [r, g, b] = channels(colour).slice(0, 3).map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function background(element) {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (channels(colour)[3] !== 0) return colour;
  }
  return "rgb(255, 255, 255)";
}
const ratios = {};
for (const element of document.querySelectorAll("body *")) {
  const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!text || !element.checkVisibility()) continue;
  const [one, other] = [getComputedStyle(element).color, background(element)].map(luminance);
  ratios[element.className || element.tagName] = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
}
return ratios;
"""
"""By class or tag of elements with text: the contrast ratio (WCAG) of text and background."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoPage]:
    with demo_page.serve_market(tmp_path_factory.mktemp("demo_page")) as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, "disable-sync"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: webdriver.Chrome) -> webdriver.Chrome:
    """A desktop window with an empty log."""
    resize(chromium, 1440, 900)
    for log in ("browser", "performance"):
        chromium.get_log(log)
    return chromium


def resize(browser: webdriver.Chrome, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def wait(browser: webdriver.Chrome, condition: Callable[[], Any], seconds: float = 20) -> Any:
    return WebDriverWait(browser, seconds, poll_frequency=0.05).until(lambda _: condition())


def all_of(browser: webdriver.Chrome, selector: str) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def one_of(browser: webdriver.Chrome, selector: str) -> WebElement:
    (found,) = all_of(browser, selector)
    return found


def ids(browser: webdriver.Chrome, side: str = "hybrid") -> list[str]:
    script = "return [...document.querySelectorAll(`#${arguments[0]} .card`)].map((card) => card.dataset.id)"
    return browser.execute_script(script, side)


def status(browser: webdriver.Chrome) -> str:
    return one_of(browser, "[role=status]").text


def open_search(browser: webdriver.Chrome, page: DemoPage, asked: str) -> None:
    browser.get(f"{page.address}/?{asked}")
    wait(browser, lambda: status(browser).startswith("Page "))  # page 2 follows if page 1 leaves space


def load_all(browser: webdriver.Chrome) -> None:
    """Scrolls until all results are loaded."""

    def scrolled_to_the_end() -> bool:
        browser.execute_script("scrollTo(0, document.documentElement.scrollHeight)")
        return not one_of(browser, "#more").is_displayed()

    wait(browser, scrolled_to_the_end)


def press(browser: webdriver.Chrome, *keys: str) -> None:
    webdriver.ActionChains(browser).send_keys(*keys).perform()


def test_a_search_by_keyboard_alone(browser: webdriver.Chrome, page: DemoPage) -> None:
    browser.get(page.address)
    wait(browser, lambda: browser.switch_to.active_element.get_attribute("name") == "query")  # as the page opens
    press(browser, WORD, Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("name") == "country"
    press(browser, "United A", Keys.TAB, Keys.ENTER)  # chooses a country by its name, then the search button
    wait(browser, lambda: len(ids(browser)) >= 10)
    assert browser.current_url == f"{page.address}/?query={WORD}&country=AE"
    assert browser.title == f"{WORD} – q2s_tf search"
    expected = demo_page.scores(WORD, "AE")
    assert ids(browser)[:10] == [name for name, _ in expected[:10]]
    first = all_of(browser, "#hybrid .card")[0]
    assert f"{expected[0][1] + WORDS_SCORE:.3f}" in first.text
    assert "Hybrid search: 10 results in " in status(browser)
    assert len(ids(browser, "bm25")) == 10


BARS = """
const bars = [...document.querySelectorAll(arguments[0])];
return bars.map((bar) => {
  const [track, fill] = [".track", ".fill"].map((part) => bar.querySelector(part).getBoundingClientRect());
  const [name, value] = [".name", ".value"].map((part) => bar.querySelector(part).textContent);
  return [name, value, (fill.left - track.left) / track.width, fill.width / track.width];
});
"""
"""Name and text of each bar, and the start and length of its filled part as shares of the track."""


def test_the_bars_of_a_result_are_the_two_parts_of_its_score(browser: webdriver.Chrome, page: DemoPage) -> None:
    open_search(browser, page, "query=sofa&country=AE")
    load_all(browser)
    expected = demo_page.scores("sofa", "AE")
    cosines = [cosine for _, cosine in expected]
    assert cosines[-1] < 0 and cosines[0] + WORDS_SCORE > 1
    bars = browser.execute_script(BARS, "#hybrid .card .bars li")
    scores = [float(element.text) for element in all_of(browser, "#hybrid .score")]
    unit = 1 / scores[0]  # the highest score fills the track
    for cosine, score, embeddings, words in zip(cosines, scores, bars[::2], bars[1::2], strict=True):
        assert (embeddings[0], words[0]) == ("embeddings", "words")
        assert float(embeddings[1]) + float(words[1]) == pytest.approx(score, abs=2e-3)
        assert embeddings[2:] == pytest.approx([0, unit * abs(cosine)], abs=2e-2)
        assert words[2:] == pytest.approx([unit * max(cosine, 0), unit * WORDS_SCORE], abs=2e-2)
    hatched = browser.execute_script("return document.querySelectorAll('.card .negative').length")
    assert hatched == sum(cosine < 0 for cosine in cosines)
    assert {bars.accessible_name for bars in all_of(browser, "#hybrid .card .parts")} == {"Parts of the score"}
    assert all_of(browser, "#bm25 .card .bars") == []
    clipped = "return [...document.querySelectorAll('.card .name')].some((name) => name.scrollWidth > name.clientWidth)"
    assert not browser.execute_script(clipped)


def test_the_channels_of_a_result_are_loaded_by_keyboard(
    browser: webdriver.Chrome, run: Path, models: Path, market: TinyMarket
) -> None:
    with (
        Server(models, port=0) as server,
        demo_page.serve_page(server.address, market.documents, models, run=run) as page,
    ):
        open_search(browser, page, "query=red+lamp")
        summary = one_of(browser, "#hybrid .card:first-of-type .channels summary")
        browser.execute_script("arguments[0].focus()", summary)
        press(browser, Keys.ENTER)
        items = wait(browser, lambda: all_of(browser, "#hybrid .card:first-of-type .channels li"))
        document = one_of(browser, "#hybrid .card:first-of-type").get_attribute("data-id")
        asked = {"query": "red lamp", "country": "", "document_id": document}
        channels = httpx.get(f"{page.address}/api/channels", params=asked).json()["channels"]
        expected = [f"{channel['name'].replace('_', ' ')} {channel['part']:.3f}" for channel in channels]
        assert [" ".join(item.text.split()) for item in items] == expected
        assert not browser.get_log("browser")


def test_the_channel_weights_of_the_query_are_folded(browser: webdriver.Chrome, page: DemoPage) -> None:
    open_search(browser, page, "query=sofa")
    bars = one_of(browser, "#query-channels")
    assert not bars.is_displayed()
    one_of(browser, "summary").send_keys(Keys.ENTER)
    assert bars.is_displayed()
    assert bars.accessible_name == "Channel weights of the query"
    shown = browser.execute_script(BARS, "#query-channels li")
    assert [name for name, *_ in shown] == [name.replace("_", " ") for name in CHANNELS]
    for _, value, start, length in shown:
        assert start == 0
        assert float(value.removesuffix("%")) == pytest.approx(100 * length, abs=1)


def test_scrolling_loads_further_pages_without_repeats(browser: webdriver.Chrome, page: DemoPage) -> None:
    open_search(browser, page, "query=red+sofa&country=US")
    load_all(browser)
    expected = demo_page.scores("red sofa", "US")
    assert ids(browser) == [name for name, _ in expected]
    lexical = ids(browser, "bm25")
    assert len(set(lexical)) == len(lexical) > 10
    notes = [note.text for note in all_of(browser, "#hybrid .note")]
    assert [note.split(" · ")[1] for note in notes] == ["effort 2", "effort 4", "effort 8"]
    assert status(browser).endswith("No more results.")
    ranks = {card: rank for rank, card in enumerate(lexical, start=1)}
    for card in all_of(browser, "#hybrid .card"):
        rank = ranks.get(card.get_attribute("data-id") or "")
        assert card.find_element(By.CLASS_NAME, "shared").text == (f"rank {rank} in BM25" if rank else "")


def test_more_by_keyboard_moves_the_focus_to_the_new_results(browser: webdriver.Chrome, page: DemoPage) -> None:
    resize(browser, 1440, 300)
    open_search(browser, page, "query=red+sofa")
    assert len(ids(browser)) == 10
    browser.execute_script("document.querySelector('#more').focus({preventScroll: true})")
    press(browser, Keys.ENTER)
    wait(browser, lambda: browser.switch_to.active_element.tag_name == "h3")
    heading = browser.switch_to.active_element
    assert heading.find_element(By.CLASS_NAME, "rank").text == "11"


def test_back_and_forward_show_the_searches_again(browser: webdriver.Chrome, page: DemoPage) -> None:
    browser.get(page.address)
    rankings = {}
    for query in ("sofa", "lamp"):
        box = one_of(browser, "#query")
        box.clear()
        box.send_keys(query, Keys.ENTER)
        wait(browser, lambda query=query: browser.title.startswith(query) and len(ids(browser)) >= 10)
        rankings[query] = ids(browser)[:10]
    assert rankings["sofa"] != rankings["lamp"]
    browser.back()
    wait(browser, lambda: ids(browser)[:10] == rankings["sofa"])
    assert one_of(browser, "#query").get_attribute("value") == "sofa"
    browser.forward()
    wait(browser, lambda: ids(browser)[:10] == rankings["lamp"])
    browser.back()
    browser.back()
    wait(browser, lambda: one_of(browser, "#intro").is_displayed())
    assert not one_of(browser, "#answers").is_displayed()


def test_hostile_titles_are_text_and_cause_no_request(browser: webdriver.Chrome, page: DemoPage) -> None:
    browser.get(page.address)
    open_search(browser, page, "query=%3Cscript%3Edocument.title%3D%27run%27%3C/script%3E&country=%3Cb%3E")
    load_all(browser)
    hostile = one_of(browser, "#hybrid .card[data-id=d2]")
    assert hostile.find_element(By.CLASS_NAME, "title").text == HOSTILE
    assert hostile.find_element(By.CLASS_NAME, "description").text == HOSTILE
    assert hostile.find_elements(By.CSS_SELECTOR, "script, .title *, .description *") == []
    assert browser.title != "run"
    assert one_of(browser, "#country").get_attribute("value") == "<b>"
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith(page.address)] == []


def test_titles_have_their_language_and_direction(browser: webdriver.Chrome, page: DemoPage) -> None:
    open_search(browser, page, "query=sofa")
    load_all(browser)
    arabic, hostile = (one_of(browser, f"#hybrid [data-id={name}] .title") for name in ("d1", "d2"))
    assert arabic.get_attribute("lang") == "ar"
    assert arabic.value_of_css_property("direction") == "rtl"
    assert hostile.get_attribute("lang") == ""
    assert hostile.value_of_css_property("direction") == "ltr"


def test_a_phone_shows_one_side_at_a_time(browser: webdriver.Chrome, page: DemoPage) -> None:
    resize(browser, 360, 740)
    open_search(browser, page, f"query={WORD}")
    fits = "return document.documentElement.scrollWidth <= innerWidth"
    assert browser.execute_script(fits)
    hybrid, bm25 = one_of(browser, "#hybrid"), one_of(browser, "#bm25")
    assert (hybrid.is_displayed(), bm25.is_displayed()) == (True, False)
    one_of(browser, "[name=side][value=hybrid]").send_keys(Keys.ARROW_RIGHT)
    assert (hybrid.is_displayed(), bm25.is_displayed()) == (False, True)
    load_all(browser)
    assert browser.execute_script(fits)
    resize(browser, 1440, 900)
    assert (hybrid.is_displayed(), bm25.is_displayed()) == (True, True)
    assert browser.execute_script(fits)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(browser: webdriver.Chrome, page: DemoPage, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.address)
    ratios = browser.execute_script(CONTRAST)
    open_search(browser, page, f"query={WORD}")
    browser.execute_script("document.querySelector('#error').textContent = 'no server'")
    ratios |= browser.execute_script(CONTRAST)
    assert {"LABEL", "A", "title", "rank", "description", "value", "note", "shared", "error"} <= set(ratios)
    assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(paper.removeprefix("rgb(").split(",")[0]) > 128) == (scheme == "light")


def test_controls_and_sections_have_names(browser: webdriver.Chrome, page: DemoPage) -> None:
    open_search(browser, page, f"query={WORD}")
    for control in all_of(browser, "input, select, button"):
        assert not control.is_displayed() or control.accessible_name, control.get_attribute("outerHTML")
    assert [heading.text.split()[0] for heading in all_of(browser, "h1")] == ["q2s_tf"]
    names = [element.accessible_name for element in all_of(browser, "section") if element.is_displayed()]
    assert [name.split(" ")[0] for name in names] == ["Hybrid", "BM25"]
    duplicates = (
        "const all = [...document.querySelectorAll('[id]')].map((e) => e.id); return all.length - new Set(all).size"
    )
    assert browser.execute_script(duplicates) == 0


def test_an_error_is_one_line_and_the_next_search_recovers(browser: webdriver.Chrome, tmp_path: Path) -> None:
    models, documents = tmp_path / "models", tmp_path / "documents.parquet"
    demo_page.save_models(models)
    demo_page.write_documents(documents, demo_page.make_rows())
    with Server(models, port=0) as server, demo_page.serve_page(server.address, documents, models) as page:
        open_search(browser, page, "query=sofa")
        server.stop()
        one_of(browser, "#query").send_keys("s", Keys.ENTER)
        alert = one_of(browser, "[role=alert]")
        wait(browser, lambda: alert.text)
        assert alert.text.startswith(f"no server answers at {server.address}; start one with")
        assert ids(browser) == []

        def found_again() -> bool:
            one_of(browser, "#query").send_keys(Keys.ENTER)
            wait(browser, lambda: alert.text or ids(browser))
            return bool(ids(browser))

        with Server(models, port=int(server.address.rpartition(":")[2])):
            wait(browser, found_again, seconds=60)
            assert alert.text == ""
