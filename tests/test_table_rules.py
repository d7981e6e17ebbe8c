"""The rules that hold for every table of the contract, in every format: what is read, and what is refused."""

import csv
import gzip
import io
import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from q2s_tf.errors import InputError
from q2s_tf.tables import (
    Table,
    check_judgements,
    open_documents,
    open_events,
    open_judgements,
    open_positives,
    read_deletions,
)

HEADERS = {
    "documents": ["document_id", "title"],
    "positives": ["document_id", "query"],
    "judgements": ["document_id", "query", "relevance"],
    "events": ["document_id", "user_id", "event", "timestamp", "query"],
}
CELLS = {"title": "a", "query": "a", "relevance": 2, "user_id": "u", "event": "search", "timestamp": "2026-05-01"}
OPEN: dict[str, Callable[[Path], Table]] = {
    "documents": open_documents,
    "positives": open_positives,
    "judgements": open_judgements,
    "events": open_events,
}
KINDS = pytest.mark.parametrize("kind", OPEN)


def row(kind: str, document_id: Any, **cells: Any) -> dict[str, Any]:
    return {"document_id": document_id, **{name: CELLS[name] for name in HEADERS[kind][1:]}, **cells}


def text_of(rows: list[dict[str, Any]], delimiter: str = "\t") -> str:
    lines = [list(rows[0]), *(["" if cell is None else str(cell) for cell in row.values()] for row in rows)]
    return "".join(delimiter.join(line) + "\n" for line in lines)


def ids(table: Table) -> list[str | None]:
    return table.read()["document_id"].to_pylist()


def refusal(table: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as raised:
        table()
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- which files


@KINDS
def test_hidden_files_are_no_part_of_any_table(kind: str, tmp_path: Path) -> None:
    for name in ("a.tsv", "_temporary/0/a.tsv", ".ipynb_checkpoints/a.tsv", "._a.tsv", "deep/_b.tsv", "x.report.json"):
        (tmp_path / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "t" / name).write_text(text_of([row(kind, "1")]))
    assert ids(OPEN[kind](tmp_path / "t")) == ["1"]


@KINDS
def test_a_path_is_a_path_before_it_is_a_pattern(kind: str, tmp_path: Path) -> None:
    for name, document_id in (
        ("t[1].tsv", "right"),
        ("t1.tsv", "wrong"),
        ("d[1]/t.tsv", "in folder"),
        ("d1/t.tsv", "no"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text_of([row(kind, document_id)]))
    assert ids(OPEN[kind](tmp_path / "t[1].tsv")) == ["right"]
    assert ids(OPEN[kind](tmp_path / "d[1]/*.tsv")) == ["in folder"]
    assert ids(OPEN[kind](tmp_path / "t[1].ts?")) == ["wrong"]


# --- encodings and form of text


@KINDS
@pytest.mark.parametrize("name", ["t.tsv", "t.csv", "t.tsv.gz", "t.csv.gz"])
def test_a_byte_order_mark_and_crlf_are_dropped(kind: str, name: str, tmp_path: Path) -> None:
    text = text_of([row(kind, "ä1"), row(kind, "2")], "\t" if "tsv" in name else ",").replace("\n", "\r\n")
    content = b"\xef\xbb\xbf" + text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert ids(OPEN[kind](tmp_path / name)) == ["ä1", "2"]


@KINDS
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", ["t.tsv", "t.csv", "t.jsonl"])
def test_other_encodings_are_refused(kind: str, encoding: str, name: str, tmp_path: Path) -> None:
    rows = [row(kind, "1"), row(kind, "é")]
    lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
    text = lines if name == "t.jsonl" else text_of(rows, "\t" if name == "t.tsv" else ",")
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert f"{name}" in (message := refusal(lambda: OPEN[kind](tmp_path / name)))
    assert "save it as UTF-8" in message


@KINDS
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "must have distinct column names"),
        ("{header}\n", "it has no rows"),
        ("{header}\n{row}\textra\n", "cannot be read: CSV parse error"),
        ("{header}\n1\n", "cannot be read: CSV parse error"),
        ("{header}\n1\0{row}\n", "line 2 has a NUL byte"),
        ("{header}\tquery\tquery\n", "must have distinct column names"),
        ("{header}\tproduct_id\n{row}\t1\n", "two names of one column"),
        ("title2\n1\n", "needs the column"),
    ],
)
def test_what_is_no_table_is_one_line(kind: str, content: str, says: str, tmp_path: Path) -> None:
    cells = "\t".join(map(str, row(kind, "1").values()))
    (tmp_path / "t.tsv").write_text(content.format(header="\t".join(HEADERS[kind]), row=cells))
    message = refusal(lambda: OPEN[kind](tmp_path / "t.tsv").read())
    assert says in message
    assert "t.tsv" in message


# --- quotes


QUOTED = ['24" monitor', 'the "best" sofa', "two\tcells", "two\nlines", "plain", '"']


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_a_tsv_that_pandas_wrote_with_quotes_is_read_right(quoting: int, tmp_path: Path) -> None:
    frame = pd.DataFrame({"document_id": [f"d{n}" for n in range(len(QUOTED))], "title": QUOTED})
    frame.to_csv(tmp_path / "t.tsv", sep="\t", index=False, quoting=quoting)  # type: ignore[call-overload]
    assert open_documents(tmp_path / "t.tsv").read()["title"].to_pylist() == QUOTED


def test_quotes_of_a_plain_tsv_are_text(tmp_path: Path) -> None:
    titles = ['24" monitor', '"phrase query"', '"Rough" plywood 5/8"', '"', '"unfinished', "a, b", '"a, b"']
    (tmp_path / "t.tsv").write_text(text_of([row("documents", str(n), title=title) for n, title in enumerate(titles)]))
    assert open_documents(tmp_path / "t.tsv").read()["title"].to_pylist() == titles


def test_quotes_of_a_spreadsheet_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('document_id\ttitle\n1\t"red, large"\n2\tsofa\n')
    assert open_documents(tmp_path / "t.tsv").read()["title"].to_pylist() == ["red, large", "sofa"]


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (['"24"" monitor"', '24" monitor'], "line 2 is quoted as in CSV, but line 3 has a plain quote"),
        ([r'"24\" monitor"', "b"], "line 2: quotes are escaped by backslashes"),
    ],
)
def test_quotes_of_two_kinds_are_refused_with_the_remedy(cells: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text(text_of([row("documents", str(n), title=cell) for n, cell in enumerate(cells)]))
    assert says in (message := refusal(lambda: open_documents(tmp_path / "t.tsv")))
    assert "write Parquet" in message


# --- ids


@KINDS
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([101.0, None]), ["101", None]),
        (pa.array([101, 7], pa.uint8()), ["101", "7"]),
        (pa.array([Decimal("101.00"), Decimal("7")]), ["101", "7"]),
        (pa.array(["101.0", "x"]).dictionary_encode(), ["101", "x"]),
        (pa.array(["101", "x"], pa.string_view()), ["101", "x"]),
        (pa.array([b"101", b"x"], pa.binary()), ["101", "x"]),
        (pa.array([uuid.UUID(int=7).bytes] * 2, pa.binary(16)), [str(uuid.UUID(int=7))] * 2),
        (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([uuid.UUID(int=7).bytes, None], pa.binary(16))),
         [str(uuid.UUID(int=7)), None]),
        (pa.array(["1.5", "2"]), ["1.5", "2"]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)  # fmt: skip
def test_ids_of_every_type_are_text(kind: str, values: pa.Array, expected: list[str], tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row(kind, "")] * 2).drop_columns("document_id").append_column("document_id", values)
    pq.write_table(table, tmp_path / "t.parquet")
    assert ids(OPEN[kind](tmp_path / "t.parquet")) == expected


@KINDS
@pytest.mark.parametrize("name", ["t.tsv", "t.csv", "t.jsonl", "t.parquet"])
def test_whole_numbers_of_pandas_are_ids(kind: str, name: str, tmp_path: Path) -> None:
    """A column of ids with a missing one is a column of floats in pandas: 101.0."""
    frame = pd.DataFrame([row(kind, 101), row(kind, None), row(kind, 7)])
    write = {
        "t.tsv": lambda path: frame.to_csv(path, sep="\t", index=False),
        "t.csv": lambda path: frame.to_csv(path, index=False),
        "t.jsonl": lambda path: frame.to_json(path, orient="records", lines=True),
        "t.parquet": frame.to_parquet,
    }
    write[name](tmp_path / name)
    assert ids(OPEN[kind](tmp_path / name)) == ["101", None, "7"]


@KINDS
@pytest.mark.parametrize("name", ["t.tsv", "t.csv", "t.jsonl", "t.parquet"])
def test_a_fraction_is_no_id(kind: str, name: str, tmp_path: Path) -> None:
    rows = [row(kind, 101.0), row(kind, 7.5)]
    if name == "t.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    elif name == "t.jsonl":
        (tmp_path / name).write_text("".join(json.dumps(each) + "\n" for each in rows))
    else:  # a cell of these formats is text, which may be a product number
        (tmp_path / name).write_text(text_of(rows, "\t" if name == "t.tsv" else ","))
        assert ids(OPEN[kind](tmp_path / name)) == ["101", "7.5"]
        return
    message = refusal(lambda: OPEN[kind](tmp_path / name).read())
    assert f"{name}: row 2, column document_id must be text or whole numbers" in message
    assert "7.5" in message


def test_a_float_that_has_lost_digits_is_no_id(tmp_path: Path) -> None:
    pq.write_table(pa.table({"document_id": [1.0, 2.0**60], "title": ["a", "b"]}), tmp_path / "t.parquet")
    assert "row 2, column document_id must be text" in refusal(lambda: open_documents(tmp_path / "t.parquet").read())


@KINDS
def test_files_of_one_table_may_have_columns_of_different_types(kind: str, tmp_path: Path) -> None:
    columns: list[pa.Array] = [
        pa.array(["1"]), pa.array(["1"]).dictionary_encode(), pa.array([1], pa.int8()), pa.array([1.0]), pa.nulls(1),
    ]  # fmt: skip
    for number, column in enumerate(columns):
        table = pa.Table.from_pylist([row(kind, "")]).drop_columns("document_id")
        pq.write_table(table.append_column("document_id", column), tmp_path / f"{number}.parquet")
    assert ids(OPEN[kind](tmp_path)) == ["1", "1", "1", "1", None]
    pq.write_table(table.append_column("document_id", pa.array([[1]])), tmp_path / "5.parquet")
    message = refusal(lambda: OPEN[kind](tmp_path).read())
    assert "5.parquet: column document_id must be text or whole numbers; it is list<" in message


def test_partitions_may_be_null_encoded_and_beside_columns(tmp_path: Path) -> None:
    for folder in ("country=US", "country=__HIVE_DEFAULT_PARTITION__", "country=C%C3%B4te%20d", "other"):
        (tmp_path / "t" / folder).mkdir(parents=True)
        columns: dict[str, Any] = {"query": ["q"], "document_id": ["1"], "relevance": [1]}
        if folder == "other":
            columns["country"] = pa.array(["JP"]).dictionary_encode()
        pq.write_table(pa.table(columns), tmp_path / "t" / folder / "0.parquet")
    read = open_judgements(tmp_path / "t").read()["country"].to_pylist()
    assert sorted(map(str, read)) == ["Côte d", "JP", "None", "US"]


# --- times


MOMENT = datetime(2026, 5, 1, 12, 0, 0, 250000, tzinfo=UTC)
MICROSECONDS = int(MOMENT.timestamp() * 1000) * 1000
NAIVE = MOMENT.replace(tzinfo=None)
TIMES: list[pa.Array] = [
    *(pa.array([MICROSECONDS // 1000 * scale]) for scale in (1, 1000, 10**6)),
    *(pa.array([MICROSECONDS * scale]) for scale in (1e-6, 1e-3, 1.0, 1e3)),
    *(pa.array([str(MICROSECONDS // 1000 * scale)]) for scale in (1, 1000, 10**6)),
    pa.array([f"{MICROSECONDS / 1e6:.2f}"]),
    *(pa.array([NAIVE], pa.timestamp(unit)) for unit in ("ms", "us", "ns")),
    *(pa.array([MOMENT], pa.timestamp(unit, zone)) for unit in ("ms", "us", "ns") for zone in ("UTC", "Asia/Tokyo")),
    *(pa.array([text]) for text in (
        "2026-05-01T12:00:00.25Z", "2026-05-01 12:00:00.250", "2026-05-01T14:00:00,25+02:00",
        "2026-05-01T06:30:00.250000000-0530", "2026-05-01 15:00:00.25 +03", "2026-05-01 12:00:00.250000+00:00",
    )),
    pa.array(["2026-05-01T12:00:00.25Z"]).dictionary_encode(),
    pa.array(["2026-05-01T12:00:00.25Z"], pa.large_string()),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["positives", "judgements", "events"])
def test_times_of_every_unit_and_form_are_one_instant(kind: str, tmp_path: Path) -> None:
    for number, values in enumerate(TIMES):
        table = pa.Table.from_pylist([row(kind, "1", timestamp=None)]).drop_columns("timestamp")
        pq.write_table(table.append_column("timestamp", values), tmp_path / f"{number:02}.parquet")
    assert OPEN[kind](tmp_path).read()["timestamp"].to_pylist() == [MOMENT] * len(TIMES)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (pa.array([NAIVE.date()]), NAIVE.date()),
        (pa.array(["2026-05-01"]), NAIVE.date()),
        (pa.array([None, 1e9])[:1], None),
    ],
)
def test_a_date_is_its_midnight_and_nothing_is_missing(value: pa.Array, expected: Any, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row("positives", "1")]).append_column("timestamp", value)
    pq.write_table(table, tmp_path / "t.parquet")
    read = open_positives(tmp_path / "t.parquet").read()["timestamp"][0].as_py()
    assert read == (expected and datetime(expected.year, expected.month, expected.day, tzinfo=UTC))


@pytest.mark.parametrize("value", ["yesterday", "20260501", "2026-13-01", 12345, -1, "12345", "2026-02-30T00:00:00Z"])
def test_what_is_no_time_is_named_in_positives_and_marked_in_events(value: Any, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([row("positives", "1", timestamp=value)]), tmp_path / "p.parquet")
    message = refusal(lambda: open_positives(tmp_path / "p.parquet").read())
    assert "row 1, document_id '1', column timestamp must be a time in ISO 8601 or an epoch number" in message
    assert repr(value) in message
    pq.write_table(pa.Table.from_pylist([row("events", "1", timestamp=value)]), tmp_path / "e.parquet")
    events = open_events(tmp_path / "e.parquet").read().to_pylist()
    assert [(event["timestamp"], event["unparsable"]) for event in events] == [(None, True)]


# --- numbers, queries, grades


@pytest.mark.parametrize(
    ("kind", "column", "value"),
    [
        *(("judgements", "relevance", value) for value in (float("nan"), float("inf"), "nan", "-inf", "x")),
        *(("positives", "weight", value) for value in (float("nan"), float("inf"), -1.0, "-0.5", "many")),
    ],
)
def test_a_number_that_is_none_is_refused(kind: str, column: str, value: Any, tmp_path: Path) -> None:
    rows = [row(kind, "1", **{column: type(value)(1)}), row(kind, "2", **{column: value})]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    message = refusal(lambda: OPEN[kind](tmp_path / "t.parquet").read())
    assert f"t.parquet: row 2, document_id '2', column {column} must be a finite number" in message


@KINDS
def test_queries_lose_white_space_and_blank_ones_are_missing(kind: str, tmp_path: Path) -> None:
    if kind == "documents":
        return
    rows = [row(kind, "1", query=" \u3000sofa\n"), row(kind, "2", query="\u3000\xa0 \t"), row(kind, "3", query="a  b")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert OPEN[kind](tmp_path / "t.parquet").read()["query"].to_pylist() == ["sofa", None, "a  b"]


def test_a_given_grade_needs_a_column_of_grades(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"query": ["a"], "document_id": ["1"], "rating": [3], "weight": [1]}), tmp_path / "t.parquet"
    )
    table = open_judgements(tmp_path / "t.parquet")
    assert check_judgements(table) is False
    message = refusal(lambda: check_judgements(table, relevant_at=3))
    assert (
        "a lowest relevant grade of 3 is given, but there is no column relevance; it has query, document_id, rating"
        in message
    )


# --- vectors


@pytest.mark.parametrize(
    "values",
    [
        pa.array([[[1.0, 2.0]], None], pa.list_(pa.list_(pa.float32()))),
        pa.array([[[1.0, 2.0]], None], pa.large_list(pa.list_(pa.float64(), 2))),
        pa.array([[1.0, 2.0], None], pa.list_(pa.float32())),
        pa.array([[1.0, 2.0], None], pa.list_(pa.float16(), 2)),
        pa.array([[1, 2], None]),
        pa.array(["[[1, 2]]", None]),
        pa.array(["[1.0, 2.0]", ""]),
    ],
    ids=lambda values: str(values.type),
)
def test_vectors_of_every_type(values: pa.Array, tmp_path: Path) -> None:
    columns = {"document_id": ["1", "2"], "title": ["a", "b"], "image_embeddings": values}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert open_documents(tmp_path / "t.parquet").read()["image_embeddings"].to_pylist() == [[[1.0, 2.0]], None]


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        ([[1.0, float("nan")]], "got nan"),
        ([[1.0, 2.0], [1.0]], "got a vector of 1"),
        ([[1.0, None]], "got None"),
        ([None], "got null in place of a vector"),
        ([[]], "got a vector of 0"),
    ],
)
def test_a_bad_vector_is_found_by_file_row_and_id(vectors: Any, says: str, tmp_path: Path) -> None:
    good = [[1.0, 2.0]]
    for number in range(2):
        rows = [
            {
                "document_id": f"d{number}-{n}",
                "title": "a",
                "image_embeddings": vectors if (number, n) == (1, 1499) else good,
            }
            for n in range(2000)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{number}.parquet")
    table = open_documents(tmp_path, vectors={"image_embeddings": 2})
    message = refusal(lambda: [batch for batch in table.batches(256)])
    assert (
        "1.parquet: row 1500, document_id 'd1-1499', column image_embeddings must be a list of vectors of 2 fin"
        in message
    )
    assert says in message


# --- deletions


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.txt", b"\xef\xbb\xbf101\r\nb\r\n"),
        ("t.txt", b"document_id\n 101.0 \n\nb"),
        ("t.tsv", b"product_id\n101\nb\n"),
        ("t.csv", b'\xef\xbb\xbf"document_id"\n"101.0"\n"b"\n'),
        ("t.jsonl", b'{"document_id": 101.0}\n{"document_id": "b"}\n'),
    ],
)
def test_deletions_follow_the_rules_of_tables(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_deletions(tmp_path / name).to_pylist() == ["101", "b"]


@pytest.mark.parametrize(
    ("content", "says"),
    [("é".encode("latin-1"), "UTF-8"), ("a".encode("utf-16"), "UTF-8"), (b"a\nb\na\n", "'a' occurs more")],
)
def test_a_list_of_deletions_that_is_none_is_refused(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    assert says in refusal(lambda: read_deletions(tmp_path / "t.txt"))
    assert "no such file" in refusal(lambda: read_deletions(tmp_path / "none.txt"))


# --- every format gives the same rows


TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=12)
VECTOR_SETS = st.lists(st.lists(st.floats(-9, 9, width=16), min_size=2, max_size=2), min_size=1, max_size=2)
ROWS = st.lists(st.tuples(TEXTS.filter(bool), TEXTS, st.none() | VECTOR_SETS), min_size=1, max_size=6)


@given(rows=ROWS, zipped=st.booleans())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_table_reads_back_equal_from_every_format(rows: list[Any], zipped: bool, tmp_path: Path) -> None:
    frame = [{"document_id": f"id {a}", "title": b or None, "image_embeddings": c} for a, b, c in rows]
    cells = [
        {name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in row.items()} for row in frame
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in frame))
    schema = pa.schema(
        {"document_id": pa.string(), "title": pa.string(), "image_embeddings": pa.list_(pa.list_(pa.float64()))}
    )
    pq.write_table(pa.Table.from_pylist(frame, schema), tmp_path / "t.parquet")
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, frame[0], delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writeheader()
        writer.writerows(cells)
        content = buffer.getvalue().encode()
        (tmp_path / f"t{suffix}{'.gz' if zipped else ''}").write_bytes(gzip.compress(content) if zipped else content)
    gz = ".gz" if zipped else ""
    tables = [open_documents(tmp_path / name).read() for name in ("t.parquet", "t.jsonl", f"t.csv{gz}", f"t.tsv{gz}")]
    expected = [(row["document_id"], row["title"], row["image_embeddings"]) for row in frame]
    for table in tables:
        got = [(row["document_id"], row["title"], row["image_embeddings"]) for row in table.to_pylist()]
        assert [row[:2] for row in got] == [row[:2] for row in expected]
        for (*_, vectors), (*_, wanted) in zip(got, expected, strict=True):
            assert (vectors is None) == (wanted is None)
            np.testing.assert_allclose(vectors or [], wanted or [], rtol=1e-6)
