"""The package: light imports, the public API, the console script, extras that are missing, and the wheel alone."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from tiny_market import TinyMarket
from typer.testing import CliRunner

import q2s_tf
from q2s_tf import cli, extras
from q2s_tf.commands import COMMANDS, app
from q2s_tf.config_files import read_config

ROOT = Path(__file__).parents[1]


def python(code: str) -> str:
    """Standard output of a new Python process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_import_does_not_import_tensorflow_or_keras() -> None:
    loaded = python("import sys, q2s_tf; print(*(name for name in sys.modules if '.' not in name))").split()
    assert not {"tensorflow", "keras", "pyarrow", "sklearn"} & set(loaded)


def test_help_lists_every_command_on_one_line_without_tensorflow() -> None:
    printed = python(
        "import sys; from q2s_tf.commands import main\n"
        "sys.argv = ['q2s', '--help']\n"
        "try: main()\n"
        "except SystemExit as exit: assert not exit.code\n"
        "assert not {'tensorflow', 'keras', 'pyarrow'} & set(sys.modules)"
    )
    lines = printed.split("Commands:\n")[1].rstrip().splitlines()
    assert [line.split()[0] for line in lines] == [name(command) for command in COMMANDS]
    assert all(len(line) <= 80 and line.endswith(".") for line in lines)


def name(command: FunctionType) -> str:
    return command.__name__.replace("_", "-")


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_help_of_a_command_has_an_example(command: FunctionType) -> None:
    result = CliRunner().invoke(app, [name(command), "--help"])
    assert result.exit_code == 0
    assert f"Example: q2s {name(command)} " in " ".join(result.output.split())


def test_every_command_is_a_tool_too() -> None:
    tools = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "tools").glob("*.py")}
    for command in COMMANDS:
        assert f"from {command.__module__} import {command.__name__} as main\n" in tools.pop(command.__name__)
    assert not tools


def test_version_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["q2s", "--version"])
    with pytest.raises(SystemExit) as exit_:
        cli.run(app)
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"q2s_tf {q2s_tf.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "modules", "message"),
    [
        (["serve", "--models", "none"], ["uvicorn"], "uvicorn is not installed: pip install 'q2s_tf[server]'"),
        (["demo-app", "--documents", "none"], ["jinja2"], "jinja2 is not installed: pip install 'q2s_tf[server]'"),
        (
            ["export", "--run", "none", "--documents", "none", "--index", "scann"],
            ["scann"],
            "scann is not installed: pip install 'q2s_tf[scann]'",
        ),
        (
            ["build-positives", "--events", "none", "--out", "none.parquet", "--backend", "pyspark"],
            ["pyspark"],
            "pyspark is not installed: pip install 'q2s_tf[spark]'",
        ),
        (
            ["publish", "--uri", "catalogue.db", "--embeddings", "none"],
            ["pymilvus"],
            "pymilvus is not installed: pip install 'q2s_tf[milvus]'",
        ),
    ],
)
def test_a_missing_extra_is_one_line(
    arguments: list[str],
    modules: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "none").write_text("user_id\tevent\ttimestamp\tquery\tcountry\tdocument_id\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["q2s", *arguments])
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as exit_:
        cli.run(app)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_failed_import_names_its_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def import_plotly() -> None:
        import plotly.graph_objects  # noqa: F401

    def import_nothing() -> None:
        import no_such_module  # noqa: F401

    monkeypatch.setattr(sys, "argv", ["q2s"])
    for module in ("plotly", "plotly.graph_objects"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as exit_:
        cli.run(import_plotly)
    assert exit_.value.code == 2
    assert (
        capsys.readouterr().err == "error: the Python package plotly is not installed: pip install 'q2s_tf[report]'\n"
    )
    with pytest.raises(ModuleNotFoundError):
        cli.run(import_nothing)


def test_a_config_is_a_file_or_the_name_of_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = sorted(path.stem for path in (ROOT / "configs").glob("*.toml"))
    assert "marketplace" in shipped
    for config in shipped:
        assert read_config(q2s_tf.find_config(config)) == read_config(ROOT / "configs" / f"{config}.toml")
    for path in ("marketplace.toml", "elsewhere/marketplace", "absent"):
        assert q2s_tf.find_config(path) == Path(path)
    Path("marketplace").write_text("", encoding="utf-8")
    assert q2s_tf.find_config("marketplace") == Path("marketplace")


def test_evaluate_and_export_take_paths_as_text(market: TinyMarket, lean_run: Path, tmp_path: Path) -> None:
    documents, judgements = str(market.documents), str(market.judgements)
    evaluated, out = str(tmp_path / "evaluation"), str(tmp_path / "models")
    evaluation = q2s_tf.evaluate(str(lean_run), documents=documents, judgements=judgements, out=evaluated)
    assert evaluation.results
    assert (tmp_path / "evaluation/metrics.json").is_file()
    assert q2s_tf.export(str(lean_run), documents=documents, out=out) == 1
    assert Path(out, "retriever/1/saved_model.pb").is_file()


def test_train_takes_a_shipped_name_or_a_config_and_paths_as_text(market: TinyMarket, tmp_path: Path) -> None:
    tables = {"positives": str(market.positives), "validation": str(market.judgements), "out": str(tmp_path / "run")}
    for config in ("marketplace", str(market.config), read_config(market.config)):
        with pytest.raises(q2s_tf.InputError, match=r"absent\.tsv: there is no such file"):
            q2s_tf.train(config, documents=str(tmp_path / "absent.tsv"), **tables)
    with pytest.raises(q2s_tf.InputError, match="unknown key 'colour'"):
        q2s_tf.train("marketplace", documents=str(market.documents), overrides=["colour=red"], **tables)
    with pytest.raises(q2s_tf.InputError, match="overrides: only for a config that is read from a file"):
        q2s_tf.train(read_config(market.config), documents=str(market.documents), overrides=["seed=1"], **tables)


def test_every_public_name_can_be_imported() -> None:
    for public in q2s_tf.__all__:
        assert callable(getattr(q2s_tf, public))
    with pytest.raises(AttributeError, match="has no attribute 'Clients'"):
        q2s_tf.Clients  # noqa: B018


@pytest.mark.parametrize(
    "imports",
    [
        "import keras, q2s_tf",
        "import q2s_tf, keras",
        pytest.param("import q2s_tf, tensorflow, keras", marks=pytest.mark.slow),
    ],
)
def test_keras_knows_the_classes_after_the_import(imports: str) -> None:
    printed = python(
        f"{imports}\n"
        "import sys\n"
        "known = lambda: sorted(n for n in keras.saving.get_custom_objects() if n.startswith('q2s_tf>'))\n"
        "before = known()\n"
        "assert 'q2s_tf.models' not in sys.modules\n"
        "import q2s_tf.models\n"
        "assert before == known(), (before, known())\n"
        "assert all(isinstance(keras.saving.get_custom_objects()[n], type) for n in known())\n"
        "print(*before)"
    )
    assert printed.split() == sorted(f"q2s_tf>{each}" for each in q2s_tf.KERAS_CLASSES)


def output(*command: Any, cwd: Path) -> str:
    """Standard output of a program that must succeed; it does not find the checkout by PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = [str(part) for part in command]
    done = subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_alone(tmp_path: Path) -> None:
    """In a new environment, whose other packages are those of this one, so that nothing is downloaded."""
    source, folder = tmp_path / "source", tmp_path / "empty"
    folder.mkdir()
    for part in ("q2s_tf", "configs"):
        shutil.copytree(ROOT / part, source / part, symlinks=True)
    for part in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source)
    output(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", source, cwd=tmp_path)
    output(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    q2s, python = tmp_path / "venv/bin/q2s", tmp_path / "venv/bin/python"
    output(python, "-m", "pip", "install", "--no-deps", *tmp_path.glob("*.whl"), cwd=folder)
    (packages,) = tmp_path.glob("venv/lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    code = "import q2s_tf; print(q2s_tf.__file__, *q2s_tf.CONFIGS.glob('*.toml'), sep='\\n')"
    files = output(python, "-c", code, cwd=folder).split()
    assert len(files) == 1 + len(list((ROOT / "configs").glob("*.toml")))
    assert all(file.startswith(str(packages)) for file in files)
    assert output(q2s, "--version", cwd=folder) == f"q2s_tf {q2s_tf.__version__}\n"
    assert "make-marketplace" in output(q2s, "--help", cwd=folder)
    output(q2s, "make-marketplace", "--out", "data", "--listings", 200, cwd=folder)
    assert (folder / "data/documents.parquet").is_file()
    metadata = output(python, "-c", "import importlib.metadata as m; print(m.metadata('q2s_tf'))", cwd=folder)
    assert set(extras.EXTRAS) < set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE))
