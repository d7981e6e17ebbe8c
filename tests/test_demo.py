"""The demo: all commands one after the other on a small marketplace, with real processes and a port; and in part."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from q2s_tf.demo import demo
from q2s_tf.errors import InputError

pytestmark = pytest.mark.timeout(1800)
SMALL = """
dimension = 32
[evaluation]
relevant_at = 3
[tokenizer]
vocabulary_size = 1500
[encoders.query]
num_layers = 1
hidden_dim = 32
intermediate_dim = 64
[channels.query_trigrams]
tower = "query"
kind = "trigrams"
input = "query"
buckets = 5000
[channels.query_text]
tower = "query"
kind = "text"
input = "query"
encoder = "query"
[channels.title_trigrams]
tower = "document"
kind = "trigrams"
input = "title"
buckets = 5000
[channels.images]
tower = "document"
kind = "vectors"
input = "image_embeddings"
dimension = 64
[stage1]
max_epochs = 4
batch_size = 128
learning_rate = 2e-3
[stage2]
max_epochs = 0
"""


RUN_PRELOADED = f"""
import subprocess, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import preloaded

def run(command, check):
    done = preloaded.run(command[1:])
    print(done.stdout, flush=True)
    assert done.returncode == 0, done.stderr[-3000:]

subprocess.run = run
from q2s_tf.commands import main
main()
"""
"""`q2s` with steps in processes that have TensorFlow imported; the server is a program as users start it."""


def run_demo(folder: Path, program: list[str]) -> tuple[Path, str]:
    """The demo's folder, and what it printed."""
    (folder / "small.toml").write_text(SMALL, encoding="utf-8")
    out = folder / "demo"
    options = ["--out", str(out), "--config", str(folder / "small.toml"), "--listings", "400"]
    done = subprocess.run([sys.executable, *program, "demo", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stdout


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return run_demo(tmp_path_factory.mktemp("demo"), ["-c", RUN_PRELOADED])


@pytest.mark.slow
def test_it_runs_as_users_start_it(tmp_path: Path) -> None:
    """Each step in a process that imports TensorFlow itself; otherwise as the run of the tests below."""
    _, printed = run_demo(tmp_path, ["-m", "q2s_tf"])
    assert "Done in" in printed


def test_ten_results_with_titles_and_scores_for_three_queries(shown: tuple[Path, str]) -> None:
    _, printed = shown
    answers = printed[printed.index("serving ") :]
    for query in ("red sofa", "sofá rojo", "赤いソファ"):
        assert query in answers
    ranked = re.findall(r"^\W*(\d+)\W+(-?\d\.\d+)", answers, flags=re.MULTILINE)
    assert [int(rank) for rank, _ in ranked] == list(range(1, 11)) * 3
    scores = [float(score) for _, score in ranked]
    assert all(scores[at] >= scores[at + 1] for at in range(len(scores) - 1) if at % 10 != 9)
    for channel in ("query_trigrams", "query_text"):
        assert answers.count(channel) >= 3


def test_everything_is_where_it_says(shown: tuple[Path, str]) -> None:
    out, printed = shown
    for name in ("data/documents.parquet", "data/positives.parquet", "data/positives.report.json", "run/config.toml",
                 "run/tokenizer.model", "run/stage1.weights.h5", "run/metrics.jsonl",
                 "run/evaluation/metrics.json", "run/evaluation/report.html",
                 "saved_models/retriever/1/saved_model.pb"):  # fmt: skip
        assert (out / name).is_file(), name
    assert str(out) in printed
    what_next = printed.rsplit("Start the server", 1)[1]
    assert all(f"q2s {command} --" in what_next for command in ("serve", "demo-app"))
    assert 'q2s query "blue jacket" --country US' in what_next.replace("'", '"')


def test_it_learned(shown: tuple[Path, str]) -> None:
    out, _ = shown
    systems = json.loads((out / "run/evaluation/metrics.json").read_text(encoding="utf-8"))["systems"]
    assert systems["q2s_tf"]["roc_auc"]["value"] > 0.7
    assert 0 < systems["BM25"]["recall@100"]["value"] <= 1


def test_without_extras_it_does_the_rest_and_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[str] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command[3]))
    for module in ("starlette", "plotly"):
        monkeypatch.setitem(sys.modules, module, None)
    demo(tmp_path / "demo", "marketplace", 400, 1)
    assert commands == ["make-marketplace", "build-positives", "train", "export", "evaluate"]
    printed = capsys.readouterr().out
    assert "starlette is not installed: pip install 'q2s_tf[server]'" in printed
    assert "evaluation/metrics.json" in printed
    assert "report.html" not in printed


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="holds other files"):
        demo(tmp_path, "marketplace", 400, 1)
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "mine"
