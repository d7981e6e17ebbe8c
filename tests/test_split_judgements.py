"""Rated pairs are split into tables for training and evaluation; all rows of a query are in one part."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from own_data import write

from q2s_tf.datasets import split_judgements
from q2s_tf.errors import InputError
from q2s_tf.tables import check_judgements, open_judgements, open_positives

TOOL = Path(__file__).parents[1] / "tools" / "split_judgements.py"
PAIRS = [(f"Query {n}", "US" if n % 2 else "", f"d{n % 7}", grade) for n in range(200) for grade in ("1", "2.5")]
COLUMNS = ("query", "country", "document_id", "relevance")


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


@pytest.fixture
def judgements(tmp_path: Path) -> Path:
    path = tmp_path / "judgements.tsv"
    write(path, COLUMNS, PAIRS)
    return path


def test_every_query_is_in_one_part_and_only_right_pairs_train(judgements: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written = split_judgements(judgements, out, relevant_at=2.5)
    assert written == {path.name: len(rows(path)) for path in out.iterdir()}
    positives = rows(out / "positives.parquet")
    parts = [positives, *(rows(out / f"judgements_{part}.parquet") for part in ("validation", "test"))]
    queries = [{row["query"] for row in part} for part in parts]
    assert sum(map(len, queries)) == len(set().union(*queries)) == 200
    assert all(10 <= len(part) <= 30 for part in queries[1:])  # about a tenth each
    assert len(positives) == len(queries[0])  # of two pairs, the one graded 2.5
    wanted = {(query, country or None, name) for query, country, name, _ in PAIRS}
    assert {(row["query"], row["country"], row["document_id"]) for row in positives} <= wanted
    for part, asked in zip(parts[1:], queries[1:], strict=True):
        assert sorted(row["relevance"] for row in part) == sorted([1.0, 2.5] * len(asked))


def test_the_parts_are_tables_of_the_contract(judgements: Path, tmp_path: Path) -> None:
    split_judgements(judgements, tmp_path / "out", relevant_at=2)
    open_positives(tmp_path / "out/positives.parquet").read()
    for part in ("validation", "test"):
        assert check_judgements(open_judgements(tmp_path / f"out/judgements_{part}.parquet"))


def test_a_query_stays_in_its_part_when_the_table_grows(judgements: Path, tmp_path: Path) -> None:
    split_judgements(judgements, tmp_path / "before", relevant_at=2)
    write(judgements, COLUMNS, [*PAIRS, *((f"new {n}", "", "d1", grade) for n in range(300) for grade in (1, 3))])
    split_judgements(judgements, tmp_path / "after", relevant_at=2)
    for name in ("positives", "judgements_validation", "judgements_test"):
        before, after = (
            {row["query"] for row in rows(tmp_path / when / f"{name}.parquet")} for when in ("before", "after")
        )
        assert before == {query for query in after if not query.startswith("new")}


def test_without_grades_every_pair_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "pairs.tsv", ("query", "product_id"), [(f"q{n}", f"d{n}") for n in range(100)])
    split_judgements(tmp_path / "pairs.tsv", tmp_path / "out")
    assert "no column relevance" in capsys.readouterr().err  # it may only have another name
    for part in ("validation", "test"):
        table = open_judgements(tmp_path / f"out/judgements_{part}.parquet")
        assert not check_judgements(table)
        assert len(table.read()) > 0
    assert sum(len(rows(path)) for path in (tmp_path / "out").iterdir()) == 100


@pytest.mark.parametrize(
    ("relevant_at", "pairs", "says"),
    [
        ("9", PAIRS, "0 of its .* pairs are relevant, from 9 on"),
        ("1", PAIRS, "validation needs relevant and irrelevant pairs"),
        ("2", PAIRS[:4], "needs relevant"),
        ("2", [("sofa", "US", "d1", "good")], "relevance"),
    ],
)
def test_what_cannot_be_split_is_one_line(tmp_path: Path, relevant_at: str, pairs: list, says: str) -> None:
    write(tmp_path / "judgements.tsv", COLUMNS, pairs)
    with pytest.raises(InputError, match=says):
        split_judgements(tmp_path / "judgements.tsv", tmp_path / "out", float(relevant_at))
    assert not (tmp_path / "out").exists()


def test_the_command_line(judgements: Path, tmp_path: Path) -> None:
    command = [sys.executable, TOOL, "--judgements", judgements, "--out", tmp_path / "out", "--relevant-at"]
    done = subprocess.run([*command, "2"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "positives.parquet" in done.stdout
    done = subprocess.run([*command, "7"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: judgements {judgements}: training needs relevant pairs")
