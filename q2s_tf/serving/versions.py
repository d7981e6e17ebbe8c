"""Versions of the servables on disk: a version is there whole, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVABLES = ("query_tower", "document_tower", "retriever")


def next_version(models: Path) -> int:
    """One more than the highest version of any servable in the folder; 1 in an empty one."""
    numbers = [
        int(version.name) for name in SERVABLES for version in (models / name).glob("[0-9]*") if version.name.isdigit()
    ]
    return max(numbers, default=0) + 1


@contextmanager
def new_version(models: Path) -> Iterator[tuple[int, dict[str, Path]]]:
    """Gives folders to write a new version of all servables into, and publishes them when the block ends well.

    They are written aside on the same file system, flushed to disk, and renamed into place; after an exception nothing
    is left of them.

    Yields:
        The version's number, and by servable the folder to fill.
    """
    models.mkdir(parents=True, exist_ok=True)
    version = next_version(models)
    aside = models / f".publishing-{version}-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    folders = {name: aside / name for name in SERVABLES}
    try:
        for folder in folders.values():
            folder.mkdir(parents=True)
        yield version, folders
        for name, folder in folders.items():
            _flush(folder)
            (models / name).mkdir(exist_ok=True)
        for name, folder in folders.items():
            os.rename(folder, models / name / str(version))
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
