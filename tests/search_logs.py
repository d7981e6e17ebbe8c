"""Small search logs for the tests of the funnel, and the positives that they contain."""

import csv
import gzip
import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import preloaded
import pyarrow as pa
import pyarrow.parquet as pq

TOOL = Path(__file__).parent.parent / "tools" / "build_positives.py"

FIELDS = ("user_id", "event", "timestamp", "query", "country", "document_id", "search_id")

KEYS = ("user_id", "document_id")

NOW = datetime(2026, 6, 1, tzinfo=UTC)

Row = dict[str, Any]


def at(hours: float) -> str:
    return (datetime(2026, 5, 1, 12) + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")


def row(user: str, event: str, hours: float, **cells: Any) -> Row:
    return {**dict.fromkeys(FIELDS), "user_id": user, "event": event, "timestamp": at(hours), **cells}


def chain(user: str, query: str, document: str, start: float = 0) -> list[Row]:
    """A search that leads to a reply, one hour between the steps."""
    later = [
        row(user, kind, start + hours, document_id=document)
        for hours, kind in enumerate(("click", "message", "reply"), start=1)
    ]
    return [row(user, "search", start, query=query, country="US"), *later]


LOG = [
    *chain("u1", "red sofa", "0001"),
    *chain("u2", "赤い ソファ", "0001", start=30),
    *chain("u3", 'a "quoted", query', "0002", start=40),
    *chain("u4", "red sofa", "0001", start=-5),
]

WANTED = {
    ("red sofa", "0001"): (at(-5), 2),
    ("赤い ソファ", "0001"): (at(30), 1),
    ('a "quoted", query', "0002"): (at(40), 1),
}

MESSY = [
    *LOG,
    *LOG[:3],  # replays
    row("u1", "impression", 0, document_id="0001"),
    row("u1", "Search", 0, query="q"),
    row("", "search", 0, query="q"),
    row("u1", "", 0, query="q"),
    row("u1", "search", 0, query=" \t\u3000\xa0"),
    row("u1", "click", 0),
    row("u1", "reply", 0, document_id="0001", timestamp=""),
    *(
        row("u1", "reply", 0, document_id="0001", timestamp=bad)
        for bad in ("yesterday", "20260501", "2026-13-01", "12345")
    ),
    row("u1", "reply", 10_000, document_id="0001"),
    row("u1", "search", 0, query="x" * 201),
    row("u9", "click", 0, document_id="0001"),
    row("u1", "click", 26, document_id="0002"),
    row("u1", "click", 1, document_id="0002", search_id="another's"),
    *chain("u5", "x" * 201, "0001", start=50),
    *(row("bot", "search", minutes / 60, query=f"{minutes}") for minutes in range(0, 55)),
    *chain("bot", "bot query", "0001", start=0.5),
    *chain("u6", "unlisted", "0404", start=60),
    *chain("u7", "\u3000 spaces around\t\n", "0002", start=70),
]


def big_log(folder: Path, copies: int) -> Path:
    """`copies` of `LOG`, each with different users and documents."""
    folder.mkdir()
    base = pa.table({name: pa.array([r[name] for r in LOG], pa.string()) for name in FIELDS})
    for part in range(8):
        tables = []
        for copy in range(part, copies, 8):
            own = {name: pa.array([value and f"{value}-{copy}" for value in base[name].to_pylist()]) for name in KEYS}
            tables.append(pa.table({**{name: base[name] for name in FIELDS}, **own}))
        pq.write_table(pa.concat_tables(tables), folder / f"{part}.parquet")
    return folder


def write_parquet(path: Path, rows: list[Row]) -> None:
    columns = {
        name: pa.array([r.get(name) for r in rows], pa.string()) for name in FIELDS if any(name in r for r in rows)
    }
    pq.write_table(pa.table(columns), path)


def write_text(path: Path, rows: list[Row]) -> None:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if "json" in path.name:
            file.writelines(json.dumps({k: v for k, v in r.items() if v is not None}) + "\n" for r in rows)
        elif ".tsv" in path.name:
            cells = [FIELDS, *([r[name] or "" for name in FIELDS] for r in rows)]
            file.writelines("\t".join(line) + "\n" for line in cells)
        else:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)


def write(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (write_parquet if path.suffix == ".parquet" else write_text)(path, rows)
    return path


def found_in(out: Path) -> dict[tuple[str, str], tuple[str, int]]:
    rows = pq.read_table(out).to_pylist()
    assert all(list(r) == ["query", "country", "document_id", "timestamp", "weight"] for r in rows)
    return {(r["query"], r["document_id"]): (r["timestamp"].strftime("%Y-%m-%dT%H:%M:%SZ"), r["weight"]) for r in rows}


def tool(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return preloaded.run([TOOL, *arguments])


def catalogue(tmp_path: Path) -> Path:
    path = tmp_path / "documents.tsv.gz"
    path.write_bytes(gzip.compress(b'product_id\ttitle\n0001\tsofa 5" wide\n0002\tlamp\n'))
    return path
