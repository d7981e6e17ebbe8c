"""Tables of the data contract: every format and layout gives the same rows; what cannot be read is one clear line."""

import csv
import datetime
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from q2s_tf.config import IMAGES
from q2s_tf.errors import InputError
from q2s_tf.tables import check_judgements, open_documents, open_judgements, open_positives

ROWS: list[dict[str, Any]] = [
    {"document_id": "1", "title": 'red "sofa"', "description": "soft", "image_embeddings": [[1.0, 2.5], [0.5, 0.0]]},
    {"document_id": "2", "title": "赤いソファ", "description": None, "image_embeddings": None},
    {"document_id": "3", "title": "أريكة", "description": "x", "image_embeddings": []},
]


def parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "table.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def parquet_folder(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "parts").mkdir()
    for number, row in enumerate(rows):
        schema = pa.Table.from_pylist(rows).schema
        pq.write_table(pa.Table.from_pylist([row], schema), folder / "parts" / f"part-{number}.parquet")
    return folder / "parts"


def tsv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "table.tsv"
    path.write_text(as_tsv(rows), encoding="utf-8")
    return path


def tsv_gz(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "table.tsv.gz"
    path.write_bytes(gzip.compress(as_tsv(rows).encode()))
    return path


def tsv_with_bom(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "table.txt"
    path.write_bytes(b"\xef\xbb\xbf" + as_tsv(rows).replace("\n", "\r\n").encode())
    return path


def as_tsv(rows: list[dict[str, Any]]) -> str:
    def cell(value: Any) -> str:
        return "" if value is None else json.dumps(value) if isinstance(value, list) else str(value)

    return "\n".join(["\t".join(rows[0]), *("\t".join(cell(value) for value in row.values()) for row in rows)]) + "\n"


def tsv_folder(folder: Path, rows: list[dict[str, Any]]) -> Path:
    for number, row in enumerate(rows):
        (folder / "parts" / "deep").mkdir(parents=True, exist_ok=True)
        (folder / "parts" / "deep" / f"{number}.tsv.gz").write_bytes(gzip.compress(as_tsv([row]).encode()))
    (folder / "parts" / "read me.txt").write_text("No table.")
    return folder / "parts"


def csv_glob(folder: Path, rows: list[dict[str, Any]]) -> Path:
    for number, row in enumerate(rows):
        with (folder / f"part-{number}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(row)
            writer.writerow(json.dumps(cell) if isinstance(cell, list) else cell for cell in row.values())
    return folder / "part-?.csv"


FORMATS = [parquet, parquet_folder, tsv, tsv_gz, tsv_with_bom, tsv_folder, csv_glob]


@pytest.mark.parametrize("written", FORMATS, ids=lambda written: written.__name__)
def test_every_format_gives_the_same_rows(tmp_path: Path, written: Callable[..., Path]) -> None:
    table = open_documents(written(tmp_path, ROWS))
    rows = table.read().to_pylist()
    assert [{key: row[key] or None for key in ROWS[0]} for row in rows] == [
        {key: value or None for key, value in row.items()} for row in ROWS
    ]
    assert table.num_rows() == 3
    assert [row["language"] for row in rows] == [None] * 3, "an absent optional column is read as missing"


@pytest.mark.parametrize("written", [parquet, tsv], ids=lambda written: written.__name__)
def test_columns_have_the_types_of_the_contract(tmp_path: Path, written: Callable[..., Path]) -> None:
    rows = [{"query": "a", "country": "US", "document_id": 7, "timestamp": "2024-05-01T10:00:00Z", "weight": 2}]
    table = open_positives(written(tmp_path, rows)).read()
    moment = datetime.datetime(2024, 5, 1, 10, tzinfo=datetime.UTC)
    assert table.to_pylist() == [
        {"query": "a", "country": "US", "document_id": "7", "timestamp": moment, "weight": 2.0}
    ]
    assert table.schema.field("document_id").type == pa.string()
    documents = open_documents(written(tmp_path, ROWS)).read()
    assert documents.schema.field(IMAGES).type == pa.list_(pa.list_(pa.float32()))


def test_batches_have_at_most_the_rows_asked_for_and_keep_the_order(tmp_path: Path) -> None:
    rows = [{"document_id": str(number), "title": f"t{number}"} for number in range(25)]
    batches = list(open_documents(parquet(tmp_path, rows)).batches(10))
    assert [len(batch) for batch in batches] == [10, 10, 5]
    assert [text for batch in batches for text in batch.column("title").to_pylist()] == [row["title"] for row in rows]


@pytest.mark.parametrize("written", [parquet, tsv], ids=lambda written: written.__name__)
def test_product_id_is_another_name_and_empty_text_is_missing(tmp_path: Path, written: Callable[..., Path]) -> None:
    rows = [{"product_id": "p1", "title": "a", "country": ""}, {"product_id": "p2", "title": "", "country": "US"}]
    read = open_documents(written(tmp_path, rows)).read().to_pylist()
    assert [(row["document_id"], row["title"], row["country"]) for row in read] == [
        ("p1", "a", None),
        ("p2", None, "US"),
    ]


def test_dictionary_and_large_columns_are_read_as_text(tmp_path: Path) -> None:
    columns = {
        "document_id": pa.array(["a", "b"], pa.large_string()),
        "title": pa.array(["x", "x"]).dictionary_encode(),
        "country": pa.array(["US", None]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), tmp_path / "table.parquet")
    read = open_documents(tmp_path / "table.parquet").read().to_pylist()
    assert [(row["document_id"], row["title"], row["country"]) for row in read] == [("a", "x", "US"), ("b", "x", None)]


def test_names_with_an_underscore_or_a_dot_in_front_are_no_part_of_a_table(tmp_path: Path) -> None:
    rows = [{"query": "a", "country": "US", "document_id": "1", "timestamp": "2024-05-01T10:00:00Z"}]
    kept = parquet(tmp_path, rows).read_bytes()
    for name in ("table.parquet", "_temporary/0/part-0.parquet", ".hidden/part-0.parquet", "_a.parquet", ".b.parquet"):
        path = tmp_path / "positives" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kept)
    for path in (tmp_path / "positives", tmp_path / "positives" / "**" / "*.parquet"):
        table = open_positives(path)
        assert (table.num_rows(), len(table.read())) == (1, 1)
    assert open_positives(tmp_path / "positives" / "_a.parquet").num_rows() == 1, "a file given by name is read"


def test_columns_may_differ_between_files_and_be_named_by_folders(tmp_path: Path) -> None:
    (tmp_path / "tree/country=US/language=007").mkdir(parents=True)
    (tmp_path / "tree/country=__HIVE_DEFAULT_PARTITION__/language=en").mkdir(parents=True)
    first = pa.table({"document_id": [1], "title": ["a"], "description": ["x"]})
    pq.write_table(first, tmp_path / "tree/country=US/language=007/0.parquet")
    second = pa.table({"document_id": pa.array([2], pa.int32()), "title": ["b"]})
    pq.write_table(second, tmp_path / "tree/country=__HIVE_DEFAULT_PARTITION__/language=en/0.parquet")
    rows = sorted(open_documents(tmp_path / "tree").read().to_pylist(), key=lambda row: row["document_id"])
    assert [(row["document_id"], row["description"], row["country"], row["language"]) for row in rows] == [
        ("1", "x", "US", "007"),
        ("2", None, None, "en"),
    ]


@pytest.mark.parametrize("written", [parquet, tsv], ids=lambda written: written.__name__)
def test_country_and_timestamp_may_be_absent(tmp_path: Path, written: Callable[..., Path]) -> None:
    positives = open_positives(written(tmp_path, [{"query": "a", "document_id": "1"}]))
    absent = {"country": None, "timestamp": None, "weight": None}
    assert positives.read().to_pylist() == [{"query": "a", "document_id": "1", **absent}]
    judgements = open_judgements(written(tmp_path, [{"query": "a", "document_id": "1", "relevance": 2}]))
    assert check_judgements(judgements) is True
    assert judgements.read().to_pylist() == [{"query": "a", "document_id": "1", "relevance": 2.0, **absent}]


@pytest.mark.parametrize(
    "value",
    [
        1714557600,
        1714557600_000,
        1714557600_000_000,
        1714557600_000_000_000,
        datetime.datetime(2024, 5, 1, 10),
        "2024-05-01 10:00:00Z",
    ],
)
def test_every_spelling_of_a_time_is_read_as_utc(tmp_path: Path, value: Any) -> None:
    rows = [{"query": "a", "country": "US", "document_id": "1", "timestamp": value}]
    read = open_positives(parquet(tmp_path, rows)).read().to_pylist()
    assert read[0]["timestamp"] == datetime.datetime(2024, 5, 1, 10, tzinfo=datetime.UTC)


def test_a_judgements_table_is_rated_and_a_positives_table_is_not(tmp_path: Path) -> None:
    common = {"query": "a", "country": "US", "document_id": "1"}
    assert check_judgements(open_judgements(parquet(tmp_path, [{**common, "relevance": 3}]))) is True
    moment = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
    assert check_judgements(open_judgements(parquet(tmp_path, [{**common, "timestamp": moment}]))) is False
    assert check_judgements(open_judgements(parquet(tmp_path, [{**common, "weight": 2}]))) is False
    with pytest.raises(InputError, match="needs the column relevance"):
        check_judgements(open_judgements(parquet(tmp_path, [common])))


def test_what_cannot_be_opened_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"documents .*none\.parquet: there is no such file"):
        open_documents(tmp_path / "none.parquet")
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.xlsx: its name ends in no known format; give a file, folder or glob of"):
        open_documents(tmp_path / "a.xlsx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"documents .*empty: nothing in it can be read"):
        open_documents(tmp_path / "empty")
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read") as raised:
        open_documents(tmp_path / "a.parquet").read()
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="needs the column title; it has document_id, name"):
        open_documents(parquet(tmp_path, [{"document_id": "1", "name": "x"}]))


def test_a_table_without_rows_has_none_to_read(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"document_id": pa.array([], pa.string()), "title": pa.array([], pa.string())}), tmp_path / "t.parquet"
    )
    table = open_documents(tmp_path / "t.parquet")
    assert table.num_rows() == 0
    assert list(table.batches()) == []
    with pytest.raises(InputError, match="it has no rows"):
        table.read()


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes("query\tcountry\tdocument_id\trelevance\ncafé\tFR\t1\t2\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"t\.tsv: must be UTF-8 and is not"):
        open_judgements(path).read()
    path.write_bytes("query\tpays_é\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"t\.tsv: must be UTF-8 and is not"):
        open_judgements(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"document_id": 1.5, "title": "a"}], "row 1, column document_id must be text or whole numbers; got 1.5"),
        (
            [{"document_id": "1", "title": "a", "image_embeddings": "[1,"}],
            "row 1, document_id '1', column image_embeddings must be a list of vectors of finite numbers, such as",
        ),
        (
            [{"document_id": "1", "title": "a", "image_embeddings": [["x"]]}],
            "column image_embeddings must be a list of vectors",
        ),
    ],
)
def test_a_value_of_another_type_is_refused(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_documents(parquet(tmp_path, rows)).read()


def test_a_rating_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = tsv(tmp_path, [{"query": "a", "country": "US", "document_id": "1", "relevance": "good"}])
    with pytest.raises(
        InputError, match="row 1, document_id '1', column relevance must be a finite number; got 'good'"
    ):
        open_judgements(path).read()
