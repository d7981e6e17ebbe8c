"""The notebooks, executed one after the other in kernels of their own, as a person would."""

import json
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, nbformat.NotebookNode]:
    """Every notebook by the number that its name begins with, after it ran; a cell that fails is an error."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_CPP_")}
    environment["Q2S_TF_NOTEBOOKS"] = str(tmp_path_factory.mktemp("notebooks"))
    notebooks = {}
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}})
        client.execute(env=environment)
        notebooks[path.name[0]] = notebook
    return notebooks


def shown(notebook: nbformat.NotebookNode) -> str:
    """The text that the cells printed and gave."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def figures(notebook: nbformat.NotebookNode) -> dict[str, list[dict[str, Any]]]:
    """The traces of each chart by its title."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            chart = output.get("data", {}).get("application/vnd.plotly.v1+json")
            if chart:
                found[chart["layout"].get("title", {}).get("text", "")] = chart["data"]
    return found


def test_four_notebooks_are_committed_without_outputs() -> None:
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3", "4"]
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        nbformat.validate(nbformat.from_dict(notebook))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert not [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None], path.name
        assert len(notebook["cells"]) - len(code) >= len(code) // 2, f"{path.name}: explains too little"


@pytest.mark.slow
def test_they_print_no_noise(executed: dict[str, nbformat.NotebookNode]) -> None:
    for number, notebook in executed.items():
        assert "\x1b[2K" not in shown(notebook), f"notebook {number}: a progress bar that moves"
        assert not [line for line in shown(notebook).splitlines() if line.startswith(("Traceback", "INFO:tensorflow"))]


@pytest.mark.slow
def test_1_looser_rules_give_more_positives_and_more_noise(executed: dict[str, nbformat.NotebookNode]) -> None:
    (trace,) = figures(executed["1"])["More positives, more of them wrong"]
    measured = dict(zip(trace["text"], zip(trace["x"], trace["y"], strict=True), strict=True))
    (answered, right), (clicked, less_right) = measured["reply, 24h"], measured["click, 24h"]
    assert clicked > 2 * answered
    assert right > 0.8 > less_right


@pytest.mark.slow
def test_2_training_is_seen_to_learn(executed: dict[str, nbformat.NotebookNode]) -> None:
    (traces,) = figures(executed["2"]).values()
    loss, recall, roc_auc = traces[::2]  # of stage 1
    assert loss["y"][0] > 1.5 * loss["y"][-1]
    assert recall["y"][0] < recall["y"][-1]
    assert max(roc_auc["y"]) > max(0.75, roc_auc["y"][0])
    values = dict(re.findall(r"│ (roc_auc|recall@100) +│ +([\d.]+) +│ +[\d.]+ +│", shown(executed["2"])))
    assert float(values["roc_auc"]) > 0.75


@pytest.mark.slow
def test_3_weights_sum_to_one_and_a_missing_channel_weighs_nothing(executed: dict[str, nbformat.NotebookNode]) -> None:
    charts = figures(executed["3"])
    by_length = next(traces for title, traces in charts.items() if title.startswith("Mean weight by length"))
    for values in zip(*(trace["y"] for trace in by_length), strict=True):
        assert values[0] is None or sum(values) == pytest.approx(1, abs=1e-3)
    (without,) = re.findall(r"│ without +│ ([\d.]+) +│ ([\d.]+) +│ ([\d.]+) +│", shown(executed["3"]))
    assert without[1] == "0.000"  # the country, which the query lacks


@pytest.mark.slow
def test_4_more_effort_finds_more_and_the_plain_stub_finds_the_same(
    executed: dict[str, nbformat.NotebookNode],
) -> None:
    (trace,) = next(traces for title, traces in figures(executed["4"]).items() if title.startswith("Effort"))
    recalls = [round(value, 2) for value in trace["y"]]
    assert recalls == sorted(recalls)
    assert recalls[-1] > recalls[0]
    printed = shown(executed["4"])
    assert re.search(r"INVALID_ARGUMENT.*country", printed)
    best = re.search(r"│ (\d\.\d{3}) │", printed)
    stub = re.search(r"array\(\[\[(\d\.\d+)", printed)
    assert best is not None and stub is not None
    assert float(stub[1]) == pytest.approx(float(best[1]), abs=1e-3)
    efforts = [int(effort) for effort in re.findall(r"^effort (\d+) ", printed, flags=re.MULTILINE)]
    assert len(efforts) == 3
    assert efforts == sorted(set(efforts))  # each page is searched for harder than the one before
    assert "exit status 0" in printed
