"""Shared by all command lines: running a command, reporting bad input, showing progress."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
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


def run(command: Callable[..., Any] | typer.Typer) -> NoReturn:
    """Runs a typer command, or an application of several, as a program and exits.

    Exit status 0 on success; 2 with one line on standard error for bad input (`InputError`, an unknown or missing
    option, a file that does not exist or cannot be read, an extra that is not installed); 130 on Ctrl-C. Any other
    exception is a defect of q2s_tf and shows its traceback.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not isinstance(command, typer.Typer):
        function, command = command, typer.Typer(**STYLE)
        command.command()(function)
    try:
        status = command(standalone_mode=False)
    except typer.TyperException as error:
        _fail(error.format_message())
    except (InputError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if not (message := explain_missing(error)):
            raise
        _fail(message)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


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
    """Yields ``items`` while a progress bar named ``description`` counts them."""
    with progress_bar() as progress:
        yield from progress.track(items, total=total, description=description)


def printable(text: str) -> Text:
    """Text without effect of rich's markup and of control codes, because strangers write titles and queries."""
    return Text("".join(character if character.isprintable() else " " for character in text))
