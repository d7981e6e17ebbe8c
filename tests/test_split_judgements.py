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
    assert [len(part) for part in queries] == [160, 20, 20], "a tenth each, exactly"
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


def test_the_parts_do_not_depend_on_the_order_or_the_case_of_the_rows(judgements: Path, tmp_path: Path) -> None:
    split_judgements(judgements, tmp_path / "before", relevant_at=2)
    write(judgements, COLUMNS, [(query.upper(), *rest) for query, *rest in reversed(PAIRS)])
    split_judgements(judgements, tmp_path / "after", relevant_at=2)
    for name in ("positives", "judgements_validation", "judgements_test"):
        before, after = (
            {row["query"].lower() for row in rows(tmp_path / when / f"{name}.parquet")} for when in ("before", "after")
        )
        assert before == after


def test_what_is_left_out_and_what_is_small_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = [(" \u3000", "US", "d1", 1), PAIRS[0], (PAIRS[0][0], "US", "d1", "")]
    write(tmp_path / "judgements.tsv", COLUMNS, [*PAIRS, *extra])
    written = split_judgements(tmp_path / "judgements.tsv", tmp_path / "out", relevant_at=2)
    said = " ".join(capsys.readouterr().err.split())
    assert "left out 2 of 403 judgements: a cell is empty" in said
    assert "left out 1 of 403 judgements: repeated" in said
    assert "200 queries: 160 for training, 20 for validation, 20 for test" in said
    assert "validation has 20 queries, too few to decide" in said
    assert written["judgements_validation.parquet"] == 40


def test_a_grade_is_given_and_there_is_none(tmp_path: Path) -> None:
    write(tmp_path / "judgements.tsv", ("query", "document_id", "grade"), [("a", "d1", 3)])
    with pytest.raises(InputError, match="grade of 3 is given, but there is no column relevance; it has query, docum"):
        split_judgements(tmp_path / "judgements.tsv", tmp_path / "out", relevant_at=3)


def test_an_earlier_split_and_a_file_are_kept(judgements: Path, tmp_path: Path) -> None:
    split_judgements(judgements, tmp_path / "out", relevant_at=2)
    before = (tmp_path / "out/positives.parquet").read_bytes()
    with pytest.raises(InputError, match=r"has an earlier positives\.parquet: give another --out, or --overwrite"):
        split_judgements(judgements, tmp_path / "out", relevant_at=1.5)
    assert (tmp_path / "out/positives.parquet").read_bytes() == before
    split_judgements(judgements, tmp_path / "out", relevant_at=1.5, overwrite=True)
    with pytest.raises(InputError, match=r"judgements\.tsv: cannot be a folder for output"):
        split_judgements(judgements, judgements, relevant_at=2)


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
    done = subprocess.run([*command, "7", "--overwrite"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: judgements {judgements}: training needs relevant pairs")
