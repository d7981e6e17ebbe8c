"""The analysis of a run beyond its metrics: weights, importance, embedding space and worst queries."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from q2s_tf.cli import console
from q2s_tf.evaluation.collection import LEXICAL, MODEL
from q2s_tf.evaluation.results import RunEvaluation
from q2s_tf.report.channels import read_channels, take_rows
from q2s_tf.report.embedding_space import Hubness, draw_map, measure_hubness, name_clusters, near_duplicates
from q2s_tf.report.fusion_weights import GroupWeights, mean_weights, weights_by_length, weights_by_missing
from q2s_tf.report.importance import Importance, Pairs, measure_importance

MAX_QUERIES, MAX_DOCUMENTS = 1_000, 8_000
"""Rows whose channel vectors are computed. The judged documents come first."""
MAX_COMPARED = 60_000
"""Documents among which near-duplicates are looked for."""
MAX_DRAWN = 2_000
"""Documents on the map."""
DUPLICATE_COSINE = 0.99
SHOWN_GROUPS, SHOWN_TITLES = 15, 6
"""Groups of near-duplicates in the report, and titles of each."""
CLUSTERS, COLOURS = 10, 8
"""Clusters on the map if it is not coloured by language; languages with their own colour, the rest is "other"."""
WORST, SHOWN_RESULTS = 12, 5
"""Worst queries in the report, and documents of each."""


@dataclass(frozen=True)
class Analysis:
    """The content of `insight.json`, except the findings.

    Attributes:
        curves: the lines of `RUN/metrics.jsonl`, the last one of each epoch.
        sampled: numbers of queries, documents and judged pairs for weights and importance.
        query_weights: mean fusion weights of queries: "all", "length", "country".
        document_weights: of documents: "all", "language", "country", "missing".
        full: ROC AUC and recall@10 of the sample with all channels.
        importance: importance of each channel.
        missing: by input of a channel, the share of the catalogue without it.
        spread: mean cosine of two random documents; near 1 all embeddings are alike.
        hubness: of the first ten results.
        hubs: `document_id`, `title` and number of `queries` of the hubs.
        duplicates: near-duplicates: numbers of documents that were `compared`, of `documents` in groups and of
            `groups`; `largest`, the `size` and `titles` of the largest groups.
        map: the catalogue in two dimensions: `coloured_by`, "language" or "cluster"; `places`, the coordinates
            `[N, 2]`; `groups` and `titles` `[N]`.
        worst: the queries with the lowest recall (`find_worst_queries`).
    """

    curves: list[dict[str, Any]]
    sampled: dict[str, int]
    query_weights: dict[str, list[GroupWeights]]
    document_weights: dict[str, list[GroupWeights]]
    full: dict[str, float | None]
    importance: list[Importance]
    missing: dict[str, float]
    spread: float
    hubness: Hubness
    hubs: list[dict[str, Any]]
    duplicates: dict[str, Any]
    map: dict[str, Any]
    worst: list[dict[str, Any]]


def analyse(evaluation: RunEvaluation) -> Analysis:
    """Analyses an evaluated run."""
    config = evaluation.towers.config
    generator = np.random.default_rng(config.seed)
    query_rows, document_rows, pairs = _sample(evaluation, generator)
    with console.status("computing channel vectors"):
        table = take_rows(evaluation.table, document_rows)
        columns = {name: table[name].to_pylist() for name in config.tower_inputs("document")}
        documents = read_channels(evaluation.towers.document, columns)
        searches = {name: [column[row] for row in query_rows] for name, column in evaluation.judged.queries.items()}
        queries = read_channels(evaluation.towers.query, searches)
    with console.status("measuring the importance of channels"):
        full, importance = measure_importance(queries, documents, pairs, config.seed)
    query_weights = {
        "all": mean_weights(queries, ["all"] * len(query_rows)),
        "length": weights_by_length(queries, searches["query"]),
        "country": mean_weights(queries, searches["country"]),
    }
    document_weights = {
        "all": mean_weights(documents, ["all"] * len(document_rows)),
        "missing": weights_by_missing(documents),
        **{name: mean_weights(documents, evaluation.column(name)[document_rows]) for name in ("language", "country")},
    }
    read = {channel.input for channel in config.tower_channels("document").values()}
    hubness = measure_hubness(evaluation.retrieved[MODEL], len(evaluation.documents))
    return Analysis(
        curves=read_curves(evaluation.run),
        sampled={"queries": len(query_rows), "documents": len(document_rows), "pairs": len(pairs.query)},
        query_weights=query_weights,
        document_weights=document_weights,
        full=full,
        importance=importance,
        missing={name: float(missing.mean()) for name, missing in evaluation.missing.items() if name in read},
        spread=_mean_cosine(evaluation.document_embeddings),
        hubness=hubness,
        hubs=[{**_name(evaluation, row), "queries": count} for row, count in hubness.hubs],
        duplicates=_find_duplicates(evaluation, generator),
        map=_draw_map(evaluation, generator),
        worst=find_worst_queries(evaluation),
    )


def read_curves(run: Path) -> list[dict[str, Any]]:
    """The figures of each epoch of a training, from `metrics.jsonl`; empty without such a file.

    Of an epoch that occurs twice, because the training was resumed, the last figures count.
    """
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    epochs = {(line["stage"], line["epoch"]): line for line in lines if line.get("epoch")}
    return [epochs[key] for key in sorted(epochs)]


def _sample(evaluation: RunEvaluation, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, Pairs]:
    """Queries and documents, as sorted rows, and their judged pairs.

    The queries are random ones with all their judged documents; other random documents fill up the sample.
    """
    judged = evaluation.judged
    by_query = judged.by_query()
    queries: list[int] = []
    documents: set[int] = set()
    for query in generator.permutation(np.unique(judged.query)):
        more = documents.union(judged.document[by_query[query]].tolist())
        if len(queries) == MAX_QUERIES or (queries and len(more) > MAX_DOCUMENTS):
            break
        documents = more
        queries.append(int(query))
    others = np.setdiff1d(np.arange(len(evaluation.documents)), list(documents))
    added = generator.choice(others, min(len(others), max(0, MAX_DOCUMENTS - len(documents))), replace=False)
    query_rows, document_rows = np.sort(queries), np.sort([*documents, *added]).astype(int)
    pairs = np.concatenate([by_query[query] for query in queries])
    return (
        query_rows,
        document_rows,
        Pairs(
            np.searchsorted(query_rows, judged.query[pairs]),
            np.searchsorted(document_rows, judged.document[pairs]),
            evaluation.relevant[pairs],
            evaluation.recall_relevant[pairs],
        ),
    )


def _mean_cosine(embeddings: np.ndarray) -> float:
    """Mean cosine of two different rows: (|Σ x|² − Σ |x|²) / (N (N − 1))."""
    rows = len(embeddings)
    if rows < 2:
        return 0.0
    total = float(np.square(embeddings.sum(axis=0, dtype=np.float64)).sum())
    return (total - float(np.square(embeddings, dtype=np.float64).sum())) / (rows * (rows - 1))


def _name(evaluation: RunEvaluation, row: int) -> dict[str, str]:
    return {name: evaluation.documents[name][int(row)].as_py() or "" for name in ("document_id", "title")}


def _sample_rows(evaluation: RunEvaluation, generator: np.random.Generator, most: int) -> np.ndarray:
    count = len(evaluation.documents)
    return np.sort(generator.choice(count, min(count, most), replace=False))


def _find_duplicates(evaluation: RunEvaluation, generator: np.random.Generator) -> dict[str, Any]:
    rows = _sample_rows(evaluation, generator, MAX_COMPARED)
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


def _draw_map(evaluation: RunEvaluation, generator: np.random.Generator) -> dict[str, Any]:
    rows, seed = _sample_rows(evaluation, generator, MAX_DRAWN), evaluation.towers.config.seed
    titles = [title or "" for title in evaluation.column("title")[rows]]
    languages = Counter(evaluation.column("language")[rows].tolist())
    embeddings = evaluation.document_embeddings[rows]
    with console.status("drawing the map"):
        places = draw_map(embeddings, seed).tolist()
        if by_language := len(languages.keys() - {None}) > 1:
            del languages[None]
            named = {language: language for language, _ in languages.most_common(COLOURS)}
            groups = [named.get(name, "other") if name else "unknown" for name in evaluation.column("language")[rows]]
        else:
            groups = name_clusters(embeddings, titles, CLUSTERS, seed)
    coloured_by = "language" if by_language else "cluster"
    return {"coloured_by": coloured_by, "places": places, "groups": groups, "titles": titles}


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
    judged, metrics = evaluation.judged, evaluation.per_query[MODEL]
    wanted = np.bincount(judged.query[evaluation.recall_relevant], minlength=len(judged.queries["query"]))
    possible = np.minimum(1, 10 / np.maximum(wanted, 1))
    reached = np.nan_to_num(metrics["recall@10"] / possible, nan=1.0)
    order = np.lexsort((-wanted, metrics["recall@100"], reached))
    by_query, worst = judged.by_query(), []
    for query in order[reached[order] < 1 - 1e-6][:count]:
        pairs = by_query[query]
        grades = dict(zip(judged.document[pairs].tolist(), judged.relevance[pairs].tolist(), strict=True))
        ranks = {int(row): rank for rank, row in enumerate(evaluation.retrieved[MODEL][query], 1) if row >= 0}
        relevant = judged.document[pairs[evaluation.recall_relevant[pairs]]].tolist()
        relevant.sort(key=lambda row: (-grades[row], ranks.get(row, len(ranks) + 1)))
        came, should = (
            [{**_name(evaluation, row), "rank": ranks.get(row), "grade": grades.get(row)} for row in rows]
            for rows in (list(ranks)[:SHOWN_RESULTS], relevant[:SHOWN_RESULTS])
        )
        entry = {name: values[query] for name, values in judged.queries.items()}
        recall = {name: float(evaluation.per_query[name]["recall@10"][query]) for name in (MODEL, LEXICAL)}
        entry |= {"recall": recall, "possible": float(possible[query]), "wanted": int(wanted[query])}
        worst.append({**entry, "came": came, "should": should})
    return worst
