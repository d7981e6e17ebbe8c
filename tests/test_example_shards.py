"""Preparation by several workers: the examples of one worker, from shards that each of them stores."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from tiny_market import TinyMarket, filled_config, market_tokenizer, random_towers

from q2s_tf.errors import InputError
from q2s_tf.examples import stored_rows
from q2s_tf.examples.batches import Examples
from q2s_tf.examples.join import RECORDS
from q2s_tf.examples.prepare import Teacher, build_examples
from q2s_tf.examples.stored_rows import TowerRows
from q2s_tf.models import Towers
from q2s_tf.models.towers import precomputed_input
from q2s_tf.tables import open_documents, open_positives

OVERRIDES = ["pseudo_queries.per_document=2", "stage2.negatives=same_country", "head.queries=20"]


@pytest.fixture(scope="module")
def towers(market: TinyMarket) -> Towers:
    """Towers of every kind of channel; the text encoder of the documents is not trained, so its outputs are stored."""
    towers = random_towers(filled_config(market, *OVERRIDES), market_tokenizer(market))
    towers.document.trainable = False
    return towers


def teacher(columns: Any) -> np.ndarray:
    return np.array([[len(text), sum(map(ord, text)), *[0] * 14] for text in columns["query"]], np.float32)


def build(
    folder: Path, towers: Towers, tables: tuple[Path, Path], num_workers: int, teacher: Teacher | None = None
) -> list[Future[Examples]]:
    """The examples that each of several workers prepares. The workers are threads."""
    barrier = threading.Barrier(num_workers, timeout=100)

    def prepare(worker: int) -> Examples:
        documents, positives = open_documents(tables[0]), open_positives(tables[1])
        try:
            return build_examples(folder, towers, documents, positives, teacher, worker, num_workers, barrier.wait)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(num_workers) as pool:
        return [pool.submit(prepare, worker) for worker in range(num_workers)]


def check_equal(batch: dict[str, Any], other: dict[str, Any]) -> None:
    tf.nest.assert_same_structure(batch, other)
    for values, others in zip(tf.nest.flatten(batch), tf.nest.flatten(other), strict=True):
        assert values.dtype == others.dtype
        np.testing.assert_array_equal(values, others)


@pytest.mark.parametrize(("shard_rows", "num_workers"), [(7, 2), (7, 3), (59, 3)])
def test_the_examples_of_several_workers_are_those_of_one(
    towers: Towers,
    market: TinyMarket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shard_rows: int,
    num_workers: int,
) -> None:
    """60 documents make two shards of 59 and 1 rows, so that the third worker has none."""
    monkeypatch.setattr(stored_rows, "SHARD_ROWS", shard_rows)
    tables = market.documents, market.positives
    (alone,) = (future.result() for future in build(tmp_path / "alone", towers, tables, 1, teacher))
    shared = tmp_path / "shared"
    (shared / "queries").mkdir(parents=True)
    (shared / "normalised-9.parquet").write_text("what a killed preparation of ten workers left")
    for worker, future in enumerate(build(shared, towers, tables, num_workers, teacher)):
        examples = future.result()
        assert len(examples.documents) == len(alone.documents) == 60
        check_equal(examples.documents.read(np.arange(60)), alone.documents.read(np.arange(60)))
        for name in RECORDS:
            assert (shared / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
        epoch, expected = (list(each.batches(24, (1, 1, 1))) for each in (examples, alone))
        assert len(epoch) == len(expected) > 4
        for batch, other in zip(epoch, expected, strict=True):
            check_equal(batch, other)
        assert {"labels", "teacher", "query_country"} <= set(epoch[0]), worker
        assert precomputed_input("title_text") in epoch[0]["document"]
        assert examples.num_queries == alone.num_queries
    own_rows = [len(TowerRows([folder], towers.document)) for folder in sorted((shared / "documents").iterdir())]
    rows = np.arange(60) // shard_rows % num_workers
    assert own_rows == np.bincount(rows, minlength=num_workers).tolist(), "each worker stores its own shards only"
    assert not list(shared.glob("join*")), "the database is removed"


def test_every_batch_has_rows_of_all_workers(
    towers: Towers, market: TinyMarket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_rows, "SHARD_ROWS", 4)
    examples = build(tmp_path / "store", towers, (market.documents, market.positives), 3)[2].result()
    texts = examples.documents.read(np.arange(60))["title_trigrams"]
    shard_of = {row.tobytes(): number // 4 for number, row in enumerate(texts)}
    for batch in examples.batches(40, (1, 1, 1)):
        trigrams = batch["document"]["title_trigrams"]
        rows = np.pad(trigrams, [(0, 0), (0, texts.shape[1] - trigrams.shape[1])])
        shards = {shard_of[row.tobytes()] for row in rows}
        assert {shard % 3 for shard in shards} == {0, 1, 2}
        assert len(shards) > 8, "of the 15 shards"


def test_an_error_in_any_shard_names_the_file_and_the_document(
    towers: Towers, market: TinyMarket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_rows, "SHARD_ROWS", 7)
    rows = [dict(row) for row in market.document_rows]
    for number, (worker, others) in {9: (1, (0, 2)), 37: (2, (0, 1))}.items():
        images = [*rows[:number], {**rows[number], "image_embeddings": [[1.0] * 5]}, *rows[number + 1 :]]
        path = tmp_path / f"documents{number}.parquet"
        pq.write_table(pa.Table.from_pylist(images), path)
        futures = build(tmp_path / "store", towers, (path, market.positives), 3)
        name = rows[number]["document_id"]
        with pytest.raises(InputError, match=rf"documents{number}\.parquet: document_id '{name}': image_embeddings mu"):
            futures[worker].result()
        for other in others:
            with pytest.raises(threading.BrokenBarrierError):
                futures[other].result()
