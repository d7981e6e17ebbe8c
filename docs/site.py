"""What the built pages add to the files in docs/: two pages from elsewhere in the project, and the links to them."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {"serving_config/README.md": "serving_config.md", "CHANGELOG.md": "changelog.md"}
"""Files of the project, by path, and the pages that they become."""

_LINK = re.compile(r"\]\(\.\./([\w./-]+\.md)(#[\w-]+)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of `PAGES`."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(root / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turns links that lead out of docs/, and those of the added pages into it, to where they lead in the site."""

    def link(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        if path not in PAGES and not path.startswith("docs/"):
            return match[0]
        return f"]({PAGES.get(path, path.removeprefix('docs/'))}{anchor})"

    return markdown if page.file.src_uri.startswith("api/") else _LINK.sub(link, markdown)
