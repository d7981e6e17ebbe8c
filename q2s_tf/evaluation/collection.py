"""A test collection, embedded by the towers of a run: catalogue, queries and judged pairs; and its rankings."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
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

LEXICAL, ENCODER, FUSED = "BM25", "encoder", "encoder + BM25"
"""Names of the systems without training: BM25, a pretrained encoder as it is, and both."""
MODEL, INDEX, HYBRID = "q2s_tf", "q2s_tf index", "q2s_tf + BM25"
"""Names of the systems of a run: its embeddings by exact search, by an exported index, and with BM25 added."""
SYSTEMS = (LEXICAL, ENCODER, FUSED, MODEL, INDEX, HYBRID)
"""The rows of a table of systems, in order."""
DEPTH = 100
"""Documents that are kept of each ranking."""
ROWS, TITLES_AT_ONCE = 8_192, 1_024
HYBRIDS = {MODEL: HYBRID, ENCODER: FUSED}
"""The hybrid system of each system that has cosines."""
TEXTS = ("document_id", "title", "description", "language", "country")

Grades = tuple[float, float]
"""The lowest relevant grade: in ROC AUC, and in recall and MRR."""
Embeddings = tuple[np.ndarray, np.ndarray]
"""Unit vectors of the queries `[Q, D]` and of the documents `[N, D]`."""


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


def embed_titles(encoder: Towers, collection: Collection) -> Embeddings:
    """Embeds the queries and the titles of a collection by an encoder (`preset_towers`)."""
    titles = collection.documents.select(["title"]).to_batches(TITLES_AT_ONCE)
    batches = track(titles, "embedding titles by the unmodified encoder", len(titles))
    documents = [encode(encoder.document, batch)["embedding"] for batch in batches]
    return encode(encoder.query, collection.judged.queries)["embedding"], np.concatenate(documents)


def score_documents(collection: Collection, encoder: Embeddings | None = None) -> Iterator[dict[str, np.ndarray]]:
    """For each query, by system its cosine with every document, `[N]`.

    It is −∞ for documents without any input, which the exported retriever leaves out.

    Args:
        collection: the embedded catalogue and queries.
        encoder: the embeddings of an unmodified encoder, which then is a system too.
    """
    embeddings = {MODEL: (collection.query_embeddings, collection.document_embeddings)}
    embeddings |= {ENCODER: encoder} if encoder else {}
    present = [np.any(documents != 0, axis=1) for _, documents in embeddings.values()]
    for rows in zip(*(cosine_rows(*pair) for pair in embeddings.values()), strict=True):
        masked = (np.where(mask, row, -np.inf) for mask, row in zip(present, rows, strict=True))
        yield dict(zip(embeddings, masked, strict=True))


def add_lexical(
    rows: Iterable[dict[str, np.ndarray]],
    queries: list[str | None],
    lexical: Bm25,
    part: LexicalPart,
    weights: Mapping[str, float],
) -> Iterator[dict[str, np.ndarray]]:
    """Adds BM25 and the hybrid systems to the cosines of `score_documents`.

        hybrid = cos + λ · BM25 / max BM25

    Args:
        rows: by system the cosines of each query.
        queries: the texts of the queries, `[Q]`.
        lexical: BM25, which retrieves only documents that share a word with the query.
        part: what a retriever adds to the cosines.
        weights: λ by hybrid system.
    """
    for cosines, words, added in zip(rows, lexical.rows(queries), part.rows(queries), strict=True):
        hybrids = {HYBRIDS[system]: row + weights[HYBRIDS[system]] * added for system, row in cosines.items()}
        yield {LEXICAL: np.where(words > 0, words, -np.inf), **cosines, **hybrids}


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
