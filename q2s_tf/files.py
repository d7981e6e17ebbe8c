"""Finding the files of a table, and writing files atomically."""

import fcntl
import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from q2s_tf.errors import InputError

FORMATS = {
    ".parquet": "parquet", ".pq": "parquet", ".tsv": "tsv", ".tab": "tsv", ".txt": "tsv", ".csv": "csv",
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
}  # fmt: skip
"""The format of a table by the suffix of its file name, `.gz` apart."""

ACCEPTED = "Parquet (.parquet), TSV (.tsv), CSV (.csv), JSON lines (.jsonl); text may be gzipped"


class TableFiles(NamedTuple):
    """The files of one table."""

    paths: list[Path]
    """The files, sorted."""
    format: str
    """Their format, a value of `FORMATS`."""
    root: Path
    """The folder whose subfolders named `column=value` are columns (Hive partitions)."""


def find_files(path: str | Path, kind: str) -> TableFiles:
    """Find the files of a table: one file, a folder (searched to any depth), or a glob (`**` crosses folders).

    A path that exists is never a glob. Folders and globs skip names that begin with `_` or `.`, files of other formats,
    `.txt` files, and the `.report.json` beside positives.

    Args:
        path: The file, folder or glob.
        kind: The name of the table in errors, such as "documents".

    Raises:
        InputError: There is no such file or folder, nothing in it can be read, or it mixes formats.
    """
    path = Path(path)
    files: Iterable[Path] = [path]
    root, reason = path.parent, "its name ends in no known format"
    if path.is_dir():
        root, files, reason = path, path.rglob("*"), "nothing in it can be read"
    elif not path.is_file():
        root, reason = next(parent for parent in path.parents if parent.is_dir()), "there is no such file"
        matches = [root / match for match in glob.glob(str(path.relative_to(root)), root_dir=root, recursive=True)]
        files = {file for match in matches for file in ([match] if match.is_file() else match.rglob("*"))}
    if not path.is_file():
        files = [file for file in files if _is_part(file, root)]
    formats_of = {file: format_of for file in sorted(files) if (format_of := table_format(file))}
    if not formats_of:
        raise InputError(f"{kind} {path}: {reason}; give a file, folder or glob of {ACCEPTED}")
    first, *others = sorted(set(formats_of.values()))
    if others:
        found = " and ".join([first, *others])
        raise InputError(f"{kind} {path}: one table must be in one format; found {found}; give a glob")
    return TableFiles(list(formats_of), first, root)


def table_format(file: Path) -> str | None:
    """The format of a table by its name, a value of `FORMATS`; None if the name ends in none of them."""
    name = file.name.lower()
    found = FORMATS.get(Path(name.removesuffix(".gz")).suffix)
    return None if found == "parquet" and name.endswith(".gz") else found


def _is_part(file: Path, root: Path) -> bool:
    hidden = any(name.startswith(("_", ".")) for name in file.relative_to(root).parts)
    return file.is_file() and not hidden and ".txt" not in file.suffixes and not file.name.endswith(".report.json")


def make_folder(path: Path) -> Path:
    """Creates a folder for output, with its parents, unless it exists; `InputError` if it cannot be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be a folder for output ({error.strerror}); choose another one") from None
    return path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file as a whole or not at all.

    Yields a temporary path in the same folder, which replaces `path` at the end of the block. After an exception the
    temporary file is deleted and `path` is unchanged. The temporary name begins with `.`, so that no table includes
    it, and keeps the suffix, which some writers need.
    """
    partial = path.with_name(f".partial.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
