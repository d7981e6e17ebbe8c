"""Files that are written whole or not at all."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from q2s_tf.errors import InputError


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


@contextmanager
def exclusive(path: Path, message: str) -> Iterator[None]:
    """Holds an exclusive lock on the file `path`, which stays. It ends with the process that holds it.

    Raises:
        InputError: another process holds it; with this message.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(message) from None
        yield
