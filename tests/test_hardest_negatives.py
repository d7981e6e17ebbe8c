"""The benchmark that tells how many in-batch negatives are none: its truth is the generator's."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from q2s_tf.errors import InputError
from q2s_tf.simulation import make_marketplace

MADE = {"listings": 400, "users": 300}


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
    yield importlib.import_module("hardest_negatives")
    sys.path.pop(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A marketplace whose positives are the pairs that its raters found to match exactly."""
    folder = tmp_path_factory.mktemp("market")
    make_marketplace(folder, seed=1, image_dimension=8, **MADE)
    parts = [pq.read_table(folder / f"judgements_{part}.parquet") for part in ("validation", "test")]
    judged = pa.concat_tables(parts)
    exact = judged.filter(pa.compute.greater_equal(judged["relevance"], 3.0)).drop_columns("relevance")
    pq.write_table(exact, folder / "positives.parquet")
    return folder


def test_the_truth_is_what_raters_see_and_known_positives_are_masked(
    benchmark: ModuleType, run: Path, data: Path
) -> None:
    positives = pq.read_table(data / "positives.parquet").to_pylist()
    scores, grades, known, same_country = benchmark.truth(run, data, **MADE, seed=1)
    assert scores.shape == grades.shape == known.shape == same_country.shape == (len(positives), len(positives))
    assert np.abs(scores).max() < 1 + 1e-5
    pairs = {(row["query"], row["document_id"]) for row in positives}
    expected = [[(one["query"], other["document_id"]) in pairs for other in positives] for one in positives]
    np.testing.assert_array_equal(known, expected)
    documents = pq.read_table(data / "documents.parquet", columns=["document_id", "country"]).to_pylist()
    country_of = {row["document_id"]: row["country"] for row in documents}
    expected = [[one["country"] == country_of[other["document_id"]] for other in positives] for one in positives]
    np.testing.assert_array_equal(same_country, expected)
    # Each of three raters errs one time in ten: their median is off one time in forty.
    assert np.mean(np.diag(grades) == 3) > 0.9
    assert 0 < np.mean(grades[~known] == 3) < 0.2


def test_it_counts_what_is_hardest(benchmark: ModuleType) -> None:
    grades = np.array([[3, 2, 0], [1, 3, 0], [3, 0, 3]])
    scores = np.array([[9.0, 5, 1], [1, 9, 5], [5, 1, 9]])
    allowed = ~np.eye(3, dtype=bool)
    allowed[2, 0] = False  # its hardest is known: the second takes its place
    expected = [[2, 0, 1, 0], [1, 1, 0, 0]]  # rank 1: grades 2, 0, 0; rank 2: 0, 1, and none for the last row
    np.testing.assert_array_equal(benchmark.count(scores, grades, allowed, [1, 2]), expected)
    np.testing.assert_array_equal(benchmark.count(scores, grades, np.zeros_like(allowed), [1]), [[0, 0, 0, 0]])


def test_it_tells_every_batch_size_rank_and_choice_of_negatives(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, grades = np.array([[9.0, 5, 1], [1, 9, 5], [5, 1, 9]]), np.array([[3, 2, 0], [1, 3, 0], [3, 0, 3]])
    same_country = np.array([[1, 0, 1], [1, 1, 0], [1, 1, 1]], bool)
    monkeypatch.setattr(benchmark, "truth", lambda *args: (scores, grades, np.eye(3, dtype=bool), same_country))
    benchmark.main(Path("run"), Path("data"), 3, 3, 1, [3], [1])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [[cell for cell in row if cell != "│"] for row in rows] == [
        ["3", "any", "1", "33.3%", "33.3%", "0.0%", "33.3%"],  # hardest: grades 2, 0, 3
        ["3", "same", "1", "33.3%", "0.0%", "33.3%", "33.3%"],  # 0, 1, 3
    ]


def test_another_marketplace_is_refused(benchmark: ModuleType, run: Path, data: Path) -> None:
    with pytest.raises(InputError, match="was not made by --listings 400 --seed 2"):
        benchmark.truth(run, data, **MADE, seed=2)
