"""What every command line of q2s_tf shares: how it starts, how it reports bad input, how it shows progress."""

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

from q2s_tf.errors import InputError

Item = TypeVar("Item")

console = Console(stderr=True, soft_wrap=True, force_jupyter=False, force_terminal=sys.stderr.isatty())
"""Where progress and remarks go; results go to standard output. Bars move in a terminal alone: a notebook, like a file,
is given their last state."""


def run(command: Callable[..., Any]) -> NoReturn:
    """Runs a typer command function as a program and exits.

    Exit status 0 on success; 2 with one line on standard error for bad input (`InputError`, an unknown or missing
    option, a file that is not there or may not be read); 130 on Ctrl-C. Any other exception is a defect of ours and
    shows its traceback.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    try:
        status = app(standalone_mode=False)
    except typer.TyperException as error:
        _fail(error.format_message())
    except (InputError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def progress_bar(transient: bool = False) -> Progress:
    """A progress bar on standard error: spinner, description, bar, count, elapsed and remaining time.

    Args:
        transient: leave nothing behind, so that an error is the only line.
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
