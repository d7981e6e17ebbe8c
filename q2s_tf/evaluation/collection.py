"""A test collection, embedded by the towers of a run: catalogue, queries and judged pairs; and its rankings."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.cli import track
from q2s_tf.config import Config
from q2s_tf.errors import InputError
from q2s_tf.evaluation.judgements import Judgements, read_judgements, relevant_pairs
from q2s_tf.evaluation.rankers import Bm25, LexicalPart, cosine_rows, top_k
from q2s_tf.models import Towers, encode, read_ids
from q2s_tf.models.encoding import documents_named
from q2s_tf.tables import Table, open_documents, open_judgements

MODEL, INDEX, LEXICAL, HYBRID = "q2s_tf", "q2s_tf index", "BM25", "hybrid"
"""Names of the systems."""
DEPTH = 100
"""Documents that are kept of each ranking."""
ROWS = 8_192
TEXTS = ("document_id", "title", "description", "language", "country")

Grades = tuple[float, float]
"""The lowest relevant grade: in ROC AUC, and in recall and MRR."""


@dataclass
class Collection:
    """N documents, Q queries and J judged pairs, with the embeddings of a run.

    Attributes:
        towers: the towers of the run.
        table: the catalogue, to be read again where more of it is needed.
        documents: its columns `document_id`, `title`, `description`, `language`, `country`, `[N]`.
        missing: by input of the document tower which documents lack it, bool `[N]`.
        document_embeddings: `[N, D]`, unit length.
        judged: the judged pairs, and all queries.
        later: later positives of the same queries; None if there are none.
        query_embeddings: `[Q, D]`, unit length.
    """

    towers: Towers
    table: Table
    documents: pa.Table
    missing: dict[str, np.ndarray]
    document_embeddings: np.ndarray
    judged: Judgements
    later: Judgements | None
    query_embeddings: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """A text column of the documents as an array of str and None, `[N]`."""
        return self.documents[name].to_numpy(zero_copy_only=False)


def choose_grades(config: Config, relevant_at: float | None, recall_relevant_at: float | None) -> Grades:
    """The given grades, or those of the config. `recall_relevant_at` defaults to a given `relevant_at`."""
    settings = config.evaluation
    choices = (recall_relevant_at, relevant_at, settings.recall_relevant_at, settings.relevant_at)
    pair_grade = settings.relevant_at if relevant_at is None else relevant_at
    return pair_grade, next(grade for grade in choices if grade is not None)


def read_judged(
    documents: Path, judgements: Path, later: Path | None, seed: int, grades: Grades, need_grades: bool = False
) -> tuple[Judgements, Judgements | None]:
    """Reads the judged pairs and the later positives of a catalogue, which share their queries.

    The seed is that of the sampled negatives, if the judgements are positives; `need_grades` refuses these.

    Raises:
        InputError: a table that breaks its contract, judgements of another catalogue, a grade that no pair reaches.
    """
    ids, rated, later_pairs = read_ids(open_documents(documents, [])), open_judgements(judgements), None
    if later and "relevance" in (later_pairs := open_judgements(later)).columns:
        raise InputError(f"--later {later}: must be positives, without a column relevance; --judgements takes ratings")
    judged = read_judgements(rated, ids, seed, need_grades=need_grades)
    for grade, name in zip(grades, ("relevant_at", "recall_relevant_at"), strict=True):
        remedy = f"set evaluation.{name}, or give another --{name.replace('_', '-')}"
        relevant_pairs(judged, grade, str(judgements), remedy, irrelevant_too=False)
    if later_pairs is None:
        return judged, None
    both = read_judgements(later_pairs, ids, seed, known=judged.queries)
    return replace(judged, queries=both.queries), both.select(both.relevance > 0)


def embed_collection(towers: Towers, documents: Path, judged: Judgements, later: Judgements | None) -> Collection:
    """Embeds a catalogue and the queries of `read_judged`.

    Raises:
        InputError: a catalogue that breaks its contract.
    """
    inputs = towers.config.tower_inputs("document")
    table = open_documents(documents, inputs, towers.config.vector_inputs())
    texts, embeddings = [], []
    missing: dict[str, list[np.ndarray]] = {name: [] for name in inputs}
    for batch in track(table.batches(ROWS), "embedding documents", table.num_batches(ROWS)):
        with documents_named(table, batch):
            embeddings.append(encode(towers.document, batch)["embedding"])
        texts.append(batch.select(TEXTS))
        for name, parts in missing.items():
            parts.append(_is_missing(batch.column(name)))
    return Collection(
        towers=towers,
        table=table,
        documents=pa.Table.from_batches(texts),
        missing={name: np.concatenate(parts) for name, parts in missing.items()},
        document_embeddings=np.concatenate(embeddings),
        judged=judged,
        later=later,
        query_embeddings=encode(towers.query, judged.queries)["embedding"],
    )


def _is_missing(column: pa.Array) -> np.ndarray:
    """Which values are null, or lists without a vector, bool `[B]`."""
    missing = pc.is_null(column)
    if pa.types.is_list(column.type):
        missing = pc.or_(missing, pc.equal(pc.fill_null(pc.list_value_length(column), 0), 0))
    return missing.to_numpy(zero_copy_only=False)


def score_documents(
    collection: Collection, lexical: Bm25 | None = None, part: LexicalPart | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """For each query, by system the score of every document, `[N]`; −∞ where the system does not retrieve it.

    Args:
        collection: the embedded catalogue and queries.
        lexical: BM25 of the same catalogue, which then is a system too. It retrieves only documents that share a word
            with the query. The run retrieves no document without any input, as the exported retriever does.
        part: what is added to the cosines in the hybrid system, which needs `lexical`.
    """
    present = np.any(collection.document_embeddings != 0, axis=1)
    rows = cosine_rows(collection.query_embeddings, collection.document_embeddings)
    cosines = (np.where(present, row, -np.inf) for row in rows)
    if lexical is None or part is None:
        yield from ({MODEL: row} for row in cosines)
        return
    queries = collection.judged.queries["query"]
    for cosine, words, added in zip(cosines, lexical.rows(queries), part.rows(queries), strict=True):
        yield {MODEL: cosine, LEXICAL: np.where(words > 0, words, -np.inf), HYBRID: cosine + added}


def rank_documents(
    judged: Judgements, rows: Iterable[dict[str, np.ndarray]], title: str = "scoring the catalogue"
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Ranks the whole catalogue for each query.

    Args:
        judged: J judged pairs of Q queries.
        rows: for each query, by system the score of every document (`score_documents`).
        title: of the progress bar.

    Returns:
        By system the score of each judged pair, float `[J]` (−1 if not retrieved), and the first `DEPTH` documents of
        each query, int `[Q, DEPTH]`, −1 where there are no more.
    """
    scores: dict[str, np.ndarray] = defaultdict(lambda: np.empty(len(judged.query)))
    retrieved: dict[str, list[np.ndarray]] = defaultdict(list)
    by_query = judged.by_query()
    for pairs, systems in zip(by_query, track(rows, title, len(by_query)), strict=True):
        for system, row in systems.items():
            scores[system][pairs] = np.nan_to_num(row[judged.document[pairs]], neginf=-1.0)
            retrieved[system].append(top_k(row, DEPTH))
    return dict(scores), {system: np.stack(ranked) for system, ranked in retrieved.items()}
