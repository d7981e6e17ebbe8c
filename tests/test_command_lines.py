"""The command lines on bad input: one clear line, exit status 2, nothing left behind."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_market import TinyMarket

from q2s_tf.cli import run as run_command
from q2s_tf.config import FORMAT

TOOLS = Path(__file__).parents[1] / "tools"


def main_of(tool: str) -> Callable[..., Any]:
    """The typer function of a tool's file, without running it as a program."""
    specification = importlib.util.spec_from_file_location(f"tool_{tool}", TOOLS / f"{tool}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


def call(
    tool: str, options: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    """Runs a tool in this process, which spares the import of TensorFlow: exit status, standard output and error."""
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", [f"{tool}.py", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run_command(main_of(tool))
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out, captured.err


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def good(market: TinyMarket, run: Path) -> dict[str, dict[str, Any]]:
    """Options of each tool that are right, but for --out."""
    return {
        "train": {
            "config": market.lean_config,
            "documents": market.documents,
            "positives": market.positives,
            "validation": market.judgements,
        },
        "evaluate": {"run": run, "documents": market.documents, "judgements": market.judgements},
        "export": {"run": run, "documents": market.documents},
    }


@pytest.fixture(scope="module")
def bad(market: TinyMarket, run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files that are wrong, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("bad")
    rows = market.document_rows
    schema = pa.Table.from_pylist(rows).schema
    tables = {
        "empty": pa.Table.from_pylist([], schema),
        "twice": pa.Table.from_pylist([*rows, rows[0]], schema),
        "untitled": pa.Table.from_pylist(rows, schema).drop_columns(["title"]),
        "unanswered": pa.Table.from_pylist(market.positive_rows).drop_columns(["document_id"]),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    (folder / "latin1.tsv").write_bytes("query\tcountry\tdocument_id\trelevance\ncafé\tFR\td00\t2\n".encode("latin-1"))
    (folder / "broken.toml").write_text("dimension = [", encoding="utf-8")
    (folder / "other_format").mkdir()
    config = (run / "config.toml").read_text(encoding="utf-8").replace(f"format = {FORMAT}", "format = 99")
    (folder / "other_format/config.toml").write_text(config, encoding="utf-8")
    (folder / "occupied").mkdir()
    (folder / "occupied/mine.txt").write_text("mine", encoding="utf-8")
    (folder / "file").write_text("mine", encoding="utf-8")
    return {path.stem: path for path in folder.iterdir()} | {"absent": folder / "absent.parquet"}


WRONG = [
    ("train", "documents", "absent", "absent.parquet: there is no such file"),
    ("train", "positives", "absent", "absent.parquet: there is no such file"),
    ("train", "validation", "absent", "absent.parquet: there is no such file"),
    ("train", "config", "absent", "absent.parquet: there is no such file"),
    ("train", "config", "broken", "broken.toml: not a TOML file"),
    ("train", "documents", "untitled", "untitled.parquet: needs the column title; it has document_id, description"),
    ("train", "positives", "unanswered", "unanswered.parquet: needs the column document_id; it has query, country"),
    ("train", "documents", "empty", "empty.parquet: the catalogue is empty"),
    ("train", "documents", "twice", "twice.parquet: a document_id may occur once; 'd00'"),
    ("train", "validation", "latin1", "latin1.tsv: must be UTF-8 and is not: save it as UTF-8"),
    ("train", "out", "occupied", "occupied: exists and is not empty"),
    ("train", "tokenizer", "file", "tokenizer: not a SentencePiece model"),
    ("evaluate", "run", "absent", "not a run directory"),
    ("evaluate", "run", "other_format", "its format is 99, this q2s_tf reads 3"),
    ("evaluate", "documents", "absent", "absent.parquet: there is no such file"),
    ("evaluate", "documents", "empty", "empty.parquet: the catalogue is empty"),
    ("evaluate", "judgements", "latin1", "latin1.tsv: must be UTF-8 and is not: save it as UTF-8"),
    ("evaluate", "judgements", "unanswered", "unanswered.parquet: needs the column document_id"),
    ("evaluate", "out", "file", "must be a folder; it is a file"),
    ("evaluate", "encoder", "absent", "absent.parquet: there is no such folder, nor a keras_hub preset"),
    ("export", "run", "other_format", "its format is 99, this q2s_tf reads 3"),
    ("export", "run", "occupied", "not a run directory"),
    ("export", "documents", "absent", "absent.parquet: there is no such file"),
    ("export", "documents", "untitled", "untitled.parquet: needs the column title"),
    ("export", "documents", "empty", "empty.parquet: the catalogue is empty"),
    ("export", "documents", "twice", "twice.parquet: a document_id may occur once; 'd00'"),
    ("export", "out", "file", "file: must be a folder; it is a file"),
]


@pytest.mark.parametrize(("tool", "option", "what", "message"), WRONG, ids=lambda each: str(each)[:20])
def test_bad_input_is_one_line_and_leaves_nothing(
    tool: str,
    option: str,
    what: str,
    message: str,
    good: dict[str, dict[str, Any]],
    bad: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = files_below(bad["file"].parent)
    status, out, error = call(tool, {**good[tool], "out": tmp_path / "out", option: bad[what]}, capsys, monkeypatch)
    assert status == 2
    (line,) = [each for each in error.splitlines() if each.startswith("error:")]
    assert error.rstrip().endswith(line), "the error is the last that is said"
    assert message in line
    assert "Traceback" not in error
    assert out == ""
    assert files_below(tmp_path) == []
    assert files_below(bad["file"].parent) == before


def test_unknown_keys_and_wrong_choices_are_named(
    good: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool, option, value, message in (
        ("train", "set", "stage1.batch=5", "unknown key 'stage1.batch'"),
        ("train", "set", "colour=red", "unknown key 'colour'"),
        ("train", "colour", "red", "No such option"),
        ("evaluate", "stage", "3", "Invalid value for '--stage'"),
        ("evaluate", "relevant-at", "much", "Invalid value for '--relevant-at'"),
        ("export", "index", "hnsw", "Invalid value for '--index'"),
        ("export", "index", "scann", "1000 documents; got 60"),
    ):
        status, _, error = call(tool, {**good[tool], "out": tmp_path / "out", option: value}, capsys, monkeypatch)
        assert status == 2, message
        (line,) = [each for each in error.splitlines() if each.startswith("error:")]
        assert message in line
        assert files_below(tmp_path) == []


def test_a_missing_option_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("train", "evaluate", "export"):
        status, _, error = call(tool, {}, capsys, monkeypatch)
        assert status == 2
        assert error.startswith("error: Missing option '--")
        assert len(error.splitlines()) == 1


REAL = [
    ([str(TOOLS / "train.py")], "train", "documents", "absent", "error: documents .*absent.parquet: there is no such"),
    pytest.param(
        *([str(TOOLS / "evaluate.py")], "evaluate", "run", "other_format"),
        "error: run .*other_format: its format is 99",
        marks=pytest.mark.slow,
    ),
    (["-m", "q2s_tf", "export"], "export", "run", "occupied", "error: run .*occupied: not a run directory"),
]


@pytest.mark.parametrize(("program", "tool", "option", "what", "message"), REAL)
def test_a_tool_as_a_program(
    program: list[str],
    tool: str,
    option: str,
    what: str,
    message: str,
    good: dict[str, dict[str, Any]],
    bad: dict[str, Path],
    tmp_path: Path,
) -> None:
    options = {**good[tool], "out": tmp_path / "out", option: bad[what]}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    command = [sys.executable, *program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, "a bad call says one thing: nothing of TensorFlow's either"
    assert re.match(message, lines[0])
    assert files_below(tmp_path) == []


def test_good_input_ends_in_files_and_status_0(
    good: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**good["train"], "out": tmp_path / "run", "set": "stage1.max_epochs=1"}
    assert call("train", options, capsys, monkeypatch)[0] == 0
    assert (tmp_path / "run/stage1.weights.h5").is_file()
    status, out, _ = call(
        "evaluate",
        {**good["evaluate"], "run": tmp_path / "run", "out": tmp_path / "e", "encoder": "none"},
        capsys,
        monkeypatch,
    )
    assert status == 0
    assert "roc_auc" in out
    assert "The unmodified encoder was not measured." in out
    assert (tmp_path / "e/metrics.json").is_file()
    status, out, _ = call(
        "export", {**good["export"], "run": tmp_path / "run", "out": tmp_path / "m"}, capsys, monkeypatch
    )
    assert status == 0
    assert out.startswith("version 1 of query_tower, document_tower and retriever is in")
    assert (tmp_path / "m/retriever/1/saved_model.pb").is_file()
