"""Published data sets are converted to the data contract; files of another layout are an error of one line."""

import gzip
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from q2s_tf.datasets import import_dataset
from q2s_tf.errors import InputError

TOOL = Path(__file__).parent.parent / "tools" / "import_dataset.py"


def put(folder: Path, files: dict[str, list[list[str]] | bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, list):
            content = "".join("\t".join(line) + "\n" for line in content).encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


HOME_DEPOT: dict[str, Any] = {
    "products.tsv.gz": [
        ["product_id", "title"],
        ["001", '5/8" x 4 ft. "Rough" plywood'],
        ["002", ""],
        ["001", "a second title for the same product"],
    ],
    "judgements_train.tsv.gz": [
        ["query", "product_id", "relevance"],
        ['plywood 5/8"', "001", "2.33"],
        ['plywood 5/8"', "001", "2.33"],
        ["deck", "002", "2.32"],
        ["deck", "001", "3"],
        ['5/8" plywood', "001", "3"],  # one of the queries that only validate
    ],
    "judgements_check.tsv": [["query", "product_id", "relevance"], ["deck", "002", "1.67"]],
}


def test_home_depot(tmp_path: Path) -> None:
    written = import_dataset("home_depot", put(tmp_path / "in", HOME_DEPOT), tmp_path / "out")
    assert written == {
        "documents.parquet": 2, "judgements_check.parquet": 1, "judgements_train.parquet": 5,
        "judgements_validation.parquet": 1, "positives.parquet": 2,
    }  # fmt: skip
    assert rows(tmp_path / "out/documents.parquet") == [
        {"document_id": "001", "title": '5/8" x 4 ft. "Rough" plywood', "language": "en", "country": "US"},
        {"document_id": "002", "title": None, "language": "en", "country": "US"},
    ]
    positives = rows(tmp_path / "out/positives.parquet")
    assert [(r["query"], r["country"], r["document_id"], r["weight"]) for r in positives] == [
        ('plywood 5/8"', "US", "001", 1), ("deck", "US", "001", 1),
    ]  # fmt: skip
    assert {r["timestamp"] for r in positives} == {datetime.fromisoformat("2016-01-01T00:00:00+00:00")}
    assert [row["query"] for row in rows(tmp_path / "out/judgements_validation.parquet")] == ['5/8" plywood']
    judged = rows(tmp_path / "out/judgements_check.parquet")
    assert judged == [{"query": "deck", "country": "US", "document_id": "002", "relevance": pytest.approx(1.67)}]
    assert pq.read_schema(tmp_path / "out/judgements_check.parquet").field("relevance").type == pa.float32()


def test_more_of_home_depots_queries_validate_when_asked(tmp_path: Path) -> None:
    judged = [[f"query {number}", "001", "3"] for number in range(400)]
    files = {**HOME_DEPOT, "judgements_train.tsv.gz": [["query", "product_id", "relevance"], *judged]}
    held_out = {}
    for every in (20, 8, 2):
        out = tmp_path / str(every)
        import_dataset("home_depot", put(tmp_path / "in", files), out, every)
        held_out[every] = {row["query"] for row in rows(out / "judgements_validation.parquet")}
        trained = {row["query"] for row in rows(out / "positives.parquet")}
        assert not trained & held_out[every] and len(trained | held_out[every]) == 400
        assert len(held_out[every]) == pytest.approx(400 / every, abs=3 * (400 / every) ** 0.5)
    import_dataset("home_depot", tmp_path / "in", tmp_path / "default")
    assert {row["query"] for row in rows(tmp_path / "default/judgements_validation.parquet")} == held_out[20]


def test_a_set_without_training_queries_holds_none_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--validation-every 8: esci has no training queries; leave it out"):
        import_dataset("esci", put(tmp_path / "in", ESCI), tmp_path / "out", 8)
    assert not (tmp_path / "out").exists()


ESCI: dict[str, Any] = {
    "products.tsv": [
        ["product_id", "country", "title", "description", "brand"],
        ["B1", "JP", "メガネ", "", "ACME"],
        ["B2", "ES", "Sofá", "cómodo", ""],
        ["B3", "US", "sofa", "", ""],
    ],
    "judgements_dev.tsv.gz": [
        ["query", "country", "product_id", "esci_label"],
        ["ふちなしメガネ", "JP", "B1", "exact"],
        ["silla", "ES", "B2", "substitute"],
        ["cushion", "US", "B3", "C"],
        ["car", "US", "B3", "Irrelevant"],
    ],
}


def test_esci(tmp_path: Path) -> None:
    import_dataset("esci", put(tmp_path / "in", ESCI), tmp_path / "out")
    documents = rows(tmp_path / "out/documents.parquet")
    assert documents[0] == {
        "document_id": "B1", "title": "メガネ", "description": None, "language": "ja", "country": "JP", "brand": "ACME",
    }  # fmt: skip
    assert [r["language"] for r in documents] == ["ja", "es", "en"]
    judged = rows(tmp_path / "out/judgements_dev.parquet")
    assert [(r["query"], r["country"], r["relevance"]) for r in judged] == [
        ("ふちなしメガネ", "JP", 3), ("silla", "ES", 2), ("cushion", "US", 1), ("car", "US", 0),
    ]  # fmt: skip


WANDS: dict[str, Any] = {
    "query.csv": [["query_id", "query", "query_class"], ["0", "salon chair", "Massage Chairs"], ["1", '72" sofa', ""]],
    "product.csv": (
        b"product_id\tproduct_name\tproduct_class\tcategory hierarchy\tproduct_description\tproduct_features\t"
        b"rating_count\taverage_rating\treview_count\n"
        b'0\tsolid wood bed\tBeds\tFurniture / Beds\t"good, deep\tsleep ""here""\nand there"\tw:5"\t15.0\t4.5\t1.0\n'
        b'1\t72" sofa\t\t\t\t\t\t\t\n'
    ),
    "label.csv": [
        ["id", "query_id", "product_id", "label"],
        ["0", "0", "0", "Exact"], ["1", "0", "1", "Partial"], ["2", "1", "0", "Irrelevant"],
    ],
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_wands(tmp_path: Path, suffix: str) -> None:
    folder = put(tmp_path / "in", {name + suffix: content for name, content in WANDS.items()})
    import_dataset("wands", folder, tmp_path / "out")
    documents = rows(tmp_path / "out/documents.parquet")
    assert documents[0] == {
        "document_id": "0", "title": "solid wood bed", "description": 'good, deep\tsleep "here"\nand there',
        "language": "en", "country": "US", "product_class": "Beds", "category": "Furniture / Beds",
    }  # fmt: skip
    assert (documents[1]["title"], documents[1]["description"]) == ('72" sofa', None)
    judged = rows(tmp_path / "out/judgements.parquet")
    assert [tuple(r.values()) for r in judged] == [
        ("salon chair", "US", "0", 2), ("salon chair", "US", "1", 1), ('72" sofa', "US", "0", 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "files", "changed", "message"),
    [
        ("home_depot", HOME_DEPOT, {"products.tsv.gz": None}, "products.tsv is missing"),
        ("home_depot", HOME_DEPOT, {"judgements_train.tsv.gz": None, "judgements_check.tsv": None},
         "judgements_*.tsv is missing"),
        ("home_depot", HOME_DEPOT, {"judgements_check.tsv": [["query", "relevance"], ["a", "1"]]},
         "needs the column document_id; it has query, relevance"),
        ("home_depot", HOME_DEPOT, {"judgements_check.tsv": [["query", "product_id", "relevance"], ["a", "b", "good"]]},
         "column relevance must be a finite number; got 'good'"),
        ("home_depot", HOME_DEPOT, {"judgements_check.tsv": [["query", "product_id", "relevance"], ["a", "b", ""]]},
         "1 cells are empty"),
        ("home_depot", HOME_DEPOT, {"judgements_check.tsv": b"query\tproduct_id\trelevance\nsof\xe1\tb\t1\n"},
         "must be UTF-8 and is not"),
        ("home_depot", HOME_DEPOT, {"products.tsv.gz": None, "products.tsv": b""},
         "must have distinct column names"),
        ("esci", ESCI,
         {"judgements_dev.tsv.gz": [["query", "country", "product_id", "esci_label"], ["a", "US", "b", "ok"]]},
         "a label must be one of exact, substitute, complement, irrelevant"),
        ("esci", ESCI, {"products.tsv": [["product_id", "country", "title"], ["1", "US"]]}, "cannot be read"),
        ("wands", WANDS, {"label.csv": None}, "label.csv is missing"),
        ("wands", WANDS, {"query.csv": [["query_id", "query"], ["0", "salon chair"]]}, "query_id '1' has no query"),
    ],
)  # fmt: skip
def test_what_is_not_as_published(tmp_path: Path, name: Any, files: Any, changed: Any, message: str) -> None:
    content = {file: cells for file, cells in {**files, **changed}.items() if cells is not None}
    with pytest.raises(InputError) as caught:
        import_dataset(name, put(tmp_path / "in", content), tmp_path / "out")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_tool(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", WANDS)
    command = [sys.executable, str(TOOL), "wands", str(folder), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "judgements.parquet" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["documents.parquet", "judgements.parquet"]
    (folder / "label.csv").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: ")
    assert "label.csv is missing" in done.stderr
