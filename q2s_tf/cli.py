"""Shared by all command lines: running a command, reporting bad input, showing progress."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from q2s_tf.errors import InputError
from q2s_tf.extras import explain_missing

Item = TypeVar("Item")

console = Console(stderr=True, soft_wrap=True, force_jupyter=False, force_terminal=sys.stderr.isatty())
"""Standard error, for progress and remarks; results go to standard output. Progress bars move only in a terminal; a
notebook or a file gets their last state."""

STYLE: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
"""Options of every `typer.Typer`: plain help, plain tracebacks."""


STORAGE_ERRORS = tuple(
    map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO))
)
"""Reasons why a file cannot be written or read, as libraries repeat them in exceptions of their own."""


def run(command: Callable[..., Any] | typer.Typer) -> NoReturn:
    """Runs a typer command, or an application of several, as a program and exits.

    Exit status 0 on success; 2 with one line on standard error for bad input (`InputError`, an unknown or missing
    option, a file or folder that cannot be read or written, a full disk, an extra that is not installed); 130 on
    Ctrl-C, also if a library turned it into another exception; a second Ctrl-C ends the process at once. Any other
    exception is a defect of q2s_tf and shows its traceback.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not isinstance(command, typer.Typer):
        function, command = command, typer.Typer(**STYLE)
        command.command()(function)
    interrupted = False

    def interrupt(*_: Any) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        status = command(standalone_mode=False)
    except BaseException as error:
        if interrupted or isinstance(error, KeyboardInterrupt | typer.Abort):
            sys.exit(130)
        if message := _explain(error):
            print("error: " + " ".join(message.split()), file=sys.stderr)
            sys.exit(2)
        raise
    finally:
        signal.signal(signal.SIGINT, previous)
    sys.exit(status if isinstance(status, int) else 0)


def _explain(error: BaseException) -> str | None:
    """The line for an error that the user can remedy; None for a defect."""
    if isinstance(error, typer.TyperException):
        message = error.format_message()
        param: Any = getattr(error, "param", None)
        if getattr(param, "max", None) is not None:
            message += f"; it must be from {param.min} to {param.max}"
        return message if len(message) < 600 else f"{message[:200]} … {message[-200:]}"
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return explain_missing(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) or any(reason in str(error) for reason in STORAGE_ERRORS):
        return (str(error).splitlines() or [type(error).__name__])[0][:500]
    return None


def progress_bar(transient: bool = False) -> Progress:
    """A progress bar on standard error: spinner, description, bar, count, elapsed and remaining time.

    Args:
        transient: remove the bar at the end, so that an error is the only line.
    """
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
    )


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yields ``items`` while a progress bar named ``description`` counts them.

    An estimated ``total`` grows with the count, and the bar ends at the true one.
    """
    count, total = 0, total or length_hint(items) or None
    with progress_bar() as progress:
        task = progress.add_task(description, total=total)
        for count, item in enumerate(items, 1):
            yield item
            progress.update(task, completed=count, total=None if total is None else max(total, count))
        progress.update(task, total=count)


def printable(text: str) -> Text:
    """Text without effect of rich's markup and of control codes, because strangers write titles and queries."""
    return Text("".join(character if character.isprintable() else " " for character in text))
