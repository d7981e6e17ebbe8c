"""The pages build without a warning, their links lead somewhere, and the guide does what it says."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer
from own_data import write_own_data

from q2s_tf.commands import app
from q2s_tf.config_files import read_config

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
GUIDE = ROOT / "docs" / "guide.md"


class Page(HTMLParser):
    """The ids of a built page, and what it loads (`assets`) and points to (`links`)."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.assets: list[str] = []
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {values[name] or "" for name in ("id", "name") if name in values}
        where = values.get("href" if tag in ("a", "link") else "src")
        if where and tag == "a":
            self.links.append(where)
        elif where and values.get("rel") != "canonical":
            self.assets.append(where)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages. A link or an anchor that leads nowhere, or a docstring that does not fit, is an error."""
    out = tmp_path_factory.mktemp("site")
    command = [BIN / "mkdocs", "build", "--strict", "--quiet", "--site-dir", out]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_pages_load_nothing_from_the_network(pages: dict[Path, Page]) -> None:
    assert len(pages) > 10
    for path, page in pages.items():
        assert page.assets, path
        assert not [asset for asset in page.assets if urlsplit(asset).netloc], path


def test_links_within_the_site_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    checked = 0
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links start at the address that the site is put under
        for link in (*page.links, *page.assets):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path.relative_to(site)}: {link}"
            if parts.fragment and target in pages:
                checked += 1
                assert unquote(parts.fragment) in {*pages[target].ids, "__skip"}, f"{path.relative_to(site)}: {link}"
    assert checked > 100


def test_every_package_has_an_api_page() -> None:
    packages = {path.parent.name for path in (ROOT / "q2s_tf").glob("*/__init__.py")}
    described = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    assert packages <= set(re.findall(r"^::: q2s_tf\.(\w+)$", described, flags=re.MULTILINE))


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "serving_config/README.md"])
def test_relative_links_of_pages_outside_the_site(name: str) -> None:
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = page.parent / parts.path if parts.path else page
        assert target.exists(), f"{name}: {link}"
        if parts.fragment:
            assert parts.fragment in anchors(target), f"{name}: {link}"


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_commands_of_pages_name_files_and_options_that_are_there() -> None:
    """Not every command of the pages is run by a test, but a renamed tool, config or option does not go unnoticed."""
    pages = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "serving_config" / "README.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", " ")
    named = set(re.findall(r"\b(?:tools|configs|benchmarks|serving_config)/[\w./]+\.(?:py|toml|sh|md)", text))
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists()]
    commands = re.findall(r"(?:python tools/(\w+)\.py|\bq2s ([a-z][a-z-]+))([^\n`#&]*)", text)
    assert len(commands) > 10
    options = {
        name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in typer.main.get_command(app).commands.items()
    }
    for tool, command, arguments in commands:
        name = command or tool.replace("_", "-")
        assert set(re.findall(r" (--[a-z][\w-]*)", arguments)) <= {*options[name], "--help"}, f"{name} {arguments}"


def test_the_channels_to_switch_on_in_the_guides_config_are_valid(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "own_data.toml").read_text(encoding="utf-8")
    everything = tmp_path / "everything.toml"
    everything.write_text(re.sub(r"^# (?=\[channels|\w+ = )", "", text, flags=re.MULTILINE), encoding="utf-8")
    added = set(read_config(everything).channels) - set(read_config(ROOT / "configs" / "own_data.toml").channels)
    assert added == {"description_text", "brand", "query_country", "country", "images"}


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder as the guide finds it: the project's, with products, judgements and a log in `data/`."""
    for name in ("tools", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_own_data(tmp_path / "data")
    return tmp_path


@pytest.fixture
def running(workplace: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Servers that were started; ended at the end."""
    servers: list[subprocess.Popen[str]] = []
    yield servers
    for server in servers:
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_the_guide_does_what_it_says(workplace: Path, running: list[subprocess.Popen[str]]) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert blocks[0] == "make install\nsource .venv/bin/activate\n"  # which the tests themselves run in
    port = str(free_port())
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    printed = []
    for block in blocks[1:]:
        command = block.replace("8500", port)
        if "serve.py" in command:
            server = subprocess.Popen(
                shlex.split(command), cwd=workplace, env=environment, stdout=subprocess.PIPE, text=True
            )
            running.append(server)
            assert server.stdout is not None
            assert server.stdout.readline().startswith("serving ")
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=workplace, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    for name in ("data/positives.parquet", "data/later_positives.parquet", "runs/own/stage1.weights.h5",
                 "runs/fast/stage1.weights.h5",
                 "runs/own/evaluation/metrics.json", "saved_models/retriever/1/saved_model.pb"):  # fmt: skip
        assert (workplace / name).is_file(), name
    answer = next(text for text in printed if "rank" in text and "title" in text)
    first = next(line for line in answer.splitlines() if re.match(r"\W*1\s", line))
    assert re.search("red .*table", first, flags=re.IGNORECASE)
