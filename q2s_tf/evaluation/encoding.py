"""A run on judgements: everything embedded, and every document put in order for every query."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from q2s_tf.cli import track
from q2s_tf.config import Config
from q2s_tf.errors import InputError
from q2s_tf.evaluation.documents import Documents, embed
from q2s_tf.evaluation.evaluation import FUSED, LEXICAL, MODEL
from q2s_tf.evaluation.judgements import Judgements, read_judgements, share_queries
from q2s_tf.evaluation.rankers import Bm25, cosine_rows, first, reciprocal_rank_fusion
from q2s_tf.models import Towers
from q2s_tf.tables import Table, check_judgements, open_documents, open_judgements

DEPTH = 100
"""How many documents are kept of each query's order."""

Grades = tuple[float, float]
"""The grades from which a pair is relevant: in ROC AUC, and in recall and MRR."""


@dataclass
class Encoded:
    """A run's vectors of a catalogue and of Q judged queries.

    Attributes:
        towers: of the run.
        table: the catalogue.
        documents: its vectors and texts.
        judged: the judged pairs, J.
        later: the later positives, over the same queries.
        embeddings: of the queries, `[Q, D]`, unit length.
        weights: channel weights of the queries, `[Q, channels]`.
    """

    towers: Towers
    table: Table
    documents: Documents
    judged: Judgements
    later: Judgements | None
    embeddings: np.ndarray
    weights: np.ndarray


def choose_grades(config: Config, relevant_at: float | None, recall_relevant_at: float | None) -> Grades:
    """What was asked for, else what the run's config says; recall goes by the first that is given."""
    settings = config.evaluation
    pair_at = settings.relevant_at if relevant_at is None else relevant_at
    grades = (recall_relevant_at, relevant_at, settings.recall_relevant_at, settings.relevant_at)
    return pair_at, next(grade for grade in grades if grade is not None)


def encode(towers: Towers, documents: Path, judgements: Path, later: Path | None, seed: int) -> Encoded:
    """Embeds a catalogue and the queries of judgements.

    Args:
        towers: of a run.
        documents: the catalogue.
        judgements: rated pairs, or positives.
        later: positives of later days.
        seed: of the sampled negatives, where the judgements are positives.

    Raises:
        InputError: a table that breaks its contract, judgements of another catalogue.
    """
    table = open_documents(documents, towers.document.preprocessor.inputs, towers.config.vector_inputs())
    rated_pairs, later_pairs = open_judgements(judgements), open_later(later)
    embedded = embed(towers.document, table)
    judged, chosen = read_judgements(rated_pairs, embedded.ids, seed), None
    if later_pairs:
        read = read_judgements(later_pairs, embedded.ids, seed)
        judged, chosen = share_queries(judged, read.select(read.relevance > 0))
    queries = towers.query.predict(judged.queries)
    return Encoded(towers, table, embedded, judged, chosen, queries["embedding"], queries["channel_weights"])


def open_later(path: Path | None) -> Table | None:
    """Positives of later days; `InputError` if the table has ratings."""
    if path is None:
        return None
    table = open_judgements(path)
    if check_judgements(table):
        raise InputError(f"--later {path}: must be positives, without a column relevance; --judgements takes ratings")
    return table


def rank(encoded: Encoded, lexical: Bm25 | None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Puts the whole catalogue in order for each query, by exact search.

    Args:
        encoded: the run's vectors.
        lexical: BM25 of the same catalogue, which is then ordered by too, and by its fusion with the run.

    Returns:
        By system the score of each judged pair, float `[J]`, and the first `DEPTH` documents of each query, int
        `[Q, DEPTH]`, −1 where there are no more. BM25 retrieves only what shares a word with the query.
    """
    by_query = encoded.judged.by_query()
    systems = [MODEL, LEXICAL, FUSED] if lexical else [MODEL]
    scores = {system: np.empty(len(encoded.judged.query)) for system in systems}
    found = {system: np.empty((len(by_query), DEPTH), int) for system in systems}
    cosines = cosine_rows(encoded.embeddings, encoded.documents.embeddings)
    words = lexical.rows(encoded.judged.queries["query"]) if lexical else None
    for number, pairs in enumerate(track(by_query, "scoring the catalogue", len(by_query))):
        rows = {MODEL: next(cosines)}
        if words:
            row = next(words)
            rows[LEXICAL] = np.where(row > 0, row, -np.inf)
            rows[FUSED] = reciprocal_rank_fusion(list(rows.values()))
        for system, row in rows.items():
            scores[system][pairs] = np.nan_to_num(row[encoded.judged.document[pairs]], neginf=0.0)
            found[system][number] = first(row, DEPTH)
    return scores, found
