"""Hard negatives of the catalogue: which documents may be drawn, and what a batch makes of them."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_market import TinyMarket, filled_config, market_tokenizer, random_towers

from q2s_tf.examples.batches import Examples
from q2s_tf.examples.prepare import build_examples
from q2s_tf.examples.stored_rows import TowerRows
from q2s_tf.models import Towers
from q2s_tf.tables import open_documents, open_positives
from q2s_tf.text import normalise
from q2s_tf.training import hard_negatives
from q2s_tf.training.hard_negatives import HardNegatives
from q2s_tf.training.stored_embeddings import StoredEmbeddings


@pytest.fixture(scope="module")
def towers(market: TinyMarket) -> Towers:
    return random_towers(filled_config(market), market_tokenizer(market))


@pytest.fixture(scope="module")
def rows(market: TinyMarket) -> list[dict[str, Any]]:
    """Positives by query and document id, one of them of a query in other letters."""
    ids = [row["document_id"] for row in market.document_rows]
    pairs = [("red sofa", ids[0]), ("RED  sofa", ids[1]), ("лампа", ids[20]), ("ソファ", ids[30]), ("ソファ", ids[31])]
    return [{"query": query, "document_id": document} for query, document in pairs]


@pytest.fixture(scope="module")
def examples(
    towers: Towers, market: TinyMarket, rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Examples:
    folder = tmp_path_factory.mktemp("examples")
    pq.write_table(pa.Table.from_pylist(rows), folder / "positives.parquet")
    documents, positives = open_documents(market.documents), open_positives(folder / "positives.parquet")
    return build_examples(folder / "store", towers, documents, positives)


def allowed(towers: Towers, market: TinyMarket, rows: list[dict[str, Any]]) -> list[list[str]]:
    """The hardest documents of each positive, from the raw strings: by cosine, at most .95 of the positive's."""
    ids = [row["document_id"] for row in market.document_rows]
    columns = {name: [row[name] for row in market.document_rows] for name in towers.document.read_inputs()}
    cosines = towers.encode_queries([row["query"] for row in rows]) @ towers.encode_documents(columns).T
    result = []
    for row, scores in zip(rows, cosines, strict=True):
        text = normalise(row["query"]).numpy()
        known = {other["document_id"] for other in rows if normalise(other["query"]).numpy() == text}
        positive = scores[ids.index(row["document_id"])]
        limit = positive - 0.05 * abs(positive)
        candidates = [(score, name) for score, name in zip(scores, ids, strict=True) if name not in known]
        ranked = sorted(((score, name) for score, name in candidates if score <= limit), reverse=True)
        result.append([name for _, name in ranked])
    return result


def test_negatives_are_among_the_hardest_documents_below_the_positive(
    towers: Towers, market: TinyMarket, rows: list[dict[str, Any]], examples: Examples
) -> None:
    ids = [row["document_id"] for row in market.document_rows]
    mined = HardNegatives(towers, examples, seed=(3,))
    drawn: list[set[str]] = [set() for _ in rows]
    for epoch in range(40):
        mined.on_epoch_begin(epoch)
        for number, row in enumerate(mined.rows()):
            drawn[number].add(ids[row])
    for names, candidates in zip(drawn, allowed(towers, market, rows), strict=True):
        assert names <= set(candidates[:10])
        assert len(names) >= min(2, len(candidates))
    assert max(map(len, drawn)) > 5


def test_an_epoch_has_the_same_negatives_again(towers: Towers, examples: Examples) -> None:
    mined, again = (HardNegatives(towers, examples, seed=(3,)) for _ in range(2))
    mined.on_epoch_begin(0)
    mined.on_epoch_begin(1)
    again.on_epoch_begin(1)
    np.testing.assert_array_equal(mined.rows(), again.rows())


def test_the_catalogue_is_embedded_once_for_the_same_weights(
    towers: Towers, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = StoredEmbeddings(towers.document, examples.documents)
    before = embeddings()
    read: list[int] = []
    read_rows = TowerRows.read

    def count_rows(rows: TowerRows, numbers: np.ndarray) -> Any:
        read.append(len(numbers))
        return read_rows(rows, numbers)

    monkeypatch.setattr(TowerRows, "read", count_rows)
    mined, alone = HardNegatives(towers, examples, (3,), embeddings=embeddings), HardNegatives(towers, examples, (3,))
    read.clear()
    mined.on_epoch_begin(0)
    assert sum(read) < examples.num_documents, "the queries alone"
    alone.on_epoch_begin(0)
    np.testing.assert_array_equal(mined.rows(), alone.rows())
    weight = towers.document.trainable_variables[0]
    value = weight.numpy()
    weight.assign(value[::-1])
    assert np.abs(embeddings() - before).max() > 1e-3, "other weights, other embeddings"
    weight.assign(value)
    np.testing.assert_allclose(embeddings(), before, atol=1e-6)
    part = StoredEmbeddings(towers.document, examples.documents, np.arange(3))
    alone = HardNegatives(towers, examples, (3,), embeddings=part)
    alone.on_epoch_begin(0)
    np.testing.assert_array_equal(mined.rows(), alone.rows())


def test_of_a_large_catalogue_a_part_is_searched(
    towers: Towers, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hard_negatives, "MIN_DOCUMENTS", 12)
    monkeypatch.setattr(hard_negatives, "DOCUMENTS_PER_POSITIVE", 2)
    mined = HardNegatives(towers, examples, seed=(3,))
    seen = set()
    for epoch in range(20):
        mined.on_epoch_begin(epoch)
        seen |= set(mined.rows().tolist())
    assert 1 < len(seen - {-1}) <= 12 + len(examples)


def test_a_batch_has_the_negatives_after_its_documents(examples: Examples) -> None:
    negatives = np.array([7, -1, 7, 8, 9])
    batch = examples.batch(np.arange(len(examples)), negatives)
    expected = np.concatenate([examples.pairs["document"][: len(examples)], [7, 7, 8, 9]])
    for name, values in examples.documents.read(expected).items():
        np.testing.assert_array_equal(batch["document"][name], values)
    assert batch["score_mask"].shape == (5, 9)
    known = [set(examples.known_documents(row).tolist()) for row in examples.pairs["query"][: len(examples)]]
    for query, column in np.ndindex(5, 9):
        is_negative = expected[column] not in known[query] or query == column
        assert batch["score_mask"][query, column] == is_negative
    assert batch["weight"].shape == (5,)
