"""The demo page in a real browser, headless Chromium, by keyboard and by scrolling."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import demo_page
import pytest
import serving_models
from demo_page import HOSTILE, WORD, DemoPage
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

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
"""By class or tag of what has text: WCAG's contrast ratio of its colour and what is behind it."""


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


def ids(browser: webdriver.Chrome, side: str = "semantic") -> list[str]:
    script = "return [...document.querySelectorAll(`#${arguments[0]} .card`)].map((card) => card.dataset.id)"
    return browser.execute_script(script, side)


def status(browser: webdriver.Chrome) -> str:
    return one_of(browser, "[role=status]").text


def open_search(browser: webdriver.Chrome, page: DemoPage, asked: str) -> None:
    browser.get(f"{page.address}/?{asked}")
    wait(browser, lambda: status(browser).startswith("Page 1."))


def load_all(browser: webdriver.Chrome) -> None:
    """Scrolls until there is no more to load."""

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
    expected = serving_models.scores(serving_models.Tower().embed(WORD, "AE").numpy())
    assert ids(browser)[:10] == [name for name, _ in expected[:10]]
    first = all_of(browser, "#semantic .card")[0]
    assert f"{expected[0][1]:.3f}" in first.text
    assert "Que2Search: 10 results in " in status(browser)
    assert len(ids(browser, "bm25")) == 10


def test_every_bar_has_its_share_as_text(browser: webdriver.Chrome, page: DemoPage) -> None:
    open_search(browser, page, "query=sofa")
    read = """
        const bars = [...document.querySelectorAll(arguments[0])];
        return bars.map((bar) => [bar.textContent, bar.querySelector(".fill").style.width]);
    """
    query, documents = (browser.execute_script(read, f"{place} .bars li") for place in ("#answers > .towers", ".card"))
    assert len(query) == len(demo_page.CHANNELS["query_tower"])
    for text, width in [*query, *documents]:
        assert text.endswith(f"{float(width.removesuffix('%')):.0f}%") or text.endswith("<1%")
    names = [text.rstrip("<0123456789%") for text, _ in documents]
    assert set(names) == set(demo_page.CHANNELS["document_tower"])
    labels = {bars.get_attribute("aria-label") for bars in all_of(browser, ".card .bars") if bars.is_displayed()}
    assert labels == {"What the document tower weighed"}


def test_scrolling_loads_costlier_pages_without_repeats(browser: webdriver.Chrome, page: DemoPage) -> None:
    open_search(browser, page, "query=red+sofa&country=US")
    load_all(browser)
    expected = serving_models.scores(serving_models.Tower().embed("red sofa", "US").numpy())
    assert ids(browser) == [name for name, _ in expected]
    lexical = ids(browser, "bm25")
    assert len(set(lexical)) == len(lexical) > 10
    notes = [note.text for note in all_of(browser, "#semantic .note")]
    assert "the index’s own effort" in notes[0]
    assert all("full effort" in note for note in notes[1:])
    assert status(browser).endswith("These are all.")
    ranks = {card: rank for rank, card in enumerate(lexical, start=1)}
    for card in all_of(browser, "#semantic .card"):
        rank = ranks.get(card.get_attribute("data-id") or "")
        assert card.find_element(By.CLASS_NAME, "shared").text == (f"number {rank} of BM25" if rank else "")


def test_more_by_keyboard_moves_the_focus_to_what_is_new(browser: webdriver.Chrome, page: DemoPage) -> None:
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


def test_hostile_listings_are_text_and_no_request_leaves(browser: webdriver.Chrome, page: DemoPage) -> None:
    browser.get(page.address)
    open_search(browser, page, "query=%3Cscript%3Edocument.title%3D%27run%27%3C/script%3E&country=%3Cb%3E")
    load_all(browser)
    hostile = one_of(browser, "#semantic .card[data-id=d2]")
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


def test_listings_say_their_language_and_direction(browser: webdriver.Chrome, page: DemoPage) -> None:
    open_search(browser, page, "query=sofa")
    load_all(browser)
    arabic, hostile = (one_of(browser, f"#semantic [data-id={name}] .title") for name in ("d1", "d2"))
    assert arabic.get_attribute("lang") == "ar"
    assert arabic.value_of_css_property("direction") == "rtl"
    assert hostile.get_attribute("lang") == ""
    assert hostile.value_of_css_property("direction") == "ltr"


def test_a_phone_shows_one_side_at_a_time(browser: webdriver.Chrome, page: DemoPage) -> None:
    resize(browser, 360, 740)
    open_search(browser, page, f"query={WORD}")
    fits = "return document.documentElement.scrollWidth <= innerWidth"
    assert browser.execute_script(fits)
    semantic, bm25 = one_of(browser, "#semantic"), one_of(browser, "#bm25")
    assert (semantic.is_displayed(), bm25.is_displayed()) == (True, False)
    one_of(browser, "[name=side][value=semantic]").send_keys(Keys.ARROW_RIGHT)
    assert (semantic.is_displayed(), bm25.is_displayed()) == (False, True)
    load_all(browser)
    assert browser.execute_script(fits)
    resize(browser, 1440, 900)
    assert (semantic.is_displayed(), bm25.is_displayed()) == (True, True)
    assert browser.execute_script(fits)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser: webdriver.Chrome, page: DemoPage, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.address)
    ratios = browser.execute_script(CONTRAST)
    open_search(browser, page, f"query={WORD}")
    browser.execute_script("document.querySelector('#error').textContent = 'no server'")
    ratios |= browser.execute_script(CONTRAST)
    assert {"LABEL", "A", "title", "rank", "description", "share", "note", "shared", "error"} <= set(ratios)
    assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(paper.removeprefix("rgb(").split(",")[0]) > 128) == (scheme == "light")


def test_what_is_there_has_a_name(browser: webdriver.Chrome, page: DemoPage) -> None:
    open_search(browser, page, f"query={WORD}")
    for control in all_of(browser, "input, select, button"):
        assert not control.is_displayed() or control.accessible_name, control.get_attribute("outerHTML")
    assert [heading.text.split()[0] for heading in all_of(browser, "h1")] == ["q2s_tf"]
    names = [element.accessible_name for element in all_of(browser, "section") if element.is_displayed()]
    assert [name.split(" ")[0] for name in names] == ["What", "Que2Search", "BM25"]
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
