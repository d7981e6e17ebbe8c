"""Versions of the servables on disk: a version is there whole, or not at all, and numbers only grow.

``<models>/.last_version`` holds the highest number ever given, so that a number does not come back when its folder has
been removed; who writes locks it (``flock``), so that a second export waits for the first. Beside it there may be, for
a moment or after a process was killed:

* ``.writing-<version>/``: a version under way; the next writer removes it;
* ``.ready-<version>/``: a version that is complete and being moved into place; the next writer moves the rest;
* ``.removing-<version>-<servable>/``: an old version on its way out; the next writer removes it.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from q2s_tf.cli import console
from q2s_tf.errors import InputError
from q2s_tf.serving.folders import versions_in

SERVABLES = ("query_tower", "document_tower", "retriever")
MEMORY_FILE = ".last_version"


def next_version(models: Path) -> int:
    """One more than the highest version that any servable in the folder has or ever had; 1 in an empty one.

    Raises:
        InputError: The folder's memory of the last version is no number.
    """
    numbers = [version for name in SERVABLES for version in versions_in(models / name)]
    return max([*numbers, _last_version(models)]) + 1


@contextmanager
def new_version(models: Path, servables: Sequence[str] = SERVABLES) -> Iterator[tuple[int, dict[str, Path]]]:
    """Gives folders to write a new version of some servables into, and publishes them when the block ends well.

    They are written aside on the same file system, flushed to disk and renamed into place; after an exception nothing
    is left of them. One writer at a time: a second one waits at the entrance, so what it reads in its block is the
    newest there is.

    Args:
        models: The folder of the servables; it is made if it is not there.
        servables: Which of them get the new version. All versions of one block have one number.

    Yields:
        The version's number, and by servable the folder to fill.

    Raises:
        InputError: ``models`` is a file, or its memory of the last version is no number.
        OSError: A servable's folder cannot be made or written.
    """
    with _locked(models):
        version = next_version(models)
        aside = models / f".writing-{version}"
        folders = {name: aside / name for name in servables}
        try:
            for folder in folders.values():
                folder.mkdir(parents=True)
            yield version, folders
            for name in servables:
                (models / name).mkdir(exist_ok=True)
            for path in [*aside.rglob("*"), aside]:
                _flush(path)
            _remember(models, version)
            aside.rename(models / f".ready-{version}")
            _flush(models)
            _move_into_place(models, version)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def keep_newest(models: Path, keep: int) -> list[Path]:
    """Removes all but the ``keep`` newest versions of each servable, each with one rename.

    A server that has one of them loaded goes on with it until it next looks at the folder. Not to be called within a
    block of `new_version`, whose end it would wait for.

    Args:
        models: The folder of the servables.
        keep: How many versions of each servable stay, at least 1.

    Returns:
        The folders of the versions that were removed.

    Raises:
        InputError: ``keep`` is under 1, or ``models`` is a file.
    """
    if keep < 1:
        raise InputError(f"keep must be at least 1, so that a version is left to serve; got {keep}")
    with _locked(models):
        old = [
            folder
            for name in SERVABLES
            for _, folder in sorted(versions_in(models / name).items(), reverse=True)[keep:]
        ]
        for folder in old:
            aside = models / f".removing-{folder.name}-{folder.parent.name}"
            folder.rename(aside)
            shutil.rmtree(aside)
    return old


@contextmanager
def _locked(models: Path) -> Iterator[None]:
    """Makes the folder and its memory if need be, waits for other writers, and tidies up after one that was killed."""
    if models.exists() and not models.is_dir():
        raise InputError(f"models folder {models} must be a folder, and it is a file; name another one")
    models.mkdir(parents=True, exist_ok=True)
    with (models / MEMORY_FILE).open("a") as memory:
        try:
            fcntl.flock(memory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"another process is writing into {models}; waiting for it to end")
            fcntl.flock(memory, fcntl.LOCK_EX)
        for ready in models.glob(".ready-*"):
            _move_into_place(models, int(ready.name.removeprefix(".ready-")))
        for left in [*models.glob(".writing-*"), *models.glob(".removing-*")]:
            shutil.rmtree(left)
        yield


def _move_into_place(models: Path, version: int) -> None:
    ready = models / f".ready-{version}"
    for folder in sorted(ready.iterdir()):
        folder.rename(models / folder.name / str(version))
        _flush(models / folder.name)
    ready.rmdir()


def _last_version(models: Path) -> int:
    memory = models / MEMORY_FILE
    text = memory.read_text().strip() if memory.exists() else ""
    if text and not text.isdecimal():
        raise InputError(f"{memory} must hold the last version's number, and {text!r} came; write the number into it")
    return int(text or 0)


def _remember(models: Path, version: int) -> None:
    # In place, because the lock is on this very file, and over the old number, which is never longer.
    with (models / MEMORY_FILE).open("r+") as memory:
        memory.write(f"{version}\n")
    _flush(models / MEMORY_FILE)


def _flush(path: Path) -> None:
    """Has what was written to a file, or which names are in a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
