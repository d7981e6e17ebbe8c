"""From a log on disk to positives on disk, through the command line where it matters."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from search_logs import LOG, MESSY, NOW, TOOL, WANTED, at, big_log, catalogue, chain, found_in, row, tool, write

from q2s_tf.errors import InputError
from q2s_tf.search_log import Report, build_positives

NO_JAVA = pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java, and there is no java on the PATH")

FAULTS = {
    "unknown event": 2,
    "null key": 5,
    "unparsable timestamp": 4,
    "future timestamp": 1,
    "query too long": 2,
    "bot": 59,
    "unlisted document": 3,
    "click without a search": 3,
}


def check_messy(out: Path, report: Report) -> None:
    assert report.faults == FAULTS
    assert (report.rows, report.replays) == (len(MESSY), 3)
    assert found_in(out) == {**WANTED, ("spaces around", "0002"): (at(70), 1)}


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_what_is_left_out_is_counted_under_one_rule_each(tmp_path: Path, name: str) -> None:
    report = build_positives(
        write(tmp_path / name, MESSY), tmp_path / "out.parquet", documents=catalogue(tmp_path), now=NOW,
        max_searches_per_hour=50,
    )  # fmt: skip
    check_messy(tmp_path / "out.parquet", report)
    written = json.loads((tmp_path / "out.report.json").read_text())
    assert written["faults"] == FAULTS
    assert written["positives"] == 4
    kept = report.rows - sum(report.faults.values())
    assert sum(report.events.values()) == kept


@NO_JAVA
@pytest.mark.slow
def test_spark_writes_what_duckdb_writes(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", MESSY)
    options: dict[str, Any] = {"documents": catalogue(tmp_path), "now": NOW, "max_searches_per_hour": 50}
    report = build_positives(log, tmp_path / "spark.parquet", backend="pyspark", memory="1GB", **options)
    check_messy(tmp_path / "spark.parquet", report)
    build_positives(log, tmp_path / "duckdb.parquet", **options)
    assert pq.read_table(tmp_path / "spark.parquet").equals(pq.read_table(tmp_path / "duckdb.parquet"))
    for number, r in enumerate(LOG):
        write(tmp_path / f"tree/event={r['event']}/{number}.jsonl", [{k: v for k, v in r.items() if k != "event"}])
    build_positives(tmp_path / "tree", tmp_path / "spark.parquet", backend="pyspark", memory="1GB", now=NOW)
    assert found_in(tmp_path / "spark.parquet") == WANTED


def test_table_shows_every_count(tmp_path: Path) -> None:
    report = build_positives(write(tmp_path / "log.csv", MESSY), tmp_path / "out.parquet", now=NOW)
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report.table())
    shown = console.export_text()
    assert "unlisted document" not in shown, "no catalogue was given"
    for name in ("unknown event", "unparsable timestamp", "click without a search", "replays", "searches"):
        assert name in shown
    assert f"{len(MESSY):,}" in shown


def test_bots_are_judged_by_any_sixty_minutes(tmp_path: Path) -> None:
    minutes = range(0, 60, 6)  # 10 searches in 54 minutes, over two hours of the clock
    spread = [row("u", "search", 0.25 + minute / 60, query=str(minute)) for minute in minutes]
    log = write(tmp_path / "log.csv", [*spread, *spread, *chain("u", "q", "d", start=0.25 + 1)])
    for most, bots in ((9, 14), (10, 0)):
        report = build_positives(log, tmp_path / "out.parquet", now=NOW, max_searches_per_hour=most, allow_empty=True)
        assert bool(report.faults["bot"]) == bool(bots), most


def test_last_days_are_kept_for_validation(tmp_path: Path) -> None:
    rows = [r for day in range(10) for r in chain(f"u{day}", f"q{day}", "d", start=24 * day)]
    rows += chain("again", "q0", "d", start=24 * 9)
    log = write(tmp_path / "log.parquet", rows)
    out, held_out = tmp_path / "train.parquet", tmp_path / "elsewhere" / "validation.parquet"
    report = build_positives(log, out, now=NOW, validation_days=3, validation_out=held_out)
    assert {query for query, _ in found_in(held_out)} == {"q7", "q8", "q9"}
    assert {query for query, _ in found_in(out)} == {f"q{day}" for day in range(7)}
    assert found_in(out)["q0", "d"] == (at(0), 2), "seen again later, but first seen, and so trained on, early"
    assert (report.positives, report.validation) == (10, 3)


def test_strict_refuses_what_would_be_left_out(tmp_path: Path) -> None:
    out = tmp_path / "out" / "positives.parquet"
    done = tool("--events", write(tmp_path / "messy.csv", MESSY), "--out", out, "--strict", "--now", "2026-06-01")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error:")
    assert "unknown event: 2, null key: 5, unparsable timestamp: 4" in last
    assert list(out.parent.iterdir()) == []
    done = tool("--events", write(tmp_path / "clean.csv", LOG), "--out", out, "--strict", "--now", "2026-06-01")
    assert done.returncode == 0, done.stderr
    assert "positives" in done.stdout
    assert found_in(out) == WANTED


def test_tsv_has_no_quotes_and_one_line_a_positive(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", [*LOG, *chain("u8", "two\nlines", "d")])
    build_positives(log, tmp_path / "out.tsv.gz", now=NOW)
    with gzip.open(tmp_path / "out.tsv.gz", "rt", encoding="utf-8") as file:
        lines = [line.rstrip("\n").split("\t") for line in file]
    assert lines[0] == ["query", "country", "document_id", "timestamp", "weight"]
    assert lines[1] == ["red sofa", "US", "0001", "2026-05-01T07:00:00.000000Z", "2"]
    assert sorted(line[0] for line in lines[2:]) == sorted(["two lines", "赤い ソファ", 'a "quoted", query'])


def test_no_positive_is_an_error_unless_it_is_allowed(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", [])
    with pytest.raises(InputError, match=r"no positive was found \(no rows\)"):
        build_positives(log, tmp_path / "out.parquet", now=NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
    report = build_positives(log, tmp_path / "out.parquet", now=NOW, allow_empty=True)
    assert found_in(tmp_path / "out.parquet") == {}
    assert report.rows == 0


# Stops at each step, and before each output is put in place, until a line comes in.
PAUSING = """
import os, sys
from datetime import UTC, datetime
from q2s_tf.search_log import build_positives

def pause(moment):
    print(moment, flush=True)
    sys.stdin.readline()

def pausing_replace(source, target, replace=os.replace):
    pause(os.path.basename(target))
    replace(source, target)

os.replace = pausing_replace
build_positives(*sys.argv[1:], now=datetime(2026, 6, 1, tzinfo=UTC), announce=pause)
"""


@pytest.mark.parametrize("moment", ["running the funnel", "writing the positives", "p.report.json", "p.parquet"])
def test_killed_run_leaves_no_partial_output_and_the_next_one_works(tmp_path: Path, moment: str) -> None:
    log, out = write(tmp_path / "log.csv", LOG), tmp_path / "out" / "p.parquet"
    command = [sys.executable, "-c", PAUSING, str(log), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        while process.stdout.readline().strip() not in (moment, ""):
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.poll() is None, "the run ended before this moment"
        process.kill()
    assert not out.exists()
    build_positives(log, out, now=NOW)
    assert sorted(path.name for path in out.parent.iterdir()) == ["p.parquet", "p.report.json"]
    assert found_in(out) == WANTED


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    log, out = write(tmp_path / "log.csv", LOG), tmp_path / "p.parquet"
    steps = []

    def second_run(step: str) -> None:
        steps.append(step)
        with pytest.raises(InputError, match="another process is writing it"):
            build_positives(log, out, now=NOW)

    build_positives(log, out, now=NOW, announce=second_run)
    assert len(steps) == 4
    assert found_in(out) == WANTED


def test_little_memory_is_enough(tmp_path: Path) -> None:
    log = big_log(tmp_path / "log", copies=8000)
    report = build_positives(log, tmp_path / "p.parquet", memory="100MB", now=NOW)
    assert report.weight == 8000 * 4


def test_a_log_of_another_catalogue_shows_an_id_of_each_side(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", chain("u", "q", "sku-7"))
    with pytest.raises(InputError, match=r"unlisted document: 3.*the log has document_id 'sku-7' and .* '0001': are"):
        build_positives(log, tmp_path / "out.parquet", now=NOW, documents=catalogue(tmp_path))
    assert not (tmp_path / "out.parquet").exists()


def test_tool_on_a_glob_with_every_option(tmp_path: Path) -> None:
    for number, r in enumerate(LOG):
        write(tmp_path / f"log/{number}.jsonl", [r])
    done = tool(
        "--events", tmp_path / "log/*.jsonl", "--out", tmp_path / "p.tsv", "--window", "3h", "--require", "message",
        "--documents", catalogue(tmp_path), "--validation-days", 1, "--validation-out", tmp_path / "v.parquet",
        "--memory", "500MB", "--max-searches-per-hour", 5, "--max-query-length", 100, "--now", "2026-06-01T00:00:00",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "p.report.json").read_text())["settings"]
    assert settings["window_seconds"] == 3 * 3600
    assert settings["require"] == "message"
    assert len(found_in(tmp_path / "v.parquet")) + len((tmp_path / "p.tsv").read_text().splitlines()) - 1 == 3


def test_benchmark_finds_what_pandas_finds(tmp_path: Path) -> None:
    """The benchmark on small logs: its pandas jobs find the same positives."""
    tool_path = TOOL.parent.parent / "benchmarks" / "funnel.py"
    options = ["--sizes", "2000,20000", "--pandas-size", "20000", "--repeats", "1", "--out", tmp_path / "result.json"]
    done = subprocess.run(
        [str(part) for part in (sys.executable, tool_path, *options)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    found = {(run["job"], run["events"]): run["positives"] for run in result["runs"]}
    assert found["funnel", 20000] == found["pandas, merges", 20000] == found["pandas, as-of", 20000] > 100
    assert {"cost_per_event_ratio", "times_faster_than_pandas"} <= set(result)
