"""Versions of the servables on disk: each is published completely or not at all, and numbers are never reused.

``<models>/.last_version`` holds the highest number that was ever given, so that the number of a removed version does
not come back. Writers lock this file (``flock``), so a second export waits for the first. For a moment, or after a
process was killed, there may also be:

* ``.writing-<version>/``: a version that is being written; the next writer removes it;
* ``.ready-<version>/``: a complete version that is being moved into place; the next writer moves the rest;
* ``.removing-<version>-<servable>/``: an old version that is being removed; the next writer removes it.
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
LAST_VERSION_FILE = ".last_version"


def next_version(models: Path) -> int:
    """Return one more than the highest version that any servable has or had; 1 in an empty folder.

    Raises:
        InputError: The file with the last version does not hold a number.
    """
    path = models / LAST_VERSION_FILE
    last = path.read_text().strip() if path.exists() else ""
    if last and not last.isdecimal():
        raise InputError(f"{path} must hold the last version's number, got {last!r}; write the number into it")
    versions = [version for name in SERVABLES for version in versions_in(models / name)]
    return max([*versions, int(last or 0)]) + 1


@contextmanager
def new_version(models: Path, servables: Sequence[str] = SERVABLES) -> Iterator[tuple[int, dict[str, Path]]]:
    """Yield a new version and the folder to fill for each servable, and publish them if the block succeeds.

    The folders are flushed to disk and then renamed into place; after an exception they are removed. A second writer
    waits at the start of its block, so what it reads inside is the newest version.

    Args:
        models: Folder of the servables; it is created if needed.
        servables: Which servables get the new version, all with the same number.

    Raises:
        InputError: ``models`` is a file or cannot be written, or the file with the last version does not hold a number.
    """
    with _locked(models) as last_version_file:
        version = next_version(models)
        partial = models / f".writing-{version}"
        folders = {name: partial / name for name in servables}
        try:
            for folder in folders.values():
                folder.mkdir(parents=True)
            yield version, folders
            for name in servables:
                (models / name).mkdir(exist_ok=True)
            for path in [*partial.rglob("*"), partial]:
                _flush(path)
            # The locked file itself is written, not replaced. The old number is never longer than the new one.
            with last_version_file.open("r+") as file:
                file.write(f"{version}\n")
            _flush(last_version_file)
            partial.rename(models / f".ready-{version}")
            _flush(models)
            _move_into_place(models, version)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def keep_newest(models: Path, keep: int) -> list[Path]:
    """Remove all but the newest versions of each servable, each with one rename.

    A server keeps a loaded version until it next reads the folder. Do not call this inside a block of `new_version`: it
    would wait for the end of the block.

    Args:
        models: Folder of the servables.
        keep: Versions of each servable that stay, at least 1.

    Returns:
        The folders of the removed versions.

    Raises:
        InputError: ``keep`` is less than 1, or ``models`` is a file.
    """
    if keep < 1:
        raise InputError(f"keep must be at least 1, so that a version is left to serve; got {keep}")
    removed = []
    with _locked(models):
        for name in SERVABLES:
            for version, folder in sorted(versions_in(models / name).items(), reverse=True)[keep:]:
                renamed = models / f".removing-{version}-{name}"
                folder.rename(renamed)
                shutil.rmtree(renamed)
                removed.append(folder)
    return removed


@contextmanager
def _locked(models: Path) -> Iterator[Path]:
    """Lock the folder, create it if needed, and finish or remove what a killed writer left; yields the locked file.

    An OSError inside, such as that of a full disk, becomes an `InputError`.
    """
    if models.exists() and not models.is_dir():
        raise InputError(f"models folder {models} must be a folder, and it is a file; name another one")
    try:
        models.mkdir(parents=True, exist_ok=True)
        path = models / LAST_VERSION_FILE
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                console.print(f"another process is writing into {models}; waiting for it to end")
                fcntl.flock(file, fcntl.LOCK_EX)
            for ready in models.glob(".ready-*"):
                _move_into_place(models, int(ready.name.removeprefix(".ready-")))
            for leftover in [*models.glob(".writing-*"), *models.glob(".removing-*")]:
                shutil.rmtree(leftover)
            yield path
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"models folder {models}: cannot be written ({reason}); free space or name another") from error


def _move_into_place(models: Path, version: int) -> None:
    ready = models / f".ready-{version}"
    for folder in sorted(ready.iterdir()):
        folder.rename(models / folder.name / str(version))
        _flush(models / folder.name)
    ready.rmdir()


def _flush(path: Path) -> None:
    """Flush the content of a file, or the entries of a folder, to disk, so that it survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
