"""The analysis of a run beyond its metrics: weights, importance, embedding space and worst queries."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from q2s_tf.cli import console
from q2s_tf.evaluation.advice import DECISIVE
from q2s_tf.evaluation.collection import LEXICAL, MODEL
from q2s_tf.evaluation.judgements import Judgements
from q2s_tf.evaluation.results import RunEvaluation
from q2s_tf.report.channels import read_channels, take_rows
from q2s_tf.report.embedding_space import mean_cosine, near_duplicates
from q2s_tf.report.fusion_weights import (
    SHORT,
    compare_means,
    group_by_length,
    group_by_missing,
    mean_weights,
)
from q2s_tf.report.importance import measure_importance, weight_agreement
from q2s_tf.training.callbacks import read_history

MAX_QUERIES, MAX_DOCUMENTS = 1_000, 8_000
"""Rows whose channel vectors are computed. The judged documents come first."""
MAX_COMPARED = 60_000
"""Documents among which near-duplicates are looked for."""
DUPLICATE_COSINE = 0.99
SHOWN_GROUPS, SHOWN_TITLES = 15, 6
"""Groups of near-duplicates in the report, and titles of each."""
WORST, CHANGED, SHOWN_RESULTS = 12, 5, 5
"""Worst queries in the report, queries won and lost, and documents of each."""


@dataclass(frozen=True)
class Analysis:
    """The content of `insight.json`, except the findings.

    Attributes:
        curves: the epochs in `RUN/metrics.jsonl`.
        sampled: numbers of queries, documents and judged pairs for weights and importance.
        query_weights: mean fusion weights of queries by length.
        document_weights: mean fusion weights of documents by missing channel.
        short_queries: by kind of channel, the mean weight on short and on longer queries (`compare_means`).
        full: ROC AUC and recall@10 of the sample with all channels.
        importance: importance of each channel (`measure_importance`).
        agreement: rank correlation of the weights and the importance of channels, by tower (`weight_agreement`).
        image_channels: channels of the document tower that read vectors.
        missing: by input of a channel, the share of the catalogue without it.
        spread: mean cosine of two random documents; near 1 all embeddings are alike.
        duplicates: near-duplicates: numbers of documents that were `compared`, of `documents` in groups and of
            `groups`; `largest`, the `size` and `titles` of the largest groups.
        worst: the queries with the lowest recall (`find_worst_queries`).
        changed: the queries `won` and `lost` against the best other system (`find_changed_queries`).
    """

    curves: list[dict[str, Any]]
    sampled: dict[str, int]
    query_weights: list[dict[str, Any]]
    document_weights: list[dict[str, Any]]
    short_queries: dict[str, dict[str, float]]
    full: dict[str, float]
    importance: list[dict[str, Any]]
    agreement: dict[str, float]
    image_channels: list[str]
    missing: dict[str, float]
    spread: float
    duplicates: dict[str, Any]
    worst: list[dict[str, Any]]
    changed: dict[str, list[dict[str, Any]]]


def analyse(evaluation: RunEvaluation) -> Analysis:
    """Analyses an evaluated run."""
    config = evaluation.towers.config
    generator = np.random.default_rng(config.seed)
    document_rows, judged = _sample(evaluation, generator)
    with console.status("computing channel vectors"):
        table = take_rows(evaluation.table, document_rows)
        columns = {name: table[name].to_pylist() for name in config.tower_inputs("document")}
        documents = read_channels(evaluation.towers.document, columns)
        queries = read_channels(evaluation.towers.query, judged.queries)
    full, importance = measure_importance(queries, documents, judged, evaluation.grades, config.seed)
    lengths = group_by_length(judged.queries["query"])
    short, longer = lengths[SHORT], np.any([rows for name, rows in lengths.items() if name != SHORT], axis=0)
    kinds = np.array([evaluation.towers.query.channels[name].kind for name in queries.names])
    read = {channel.input for channel in config.tower_channels("document").values()}
    history = read_history(evaluation.run / "metrics.jsonl")
    return Analysis(
        curves=[entry for entry in history if entry["epoch"]],
        sampled={
            "queries": len(judged.queries["query"]),
            "documents": len(document_rows),
            "pairs": len(judged.query),
        },
        query_weights=mean_weights(queries, lengths),
        document_weights=mean_weights(documents, group_by_missing(documents)),
        short_queries={
            kind: compare_means(*(queries.weights[rows][:, kinds == kind].sum(axis=1) for rows in (short, longer)))
            for kind in ("trigrams", "text")
            if kind in kinds
        },
        full=full,
        importance=importance,
        agreement=weight_agreement(importance),
        image_channels=[name for name, each in config.tower_channels("document").items() if each.kind == "vectors"],
        missing={name: float(missing.mean()) for name, missing in evaluation.missing.items() if name in read},
        spread=mean_cosine(evaluation.document_embeddings),
        duplicates=_find_duplicates(evaluation, generator),
        worst=find_worst_queries(evaluation),
        changed=find_changed_queries(evaluation),
    )


def _sample(evaluation: RunEvaluation, generator: np.random.Generator) -> tuple[np.ndarray, Judgements]:
    """Documents, as sorted rows, and judged pairs of these documents and of some queries.

    The queries are random ones with all their judged documents; other random documents fill up the sample.
    """
    judged = evaluation.judged
    by_query = judged.by_query()
    queries: list[int] = []
    documents: set[int] = set()
    for query in generator.permutation(np.unique(judged.query))[:MAX_QUERIES]:
        more = documents.union(judged.document[by_query[query]].tolist())
        if queries and len(more) > MAX_DOCUMENTS:
            break
        documents = more
        queries.append(int(query))
    others = np.setdiff1d(np.arange(len(evaluation.documents)), list(documents))
    added = generator.choice(others, min(len(others), max(0, MAX_DOCUMENTS - len(documents))), replace=False)
    document_rows = np.sort([*documents, *added]).astype(int)
    part = judged.select(np.concatenate([by_query[query] for query in queries]))
    query_rows, query = np.unique(part.query, return_inverse=True)
    return document_rows, replace(
        part,
        queries={name: [column[row] for row in query_rows] for name, column in judged.queries.items()},
        query=query,
        document=np.searchsorted(document_rows, part.document),
    )


def _name(evaluation: RunEvaluation, row: int) -> dict[str, str]:
    return {name: evaluation.documents[name][int(row)].as_py() or "" for name in ("document_id", "title")}


def _find_duplicates(evaluation: RunEvaluation, generator: np.random.Generator) -> dict[str, Any]:
    count = len(evaluation.documents)
    rows = np.sort(generator.choice(count, min(count, MAX_COMPARED), replace=False))
    groups = near_duplicates(evaluation.document_embeddings[rows], DUPLICATE_COSINE)
    largest = []
    for group in groups[:SHOWN_GROUPS]:
        ids: dict[str, list[str]] = {}
        for document in (_name(evaluation, rows[row]) for row in group):
            ids.setdefault(document["title"], []).append(document["document_id"])
        most_frequent = sorted(ids.items(), key=lambda item: -len(item[1]))
        titles = [{"title": title, "count": len(same), "document_id": same[0]} for title, same in most_frequent]
        largest.append({"size": len(group), "titles": titles[:SHOWN_TITLES]})
    counts = {"compared": len(rows), "documents": sum(map(len, groups)), "groups": len(groups)}
    return {**counts, "largest": largest}


def find_worst_queries(evaluation: RunEvaluation, count: int = WORST) -> list[dict[str, Any]]:
    """The queries with the lowest recall@10 of the run relative to the highest possible value.

    A query with more than ten relevant documents cannot reach a recall@10 of 1. Queries that reach their highest
    possible value are left out. Ties are sorted by recall@100, then by the number of relevant documents, largest first.

    Returns:
        For each its `query` and `country`; by system the `recall` at 10, and the highest `possible` one; the number of
        `wanted` (relevant) documents; `came`, the first retrieved documents, and `should`, the relevant ones with the
        highest grades. A document has `document_id`, `title`, `rank` (None beyond the first 100) and `grade` (None if
        not judged).
    """
    judged, metrics = evaluation.judged, evaluation.metrics.per_query
    wanted_pairs = judged.relevant(evaluation.grades[1])
    wanted = np.bincount(judged.query[wanted_pairs], minlength=len(judged.queries["query"]))
    possible = np.minimum(1, 10 / np.maximum(wanted, 1))
    reached = np.nan_to_num(metrics[MODEL]["recall@10"] / possible, nan=1.0)
    order = np.lexsort((-wanted, metrics[MODEL]["recall@100"], reached))
    by_query, worst = judged.by_query(), []
    for query in order[reached[order] < 1 - 1e-6][:count]:
        pairs = by_query[query]
        grades = dict(zip(judged.document[pairs].tolist(), judged.relevance[pairs].tolist(), strict=True))
        ranks = {int(row): rank for rank, row in enumerate(evaluation.retrieved[MODEL][query], 1) if row >= 0}
        relevant = judged.document[pairs[wanted_pairs[pairs]]].tolist()
        relevant.sort(key=lambda row: (-grades[row], ranks.get(row, len(ranks) + 1)))
        came, should = (
            [{**_name(evaluation, row), "rank": ranks.get(row), "grade": grades.get(row)} for row in rows]
            for rows in (list(ranks)[:SHOWN_RESULTS], relevant[:SHOWN_RESULTS])
        )
        entry = {name: values[query] for name, values in judged.queries.items()}
        recall = {name: float(metrics[name]["recall@10"][query]) for name in (MODEL, LEXICAL)}
        entry |= {"recall": recall, "possible": float(possible[query]), "wanted": int(wanted[query])}
        worst.append({**entry, "came": came, "should": should})
    return worst


def find_changed_queries(evaluation: RunEvaluation) -> dict[str, list[dict[str, Any]]]:
    """The queries that the run won and lost by most against the system that the advice compares it with.

    Returns:
        `won` and `lost`. A query has `query`, `country`; `recall`, recall@10 by system; and `came`, the first retrieved
        documents by system, each with `document_id`, `title` and `grade` (None if not judged).
    """
    judged, metrics, by_query = evaluation.judged, evaluation.metrics, evaluation.judged.by_query()
    ours, other = evaluation.results["advice"]["ours"], evaluation.results["advice"]["other"]

    def describe(query: int) -> dict[str, Any]:
        pairs = by_query[query]
        grades = dict(zip(judged.document[pairs].tolist(), judged.relevance[pairs].tolist(), strict=True))
        first = {system: evaluation.retrieved[system][query, :SHOWN_RESULTS].tolist() for system in (ours, other)}
        return {
            **{column: values[query] for column, values in judged.queries.items()},
            "recall": {system: float(metrics.per_query[system][DECISIVE][query]) for system in first},
            "came": {
                system: [{**_name(evaluation, row), "grade": grades.get(row)} for row in rows if row >= 0]
                for system, rows in first.items()
            },
        }

    won, lost = metrics.movers(DECISIVE, other, ours, CHANGED)
    return {"won": [describe(query) for query in won], "lost": [describe(query) for query in lost]}
