"""New Python processes that have TensorFlow and Keras imported: the fork server of `multiprocessing` forks them.

The import takes longer than most programs of the tests. It is done once, in a process that runs nothing else, and the
programs have nothing of the test's process: no model, no graph, no thread. Arguments are those of `python`: `-c CODE`,
`-m MODULE` or the path of a script, and its arguments. What depends on how and in which order modules are imported, or
on what TensorFlow logs during its import, needs `subprocess`.
"""

import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

CONTEXT = multiprocessing.get_context("forkserver")
# Neither TF Text nor TensorFlow Recommenders: there are programs that check that they work without them.
CONTEXT.set_forkserver_preload(["tensorflow", "keras", "pandas", "pyarrow.parquet", "duckdb"])


class Program:
    """A running program, with the methods of `subprocess.Popen`; it is killed when the test's process ends.

    Args:
        arguments: of `python`.
        stderr: a file, to which standard error is appended.
        env: the environment, by default that of this process.
        cwd: the working directory.
        max_files: how many files it may have open; None for no limit.
    """

    stdout: TextIO
    """Standard output."""

    def __init__(
        self,
        arguments: Sequence[Any],
        stderr: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        max_files: int | None = None,
    ):
        given, environment = [str(argument) for argument in arguments], dict(os.environ if env is None else env)
        receiver, sender = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(
            target=_program,
            args=(given, sender, str(stderr), environment, str(cwd or Path.cwd()), max_files),
            daemon=True,
        )
        self.process.start()
        sender.close()
        self.stdout = open(os.dup(receiver.fileno()), encoding="utf-8")  # noqa: SIM115  (open as long as the program)
        receiver.close()

    @property
    def pid(self) -> int | None:
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("a program", timeout)
        return self.process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            assert self.process.pid is not None
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()


def run(
    arguments: Sequence[Any],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end, as `subprocess.run` with captured text does."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as errors:
        program = Program(arguments, Path(errors.name), env, cwd)
        printed = program.stdout.read()
        return subprocess.CompletedProcess(arguments, program.wait(timeout), printed, errors.read())


def _program(
    arguments: list[str], stdout: Any, stderr: str, environment: dict[str, str], cwd: str, max_files: int | None
) -> None:
    """The process of a program."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    os.dup2(stdout.fileno(), 1)
    stdout.close()
    errors = os.open(stderr, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(errors, 2)
    os.close(errors)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  (open as long as the process runs)
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    if max_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, max_files))
    try:
        _execute(*arguments)
    finally:
        sys.stdout.flush()


def _execute(first: str, *rest: str) -> None:
    if first == "-c":
        code, *given = rest
        sys.argv = ["-c", *given]
        sys.path.insert(0, "")
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = list(rest)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")
