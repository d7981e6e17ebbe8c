"""Logs of every format and layout give the same positives; what cannot be read is one clear line."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from search_logs import FIELDS, LOG, NOW, WANTED, chain, found_in, tool, write

from q2s_tf.errors import InputError
from q2s_tf.search_log import build_positives


@pytest.mark.parametrize(
    "name",
    ["log.parquet", "log.csv", "log.csv.gz", "log.tsv", "log.tsv.gz", "log.jsonl", "log.json.gz", "log.ndjson"],
)
def test_every_format_gives_the_same(tmp_path: Path, name: str) -> None:
    report = build_positives(write(tmp_path / name, LOG), tmp_path / "out.parquet", now=NOW)
    assert found_in(tmp_path / "out.parquet") == WANTED
    assert (report.rows, report.positives, report.weight, sum(report.faults.values())) == (16, 3, 4, 0)


def test_folder_glob_and_partitioned_tree_give_the_same(tmp_path: Path) -> None:
    for number, r in enumerate(LOG):
        write(tmp_path / f"folder/deep/part-{number % 3}/{number}.csv.gz", [r])
        partition = {name: value for name, value in r.items() if name not in ("event", "country")}
        write(tmp_path / f"tree/event={r['event']}/country={r['country'] or ''}/{number}.parquet", [partition])
    (tmp_path / "folder/_SUCCESS").touch()
    for name in ("read me.md", "notes.txt", "_temporary/0/part.csv.gz", ".hidden/part.csv.gz"):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes((tmp_path / "folder/deep/part-0/0.csv.gz").read_bytes())
    for path in ("folder", "folder/deep/*/*.csv.gz", "folder/**/*.gz", "folder/deep/part-?", "tree"):
        build_positives(tmp_path / path, tmp_path / "out.parquet", now=NOW)
        assert found_in(tmp_path / "out.parquet") == WANTED, path


def test_files_without_search_id_beside_files_with_it(tmp_path: Path) -> None:
    write(tmp_path / "log/a.parquet", LOG[:8])
    write(tmp_path / "log/b.parquet", [{k: v for k, v in r.items() if k != "search_id"} for r in LOG[8:]])
    build_positives(tmp_path / "log", tmp_path / "out.parquet", now=NOW)
    assert found_in(tmp_path / "out.parquet") == WANTED


@pytest.mark.parametrize("name", ["log.parquet", "log.jsonl"])
def test_log_without_countries(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, [{k: v for k, v in r.items() if k != "country"} for r in LOG])
    build_positives(tmp_path / name, tmp_path / "out.parquet", now=NOW)
    assert found_in(tmp_path / "out.parquet") == WANTED
    assert pq.read_table(tmp_path / "out.parquet")["country"].to_pylist() == [None] * 3


def test_columns_of_nothing_but_nulls(tmp_path: Path) -> None:
    columns = {name: pa.array([r[name] for r in LOG], pa.string()) for name in FIELDS}
    columns["search_id"] = columns["country"] = pa.nulls(len(LOG))
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    build_positives(tmp_path / "log.parquet", tmp_path / "out.parquet", now=NOW)
    assert found_in(tmp_path / "out.parquet") == WANTED
    assert pq.read_table(tmp_path / "out.parquet")["country"].to_pylist() == [None] * 3


def test_broken_line_of_csv_is_named(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", LOG)
    log.write_text(log.read_text() + "u,click,2026-05-01,,,d,,one,too,many\n")
    with pytest.raises(InputError, match=r"log\.csv: cannot be read: .*Row #18"):
        build_positives(log, tmp_path / "out.parquet", now=NOW)
    assert not (tmp_path / "out.parquet").exists()


def test_product_id_and_numbers_as_ids(tmp_path: Path) -> None:
    rows = [
        {**r, "user_id": int(r["user_id"][1:]), "product_id": r["document_id"] and int(r["document_id"])} for r in LOG
    ]
    for r in rows:
        del r["document_id"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    build_positives(tmp_path / "log.parquet", tmp_path / "out.parquet", now=NOW)
    assert set(found_in(tmp_path / "out.parquet")) == {(query, document.lstrip("0")) for query, document in WANTED}


INSTANT = datetime(2026, 5, 1, 12, 0, 0, 250000, tzinfo=UTC)


EPOCH = int(INSTANT.timestamp() * 1000) * 1000


@pytest.mark.parametrize(
    "values",
    [
        pa.array([INSTANT], pa.timestamp("us", "UTC")),
        pa.array([INSTANT], pa.timestamp("ns", "America/New_York")),
        pa.array([INSTANT.replace(tzinfo=None)], pa.timestamp("ms")),
        pa.array([EPOCH], pa.int64()),
        pa.array([EPOCH // 1000], pa.int64()),
        pa.array([EPOCH * 1000], pa.int64()),
        pa.array([EPOCH / 1e6], pa.float64()),
        pa.array([EPOCH / 1e3], pa.float64()),
        pa.array(["2026-05-01T12:00:00.25Z"]),
        pa.array(["2026-05-01 12:00:00.250000"]),
        pa.array(["2026-05-01T14:00:00.25+02:00"]),
        pa.array(["2026-05-01T06:30:00.250000000-0530"]),
        pa.array(["2026-05-01 15:00:00.25+03"]),
        pa.array([str(EPOCH)]),
        pa.array([f"{EPOCH / 1e6:.2f}"]),
    ],
    ids=str,
)
def test_timestamps_of_every_kind_are_one_instant(tmp_path: Path, values: pa.Array) -> None:
    rows = chain("u", "q", "d")
    columns = {name: pa.array([r[name] for r in rows], pa.string()) for name in FIELDS}
    columns["timestamp"] = pa.concat_arrays([values] * 4)
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    build_positives(tmp_path / "log.parquet", tmp_path / "out.parquet", now=NOW)
    assert pq.read_table(tmp_path / "out.parquet")["timestamp"].to_pylist() == [INSTANT]


def bad_inputs(folder: Path) -> dict[str, tuple[list[Any], str]]:
    log = write(folder / "log.csv", LOG)
    (folder / "latin.csv").write_bytes((",".join(FIELDS) + "\nu,search,2026-05-01,sofá,ES,,\n").encode("latin-1"))
    pq.write_table(pa.table({"user_id": ["u"], "event": ["search"]}), folder / "narrow.parquet")
    (folder / "broken.parquet").write_bytes(b"PAR1 not really")
    (folder / "empty").mkdir()
    (folder / "mixed").mkdir()
    write(folder / "mixed/a.csv", LOG)
    write(folder / "mixed/b.parquet", LOG)
    pq.write_table(
        pa.table({name: [True] if name == "timestamp" else ["x"] for name in FIELDS}), folder / "bool.parquet"
    )
    (folder / "log.xls").touch()
    return {
        "missing": (
            [folder / "none.parquet"],
            "there is no such file; give a file, folder or glob of Parquet (.parquet), TSV (.tsv)",
        ),
        "columns": (
            [folder / "narrow.parquet"],
            "needs the column timestamp, query, document_id; it has user_id, event",
        ),
        "latin": ([folder / "latin.csv"], "latin.csv: must be UTF-8 and is not"),
        "broken": ([folder / "broken.parquet"], "broken.parquet: cannot be read"),
        "empty": ([folder / "empty"], "nothing in it can be read"),
        "mixed": ([folder / "mixed"], "one table must be in one format; found csv and parquet"),
        "bool": ([folder / "bool.parquet"], "column timestamp must hold"),
        "suffix": ([folder / "log.xls"], "its name ends in no known format"),
        "window": ([log, "--window", "day"], "a time span is a whole number"),
        "memory": ([log, "--memory", "much"], "memory must be an amount"),
        "split": ([log, "--validation-days", "2"], "--validation-days (1 or more) and --validation-out together"),
        "rule": ([log, "--require", "sale"], "--require"),
        "catalogue": ([log, "--documents", folder / "narrow.parquet"], "needs the column document_id"),
        "output": ([log, "--out", folder / "out.xlsx"], "must end in one of .parquet, .tsv, .tsv.gz"),
        "folder": ([log, "--out", folder / "log.csv" / "out.parquet"], "cannot be a folder for output"),
    }


BAD = ("missing", "columns", "latin", "broken", "empty", "mixed", "bool", "suffix", "window", "memory", "split", "rule",
       "catalogue", "output", "folder")  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(tmp_path: Path, case: str) -> None:
    (events, *options), message = bad_inputs(tmp_path)[case]
    done = tool("--out", tmp_path / "out/p.parquet", "--events", events, *options)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
