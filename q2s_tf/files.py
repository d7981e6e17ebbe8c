"""Finding the files of a table, and writing files atomically."""

import csv
import fcntl
import glob
import gzip
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from q2s_tf.errors import InputError

FORMATS = {
    ".parquet": "parquet", ".pq": "parquet", ".tsv": "tsv", ".tab": "tsv", ".txt": "tsv", ".csv": "csv",
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
}  # fmt: skip
"""The format of a table by the suffix of its file name, `.gz` apart."""

_NAMES = {"parquet": "Parquet (.parquet)", "tsv": "TSV (.tsv)", "csv": "CSV (.csv)", "json": "JSON lines (.jsonl)"}


@dataclass(frozen=True)
class TableFiles:
    """The files of one table.

    Attributes:
        paths: The files, sorted.
        format: Their format, a value of `FORMATS`.
        root: The folder whose subfolders named `column=value` are columns (Hive partitions).
    """

    paths: tuple[Path, ...]
    format: str
    root: Path

    @property
    def partitions(self) -> list[str]:
        """The columns that subfolders are named after."""
        folders = (folder for path in self.paths for folder in path.relative_to(self.root).parts[:-1])
        return sorted({folder.split("=", 1)[0] for folder in folders if "=" in folder})


def find_files(path: str | Path, kind: str, formats: Collection[str] = tuple(_NAMES)) -> TableFiles:
    """Find the files of a table: one file, a folder (searched to any depth), or a glob (`**` crosses folders).

    Folders and globs skip names that begin with `_` or `.`, files of other formats, and `.txt` files.

    Args:
        path: The file, folder or glob.
        kind: The name of the table in errors, such as "documents".
        formats: The formats to accept.

    Raises:
        InputError: There is no such file or folder, nothing in it can be read, or it mixes formats.
    """
    path = Path(path)
    if path.is_file():
        root, files, reason = path.parent, [path], "its name ends in no known format"
    elif path.is_dir():
        root, reason = path, "nothing in it can be read"
        files = [file for file in path.rglob("*") if _is_part(file, root)]
    else:
        root, reason = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts)), "there is no such file"
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
        every = {file for match in matches for file in ([match] if match.is_file() else match.rglob("*"))}
        files = [file for file in every if _is_part(file, root)]
    formats_of = {file: _format(file) for file in sorted(files) if _format(file) in formats}
    if not formats_of:
        accepted = ", ".join(_NAMES[name] for name in formats)
        raise InputError(f"{kind} {path}: {reason}; give a file, folder or glob of {accepted}; text may be gzipped")
    first, *others = sorted({str(name) for name in formats_of.values()})
    if others:
        found = " and ".join([first, *others])
        raise InputError(f"{kind} {path}: one table must be in one format; found {found}; give a glob")
    return TableFiles(tuple(formats_of), first, root)


def _format(file: Path) -> str | None:
    name = file.name.lower()
    found = FORMATS.get(Path(name.removesuffix(".gz")).suffix)
    return None if found == "parquet" and name.endswith(".gz") else found


def _is_part(file: Path, root: Path) -> bool:
    hidden = any(name.startswith(("_", ".")) for name in file.relative_to(root).parts)
    return file.is_file() and not hidden and ".txt" not in file.suffixes


def read_header(path: Path, kind: str, delimiter: str, quoted: bool) -> list[str]:
    """The column names in the first line of a text table.

    Args:
        path: The file, UTF-8, gzipped if it ends in `.gz`.
        kind: The name of the table in errors.
        delimiter: The character between two cells.
        quoted: Whether cells may be quoted (RFC 4180).

    Raises:
        InputError: The line is empty, not UTF-8, or has a name twice.
    """
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            line = stream.readline().decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise InputError(f"{kind} {path}: must be UTF-8 and is not: save it as UTF-8") from None
    except (OSError, EOFError) as error:
        raise InputError(f"{kind} {path}: cannot be read: {error}") from None
    names = next(csv.reader([line], delimiter=delimiter), []) if quoted else line.split(delimiter)
    if not line or len(set(names)) < len(names):
        raise InputError(f"{kind} {path}: must begin with a line of distinct column names; it begins with {line!r}")
    return names


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
