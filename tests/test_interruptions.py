"""Ctrl-C, full disks and options out of their range: one line, and the right status."""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from q2s_tf import cli
from q2s_tf.commands import app
from q2s_tf.config_files import read_config
from q2s_tf.errors import InputError

ROOT = Path(__file__).parents[1]


def run(command: Callable[..., Any] | typer.Typer, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["q2s", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.run(command)
    return int(exit_.value.code or 0)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/b.h5"), "error: a/b.h5: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "error: a: Permission denied"),
        (OSError("[Errno 28] Error writing bytes to file. Detail: No space left on device"), "error: [Errno 28] Error"),
        (RuntimeError("x.h5: Read-only file system; more\nlines"), "error: x.h5: Read-only file system; more"),
        (InputError("two\nlines"), "error: two lines"),
    ],
)
def test_an_error_of_storage_is_one_line_and_status_2(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    assert run(command, [], monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(says)


def test_a_defect_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(sys, "argv", ["q2s"])
    with pytest.raises(RuntimeError, match="a defect"):
        cli.run(command)


@pytest.mark.parametrize("wrapped", [False, True])
def test_ctrl_c_is_status_130_also_when_a_library_wraps_it(
    wrapped: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise (ImportError("partially imported") if wrapped else KeyboardInterrupt) from None

    before = signal.getsignal(signal.SIGINT)
    assert run(command, [], monkeypatch) == 130
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_during_the_imports_of_a_tool(tmp_path: Path) -> None:
    """The first module that a tool imports stands for all of them: it is interrupted."""
    (tmp_path / "rich").mkdir()
    code = ("import os, signal", "signal.signal(signal.SIGINT, signal.default_int_handler)")
    (tmp_path / "rich/__init__.py").write_text("\n".join((*code, "os.kill(os.getpid(), signal.SIGINT)")))
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for program in ([str(ROOT / "tools/split_judgements.py")], ["-m", "q2s_tf"]):
        done = subprocess.run([sys.executable, *program], env=environment, capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", ""), program


def test_ctrl_c_in_training_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, out: Path, **__: Any) -> None:
        out.mkdir()
        (out / "config.toml").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("q2s_tf.train", interrupted)
    options = {"config": "c", "documents": "d", "positives": "p", "validation": "v", "out": str(tmp_path / "my run")}
    arguments = ["train", *(text for name, value in options.items() for text in (f"--{name}", value))]
    assert run(app, arguments, monkeypatch) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert "continues after the last complete epoch: q2s train --config c" in said
    assert said.endswith(f"--out '{tmp_path}/my run' --resume")


def judgements(folder: Path) -> Path:
    rows = [{"query": f"q{n % 400}", "document_id": f"d{n}", "relevance": float(n // 400)} for n in range(800)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "judgements.parquet")
    return folder / "judgements.parquet"


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/split_judgements.py"), "--judgements", str(judgements(tmp_path))]
    command += ["--out", str(tmp_path / "out")]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # noqa: E731
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "File too large" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


LOG_OPTIONS = ["build-positives", "--events", "e.tsv", "--out", "o.parquet"]
QUERY = ["query", "sofa"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*LOG_OPTIONS, "--window", "100000000000d"], "--window: a time span is a whole number and one of s, m, h, d"),
        (
            [*LOG_OPTIONS, "--max-query-length", "0"],
            "'--max-query-length': Input should be greater than or equal to 1; it",
        ),
        (
            ["serve", "--poll-seconds", "inf"],
            "'--poll-seconds': Input should be less than or equal to 86400; it must be f",
        ),
        (["serve", "--poll-seconds", "nan"], "'--poll-seconds'"),
        (["serve", "--port", "65536"], "it must be from 0 to 65535"),
        ([*QUERY, "--pages", "9" * 4400], "'--pages'"),
        ([*QUERY, "--pages", "9" * 4000], "it must be from 1 to 10000"),
        (
            [*QUERY, "--k", "3.5"],
            "'--k': Input should be a valid integer, unable to parse string as an integer; it must be f",
        ),
        ([*QUERY, "--k", "-1"], "'--k': Input should be greater than or equal to 1; it must be from 1 to 100000"),
        ([*QUERY, "--min-score", "nan"], "'--min-score'"),
        (["make-marketplace", "--out", "x", "--listings", "-5"], "'--listings'"),
        (["split-judgements", "--judgements", "x", "--out", "y", "--relevant-at", "inf"], "'--relevant-at'"),
    ],
)
def test_an_option_out_of_its_range_is_named(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "e.tsv").write_text("user_id\tevent\ttimestamp\tquery\tdocument_id\nu\tsearch\t2026-05-01\tq\t\n")
    monkeypatch.chdir(tmp_path)
    assert run(app, arguments, monkeypatch) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert says in line
    assert len(line) < 700


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("stage1.learning_rat=1", "learning_rate"),
        ("dimensions=3", "dimension"),
        ("channels.title_text.max_token=3", "max_tokens"),
        ("encoders.query.num_layer=3", "num_layers"),
        ("evaluation.relevantat=1", "relevant_at"),
    ],
)
def test_a_typo_in_a_config_is_found_before_tensorflow_is_imported(key: str, nearest: str) -> None:
    code = (
        "import sys, q2s_tf\n"
        "try:\n"
        f"    q2s_tf.train('marketplace', documents='d', positives='p', validation='v', out='o', overrides=[{key!r}])\n"
        "except q2s_tf.InputError as error:\n"
        "    print(error, 'tensorflow' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    name = key.partition("=")[0]
    assert f"unknown key '{name}'; the nearest key is '{nearest}' False" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000 + "]" * 5000,
        ".".join("a" * 5000) + " = 1",
        "seed = " + "9" * 5000,
        "[" + ".".join(["stage1"] * 5000) + "]",
        "dimension." + ".".join("b" * 5000) + " = 1",
    ],
    ids=range(5),
)
def test_a_config_of_absurd_depth_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(InputError) as raised:
        read_config(tmp_path / "c.toml")
    assert "\n" not in str(raised.value)
    assert "c.toml" in str(raised.value)
