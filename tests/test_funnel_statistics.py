"""What training learns from a set of positives, against the same counts in plain Python."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from q2s_tf.errors import InputError
from q2s_tf.search_log import statistics

ROWS = [
    {
        "query": rng.choice(["sofá", "red sofa", "ソファ", "a" * 40, "lamp"]),
        "country": rng.choice(["US", "ES", None]),
        "document_id": f"d{rng.randint(0, 9)}",
        "weight": rng.randint(1, 5),
    }
    for rng in [random.Random(1)]
    for _ in range(200)
]


@pytest.fixture
def table(tmp_path: Path) -> ibis.Table:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "positives.parquet")
    return statistics.read_positives(tmp_path / "positives.parquet")


def counts(*keys: str) -> Counter[Any]:
    counter: Counter[Any] = Counter()
    for row in ROWS:
        counter[tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]]] += row["weight"]
    return counter


def test_vocabulary_is_the_most_frequent_queries(table: ibis.Table) -> None:
    wanted = sorted(counts("query").items(), key=lambda item: (-item[1], item[0]))
    found = statistics.query_vocabulary(table).to_pylist()
    assert [(row["query"], row["count"]) for row in found] == wanted
    assert statistics.query_vocabulary(table, size=2).to_pylist() == found[:2]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 1.0])
def test_length_that_a_share_of_the_queries_does_not_exceed(table: ibis.Table, share: float) -> None:
    every = sorted(len(row["query"]) for row in ROWS for _ in range(row["weight"]))
    wanted = next(length for length in every if sum(other <= length for other in every) >= share * len(every))
    assert statistics.query_length(table, share) == wanted


def test_length_of_no_queries_is_zero(table: ibis.Table) -> None:
    assert statistics.query_length(table.filter(table.query == "none such")) == 0


def test_share_outside_its_range(table: ibis.Table) -> None:
    with pytest.raises(InputError, match="share must be above 0 and at most 1; got 99"):
        statistics.query_length(table, 99)


def test_popularity_is_a_distribution(table: ibis.Table) -> None:
    found = statistics.document_popularity(table).to_pylist()
    wanted = counts("document_id")
    assert {row["document_id"]: row["count"] for row in found} == wanted
    for row in found:
        assert row["probability"] == pytest.approx(row["count"] / wanted.total())
    assert sum(row["probability"] for row in found) == pytest.approx(1)


def test_known_positives_of_each_query(table: ibis.Table) -> None:
    for by in (("query", "country"), ("query",)):
        found = statistics.known_positives(table, by).to_pylist()
        wanted: dict[Any, set[str]] = {}
        for row in ROWS:
            wanted.setdefault(tuple(row[key] for key in by), set()).add(row["document_id"])
        assert {tuple(row[key] for key in by): row["document_ids"] for row in found} == {
            key: sorted(documents) for key, documents in wanted.items()
        }


def test_weight_is_one_where_there_is_none_and_product_id_will_do(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text('query\tcountry\tproduct_id\n5/8" plywood\t\t007\n')
    found = statistics.read_positives(tmp_path / "p.tsv").to_pyarrow().to_pylist()
    assert found == [{"query": '5/8" plywood', "country": None, "document_id": "007", "weight": 1}]


def test_missing_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("query\tproduct_id\na\tb\n")
    with pytest.raises(InputError, match="country missing, found query, document_id"):
        statistics.read_positives(tmp_path / "p.tsv")
