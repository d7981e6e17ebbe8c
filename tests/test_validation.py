"""The validation metric of training, compared with the metric of the raw rows."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import ndcg_score, roc_auc_score
from tiny_market import TinyMarket, filled_config, market_tokenizer, random_towers

from q2s_tf.errors import InputError
from q2s_tf.evaluation.judgements import Judgements
from q2s_tf.examples.stored_rows import store_rows
from q2s_tf.models import Towers, read_ids
from q2s_tf.tables import open_documents, open_judgements
from q2s_tf.training import validation
from q2s_tf.training.validation import Validation, read_validation


def make(market: TinyMarket, folder: Path, metric: str, *overrides: str) -> tuple[Towers, Judgements, Validation]:
    config = filled_config(market, f"evaluation.validation_metric={metric}", *overrides)
    towers = random_towers(config, market_tokenizer(market))
    documents = open_documents(market.documents, towers.config.tower_inputs("document"), towers.config.vector_inputs())
    judged, relevant = read_validation(open_judgements(market.judgements), read_ids(documents), config)
    raw = tf.data.Dataset.from_tensor_slices(towers.document.as_inputs(documents.read())).batch(7)
    rows = store_rows(folder / "documents", towers.document, raw)
    return towers, judged, Validation(towers, judged, relevant, rows, folder / "validation")


@pytest.fixture
def scores(market: TinyMarket) -> np.ndarray:
    """Cosines of random towers of every judged query and document, of the raw rows."""
    towers = random_towers(filled_config(market), market_tokenizer(market))
    columns = {name: [row[name] for row in market.document_rows] for name in towers.document.read_inputs()}
    queries = dict.fromkeys((row["query"], row["country"]) for row in market.judgement_rows)
    texts, countries = zip(*queries, strict=True)
    return towers.encode_queries(list(texts), list(countries)) @ towers.encode_documents(columns).T


def grades(market: TinyMarket) -> np.ndarray:
    """The grade of every query and document; −1 where a pair is not judged."""
    queries = list(dict.fromkeys((row["query"], row["country"]) for row in market.judgement_rows))
    ids = [row["document_id"] for row in market.document_rows]
    table = np.full((len(queries), len(ids)), -1.0)
    for row in market.judgement_rows:
        place = queries.index((row["query"], row["country"])), ids.index(row["document_id"])
        table[place] = max(table[place], row["relevance"])
    return table


def test_roc_auc_is_of_the_judged_pairs(market: TinyMarket, scores: np.ndarray, tmp_path: Path) -> None:
    table = grades(market)
    judged = table >= 0
    _, _, validate = make(market, tmp_path, "roc_auc")
    assert validate() == {"val_roc_auc": pytest.approx(roc_auc_score(table[judged] >= 2, scores[judged]), abs=1e-6)}


def test_ndcg_is_the_mean_of_the_queries_that_have_one(market: TinyMarket, scores: np.ndarray, tmp_path: Path) -> None:
    values = []
    for row, cosines in zip(grades(market), scores, strict=True):
        gains = 2 ** (row - row[row >= 0].min()) - 1
        if (row >= 0).sum() > 1 and gains[row >= 0].any():
            values.append(ndcg_score([gains[row >= 0]], [cosines[row >= 0]], k=10))
    _, _, validate = make(market, tmp_path, "ndcg@10")
    assert validate() == {"val_ndcg@10": pytest.approx(np.mean(values), abs=1e-6)}


@pytest.mark.parametrize(("overrides", "grade"), [((), 2), (("evaluation.recall_relevant_at=1",), 1)])
@pytest.mark.parametrize(("metric", "depth"), [("recall@10", 10), ("recall@100", 5)])
def test_recall_ranks_the_whole_catalogue(
    metric: str,
    depth: int,
    overrides: tuple[str, ...],
    grade: int,
    market: TinyMarket,
    scores: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The depth of recall@100 is set to five documents here, because the catalogue has fewer than 100."""
    monkeypatch.setattr(validation, "DEPTH", depth)
    assert scores.shape[1] > depth
    values = []
    for row, cosines in zip(grades(market), scores, strict=True):
        if (row >= grade).any():
            values.append((row[np.argsort(-cosines)[:depth]] >= grade).sum() / (row >= grade).sum())
    _, _, validate = make(market, tmp_path, metric, *overrides)
    assert validate() == {f"val_{metric}": pytest.approx(np.mean(values), abs=1e-6)}


def test_ndcg_without_grades_is_refused(market: TinyMarket, tmp_path: Path) -> None:
    towers, judged, validate = make(market, tmp_path, "ndcg@10")
    equal = judged.select(np.unique(judged.query, return_index=True)[1])
    rows = validate.embed_documents._rows
    with pytest.raises(InputError, match="no query has an nDCG.* set evaluation.validation_metric to roc_auc"):
        Validation(towers, equal, equal.relevant(2.0), rows, tmp_path / "again")
