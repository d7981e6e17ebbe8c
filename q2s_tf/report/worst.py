"""The queries that were answered worst: what came back, and what should have."""

from dataclasses import dataclass

import numpy as np

from q2s_tf.evaluation.evaluation import LEXICAL, MODEL, Evaluation

SHOWN = 5


@dataclass(frozen=True)
class Result:
    """A document of a query: its rank (None beyond the first 100), its judged grade (None if it was not judged)."""

    document_id: str
    title: str
    rank: int | None
    grade: float | None


@dataclass(frozen=True)
class WorstQuery:
    """A query with its recall by system, the first documents that came back and the best that should have."""

    query: str
    country: str | None
    recall: dict[str, float]
    wanted: int
    came: list[Result]
    should: list[Result]


def worst_queries(evaluation: Evaluation, count: int = 12) -> list[WorstQuery]:
    """The queries of lowest recall@10 of the model, then lowest recall@100, then most wanted documents."""
    figures = evaluation.per_query[MODEL]
    judged = evaluation.judged
    wanted = np.bincount(judged.query[evaluation.recall_relevant], minlength=len(judged.queries["query"]))
    order = np.lexsort((-wanted, figures["recall@100"], figures["recall@10"]))
    usable = [int(query) for query in order if wanted[query] and not np.isnan(figures["recall@10"][query])]
    by_query = judged.by_query()
    return [_describe(evaluation, query, by_query[query], int(wanted[query])) for query in usable[:count]]


def _describe(evaluation: Evaluation, query: int, pairs: np.ndarray, wanted: int) -> WorstQuery:
    judged = evaluation.judged
    grades = dict(zip(judged.document[pairs].tolist(), judged.relevance[pairs].tolist(), strict=True))
    found = [int(row) for row in evaluation.found[MODEL][query] if row >= 0]
    relevant = judged.document[pairs[evaluation.recall_relevant[pairs]]].tolist()
    ranks = {row: at + 1 for at, row in enumerate(found)}
    should = sorted(relevant, key=lambda row: (-grades[row], ranks.get(row, len(found) + 1)))

    def result(row: int) -> Result:
        name, title = (evaluation.documents[column][row].as_py() or "" for column in ("document_id", "title"))
        return Result(name, title, ranks.get(row), grades.get(row))

    return WorstQuery(
        judged.queries["query"][query] or "",
        judged.queries["country"][query],
        {system: float(evaluation.per_query[system]["recall@10"][query]) for system in (MODEL, LEXICAL)},
        wanted,
        [result(row) for row in found[:SHOWN]],
        [result(row) for row in should[:SHOWN]],
    )
