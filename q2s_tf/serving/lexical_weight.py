"""The weight of BM25 in hybrid retrieval, chosen on judged queries."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from q2s_tf.cli import track
from q2s_tf.index.lexical import LexicalIndex
from q2s_tf.index.postings import Postings
from q2s_tf.models import Towers, encode
from q2s_tf.tables import Table
from q2s_tf.text import normalise

DEFAULT_WEIGHT = 0.5
"""λ without judged queries: the best of `WEIGHTS` for a pretrained encoder. A model trained on a log may need less."""
ERRORS, PRETRAINED_ERRORS = 1.0, 1.5
"""The standard errors by which a weight may be worse than the best. With pretrained encoders in both towers the default
was among the best on every data set that was tried, so that more evidence is needed to leave it."""
COLUMNS = {"title": 2.0, "description": 1.0}
"""The columns of the lexical index by default, and their weights."""
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
DEPTH = 10
MAX_QUERIES = 1_000


def default_columns(documents: Table) -> dict[str, float]:
    """`COLUMNS`, as far as a catalogue has them."""
    return {name: weight for name, weight in COLUMNS.items() if name in documents.columns}


def choose_weight(
    towers: Towers, queries: Table, ids: pa.LargeBinaryArray, embeddings: np.ndarray, postings: Postings
) -> tuple[float, dict[str, float]]:
    """Choose λ by recall@10 over the whole catalogue; see `measure_weights` for the arguments, and `nearest_weight`.

    Returns:
        λ, and the mean recall@10 by λ. Without a query that has a relevant document: the default, and nothing.
    """
    recalls = measure_weights(towers, queries, ids, embeddings, postings)
    if not len(recalls):
        return DEFAULT_WEIGHT, {}
    errors = PRETRAINED_ERRORS if towers.config.starts_from_encoders() else ERRORS
    means = dict(zip(map(str, WEIGHTS), np.round(recalls.mean(axis=0), 4).tolist(), strict=True))
    return nearest_weight(recalls, errors), means


def measure_weights(
    towers: Towers, queries: Table, ids: pa.LargeBinaryArray, embeddings: np.ndarray, postings: Postings
) -> np.ndarray:
    """Measure recall@10 over the whole catalogue of each query by the weights of `WEIGHTS`.

    Args:
        towers: The run.
        queries: Judged queries; the first `MAX_QUERIES` with a relevant document are used.
        ids: The documents, byte strings `[N]`.
        embeddings: Their unit vectors `[N, D]`.
        postings: Their posting lists.

    Returns:
        float `[Q, W]`.
    """
    table = queries.read()
    if "relevance" in queries.columns:
        table = table.filter(pc.greater_equal(table["relevance"], towers.config.evaluation.recall_grade))
    rows = pc.index_in(table["document_id"].cast(pa.large_binary()), value_set=ids)
    table = table.append_column("row", rows).filter(pc.is_valid(rows))
    judged = table.group_by(["query", "country"], use_threads=False).aggregate([("row", "distinct")])
    judged = judged.slice(0, MAX_QUERIES)
    recalls = np.empty((len(judged), len(WEIGHTS)))
    if not len(judged):
        return recalls
    vectors = encode(towers.query, judged.select(["query", "country"]))["embedding"]
    texts = normalise(tf.constant(judged["query"].fill_null("").to_pylist()))
    index = LexicalIndex(postings, len(ids))
    score = tf.function(lambda text: index.score(*index.find_words(text[tf.newaxis])).of_all(len(ids)))
    for number, relevant in enumerate(track(judged["row_distinct"].to_pylist(), "choosing the lexical weight")):
        cosines, lexical = embeddings @ vectors[number], score(texts[number]).numpy()
        for position, weight in enumerate(WEIGHTS):
            scores = cosines + weight * lexical
            best = np.argpartition(-scores, min(DEPTH, len(scores) - 1))[:DEPTH]
            recalls[number, position] = np.isin(relevant, best).mean()
    return recalls


def nearest_weight(recalls: np.ndarray, errors: float = ERRORS) -> float:
    """The weight of `WEIGHTS` nearest to the default, among those that are no clear loss against the best.

    A weight is no clear loss if its mean recall is within `errors` standard errors of that of the best weight. The
    standard error is that of the difference by query. So the default stays where few queries do not tell weights apart.

    Args:
        recalls: float `[Q, W]`, recall of each query by weight.
        errors: the number of standard errors.
    """
    losses = recalls[:, [np.argmax(recalls.mean(axis=0))]] - recalls
    limits = errors * losses.std(axis=0) / np.sqrt(len(recalls))
    close = losses.mean(axis=0) <= limits + 1e-9
    return min(np.array(WEIGHTS)[close].tolist(), key=lambda weight: abs(weight - DEFAULT_WEIGHT))
