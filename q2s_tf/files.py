"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a name beside `path` to write to, which takes its place when the block ends well.

    After an exception nothing is left of it, and what was at `path` before is still there.
    """
    aside = path.with_name(f"partial.{path.name}")  # in front: some writers go by the suffix
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
