"""Everything a report says beyond the metrics: computed once, from an evaluation."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from q2s_tf.cli import console
from q2s_tf.evaluation.evaluation import Evaluation
from q2s_tf.report.catalogue import Hubness, draw_map, measure_hubness, name_clusters, near_duplicates
from q2s_tf.report.channels import ChannelVectors, read_channels, take_rows
from q2s_tf.report.importance import Importance, Pairs, measure_importance
from q2s_tf.report.weights import GroupWeights, mean_weights, weights_by_length, weights_by_missing
from q2s_tf.report.worst import WorstQuery, worst_queries

MAX_QUERIES = 1_000
MAX_DOCUMENTS = 8_000
"""Rows whose channel vectors are looked into; the judged documents come first."""
MAX_COMPARED = 60_000
"""Documents among which near-duplicates are looked for."""
MAX_DRAWN = 2_000
"""Documents on the map."""
DUPLICATE_COSINE = 0.99
SHOWN_GROUPS, NAMED = 15, 6
"""Groups of near-duplicates that are shown, and titles of each that are named."""
CLUSTERS = 10
COLOURS = 8
"""Values of a column that have a colour of their own on the map; the rest is "other"."""


@dataclass(frozen=True)
class Map:
    """The catalogue in the plane: places `[N, 2]`, what each dot is coloured by, and its title."""

    coloured_by: str
    places: list[list[float]]
    groups: list[str]
    titles: list[str]


@dataclass(frozen=True)
class Duplicates:
    """Near-duplicates: how many documents were compared, how many are in how many groups, the largest groups."""

    compared: int
    documents: int
    groups: int
    largest: list[dict[str, Any]]


@dataclass(frozen=True)
class Study:
    """What is known about a run besides its metrics.

    Attributes:
        curves: the lines of `RUN/metrics.jsonl`, the last of each epoch.
        sampled: how many queries, documents and judged pairs the weights and the importance come from.
        query_weights: mean fusion weights of queries: "all", "length", "country"; nothing of a fusion without weights.
        document_weights: of documents: "all", "language", "country", "missing"; likewise.
        full: ROC AUC and recall@10 of the sample with every channel.
        importance: what each channel is worth.
        missing: by input that a channel reads, the share of the catalogue that lacks it.
        spread: mean cosine of two documents drawn at random; near 1 all vectors are alike.
        hubness: of the first ten results.
        hubs: titles of the hubs.
        duplicates: near-duplicates in the catalogue.
        map: the catalogue in the plane.
        worst: the queries that were answered worst.
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
    duplicates: Duplicates
    map: Map
    worst: list[WorstQuery]


def study(evaluation: Evaluation) -> Study:
    """Looks into a run: weights, importance, the catalogue, the worst queries."""
    seed = evaluation.towers.config.seed
    generator = np.random.default_rng(seed)
    queries, documents, pairs, rows = _sample(evaluation, generator)
    with console.status("taking channels away"):
        full, importance = measure_importance(queries, documents, pairs, seed)
    asked = [evaluation.judged.queries["query"][row] for row in rows["query"]]
    countries = [evaluation.judged.queries["country"][row] for row in rows["query"]]
    columns = {
        name: [evaluation.documents[name][int(row)].as_py() for row in rows["document"]]
        for name in ("language", "country")
    }
    weighed = evaluation.towers.config.fusion == "attention"
    hubness = measure_hubness(evaluation.found["q2s_tf"].tolist(), len(evaluation.documents))
    return Study(
        curves=read_curves(evaluation.run),
        sampled={"queries": len(asked), "documents": len(rows["document"]), "pairs": len(pairs.query)},
        query_weights={
            "all": mean_weights(queries, ["all"] * len(asked)),
            "length": weights_by_length(queries, asked),
            "country": mean_weights(queries, countries),
        }
        if weighed
        else {},
        document_weights={
            "all": mean_weights(documents, ["all"] * len(rows["document"])),
            "missing": weights_by_missing(documents),
            **{name: mean_weights(documents, column) for name, column in columns.items()},
        }
        if weighed
        else {},
        full=full,
        importance=importance,
        missing={
            name: float(missing.mean())
            for name, missing in evaluation.missing.items()
            if name in evaluation.towers.document.required
        },
        spread=_mean_cosine(evaluation.document_embeddings),
        hubness=hubness,
        hubs=[{**_named(evaluation, row), "queries": count} for row, count in hubness.hubs],
        duplicates=_find_duplicates(evaluation, generator),
        map=_draw(evaluation, generator, seed),
        worst=worst_queries(evaluation),
    )


def read_curves(run: Path) -> list[dict[str, Any]]:
    """The figures of each epoch of a training, from `metrics.jsonl`; none if there is no such file.

    An epoch that was trained twice, because a training was cut short and resumed, counts with its last figures.
    """
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    epochs = {(line["stage"], line["epoch"]): line for line in lines if "epoch" in line}
    return [epochs[key] for key in sorted(epochs)]


def _sample(
    evaluation: Evaluation, generator: np.random.Generator
) -> tuple[ChannelVectors, ChannelVectors, Pairs, dict[str, np.ndarray]]:
    """Channel vectors of whole queries with all their judged documents, and of other documents up to the limit."""
    judged = evaluation.judged
    by_query = judged.by_query()
    chosen: list[int] = []
    pairs: list[np.ndarray] = []
    documents: set[int] = set()
    for query in generator.permutation([at for at, own in enumerate(by_query) if len(own)]):
        wanted = documents.union(judged.document[by_query[query]].tolist())
        if len(chosen) == MAX_QUERIES or (chosen and len(wanted) > MAX_DOCUMENTS):
            break
        documents = wanted
        chosen.append(int(query))
        pairs.append(by_query[query])
    others = np.setdiff1d(np.arange(len(evaluation.documents)), list(documents))
    more = generator.choice(others, min(len(others), max(0, MAX_DOCUMENTS - len(documents))), replace=False)
    rows = {"query": np.sort(chosen), "document": np.sort(np.concatenate([np.array(list(documents), int), more]))}
    pair = np.concatenate(pairs)
    with console.status("looking into the towers"):
        names = evaluation.towers.document.preprocessor.inputs
        table = take_rows(evaluation.table, rows["document"])
        answers = read_channels(evaluation.towers.document, {name: table[name].to_pylist() for name in names})
        asked = {name: [column[row] for row in rows["query"]] for name, column in judged.queries.items()}
        questions = read_channels(evaluation.towers.query, asked)
    sampled = Pairs(
        np.searchsorted(rows["query"], judged.query[pair]),
        np.searchsorted(rows["document"], judged.document[pair]),
        evaluation.relevant[pair],
        evaluation.recall_relevant[pair],
    )
    return questions, answers, sampled, rows


def _mean_cosine(embeddings: np.ndarray) -> float:
    """Mean cosine of two different rows: (|Σ x|² − Σ |x|²) / (N (N − 1))."""
    rows = len(embeddings)
    if rows < 2:
        return 0.0
    total = float(np.square(embeddings.sum(axis=0, dtype=np.float64)).sum())
    return (total - float(np.square(embeddings, dtype=np.float64).sum())) / (rows * (rows - 1))


def _named(evaluation: Evaluation, row: int) -> dict[str, str]:
    names = ("document_id", "title")
    return {name: evaluation.documents[name][int(row)].as_py() or "" for name in names}


def _find_duplicates(evaluation: Evaluation, generator: np.random.Generator) -> Duplicates:
    embeddings = evaluation.document_embeddings
    rows = np.sort(generator.choice(len(embeddings), min(len(embeddings), MAX_COMPARED), replace=False))
    groups = near_duplicates(embeddings[rows], DUPLICATE_COSINE)
    largest = [
        {"size": len(group), "titles": _distinct([_named(evaluation, rows[row]) for row in group])}
        for group in groups[:SHOWN_GROUPS]
    ]
    return Duplicates(len(rows), sum(map(len, groups)), len(groups), largest)


def _distinct(documents: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The titles of a group, the most frequent first, with how many documents have them and the id of the first."""
    by_title: dict[str, list[str]] = {}
    for document in documents:
        by_title.setdefault(document["title"], []).append(document["document_id"])
    found: list[dict[str, Any]] = [
        {"title": title, "count": len(ids), "document_id": ids[0]} for title, ids in by_title.items()
    ]
    return sorted(found, key=lambda each: -each["count"])[:NAMED]


def _draw(evaluation: Evaluation, generator: np.random.Generator, seed: int) -> Map:
    rows = np.sort(
        generator.choice(len(evaluation.documents), min(len(evaluation.documents), MAX_DRAWN), replace=False)
    )
    titles = [_named(evaluation, row)["title"] for row in rows]
    embeddings = evaluation.document_embeddings[rows]
    languages = [evaluation.documents["language"][int(row)].as_py() for row in rows]
    with console.status("drawing the map"):
        places = draw_map(embeddings, seed)
        if len(set(languages) - {None}) > 1:
            return Map("language", places.tolist(), _common(languages), titles)
        return Map("cluster", places.tolist(), name_clusters(embeddings, titles, CLUSTERS, seed), titles)


def _common(values: list[str | None]) -> list[str]:
    """Values as groups: the most frequent ones by name, "other" and "unknown"."""
    known = [value for value in values if value]
    frequent = sorted(set(known), key=lambda value: (-known.count(value), value))[:COLOURS]
    return [("unknown" if not value else value if value in frequent else "other") for value in values]
