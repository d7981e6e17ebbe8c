"""A run directory while a process trains in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from q2s_tf.errors import InputError
from q2s_tf.files import exclusive
from q2s_tf.training.callbacks import read_history

LOCK = "training.lock"
"""File that the process that trains in a run directory locks."""


def refuse_existing(run: Path) -> None:
    """Raises `InputError` if a run directory exists and is not empty."""
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(f"run {run}: exists and is not empty: give another --out, or --resume to continue it")


@contextmanager
def run_directory(run: Path, chief: bool, resume: bool) -> Iterator[None]:
    """Creates a run directory and keeps other trainings out of it; the chief of several workers does.

    After an error a new run directory in which no stage has begun is removed; an empty one that existed is kept. After
    Ctrl-C it is kept if it can be resumed.

    Raises:
        InputError: another process trains in it, or it cannot be written, for example because the disk is full.
    """
    if not chief:
        yield
        return
    existed = run.exists()
    try:
        run.mkdir(parents=True, exist_ok=True)
        message = f"run {run}: another process trains in it: wait for it to end, or train into another --out"
        with exclusive(run / LOCK, message):
            try:
                yield
            except BaseException as error:
                resumable = isinstance(error, KeyboardInterrupt) and (run / "config.toml").is_file()
                if not (resume or resumable or read_history(run / "metrics.jsonl")):
                    shutil.rmtree(run, ignore_errors=True)
                    if existed:
                        run.mkdir(exist_ok=True)
                raise
    except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise InputError(
            f"run {run}: cannot be written: {reason.splitlines()[0]}: make room or choose another disk, then train "
            "again, with --resume if the folder exists"
        ) from error
