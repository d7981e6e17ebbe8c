"""One score explained: which channels meet, through which 3-grams, and who else competes for the query."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.errors import InputError
from q2s_tf.models import Tower, embed_catalogue, load, read_ids
from q2s_tf.report.channels import ChannelVectors, read_channels, take_rows
from q2s_tf.report.contributions import contributions, trigram_contributions
from q2s_tf.tables import open_documents


@dataclass(frozen=True)
class Trigram:
    """One character 3-gram of a text and what it adds to the score.

    Attributes:
        channel: the 3-gram channel that reads it.
        trigram: three characters; a text is read as if a space stood before and after it.
        count: how often it occurs.
        contribution: what all its occurrences add to the score, at the fusion weights as they are.
        shared: whether a 3-gram channel of the other tower has it too.
    """

    channel: str
    trigram: str
    count: int
    contribution: float
    shared: bool


@dataclass(frozen=True)
class Side:
    """One tower's part in a score.

    Attributes:
        inputs: what it read; a set of vectors is told by its size.
        weights: by channel the fusion weight, None where the channel is missing.
        trigrams: strongest contribution first.
    """

    inputs: dict[str, str | None]
    weights: dict[str, float | None]
    trigrams: list[Trigram]


@dataclass(frozen=True)
class Match:
    """A document of the ranking, and by document channel what it adds to its score."""

    rank: int
    document_id: str
    title: str | None
    score: float
    contributions: dict[str, float]


@dataclass(frozen=True)
class Explanation:
    """A score and where it comes from.

    Attributes:
        score: cos(q, d).
        rank: of the document among all of the catalogue, from 1.
        documents: size of the catalogue.
        query: the query's side.
        document: the document's side.
        contributions: by query channel, by document channel; together they are the score.
        match: the document in the ranking.
        competitor: the document just above it, or just below the first; None in a catalogue of one.
        best: the first documents of the ranking.
    """

    score: float
    rank: int
    documents: int
    query: Side
    document: Side
    contributions: dict[str, dict[str, float]]
    match: Match
    competitor: Match | None
    best: list[Match]


def explain(run: Path, documents: Path, query: str, country: str | None, document_id: str, k: int = 5) -> Explanation:
    """Takes the score of a document for a query apart.

    Args:
        run: a trained run directory.
        documents: the catalogue.
        query: its text.
        country: the searcher's; None where unknown.
        document_id: the document in question.
        k: how many of the first documents to tell beside it.

    Raises:
        InputError: no trained run, one whose fusion does not sum its channels, no such document, a query without a
            channel, a table that breaks its contract.
    """
    open_documents(documents)
    towers = load(run)
    if towers.config.fusion != "attention":
        raise InputError(
            f"run {run}: a score is taken apart by the weights of its channels, which fusion = 'attention' has; got "
            f"'{towers.config.fusion}': what its channels are worth is in the report of tools/evaluate.py"
        )
    table = open_documents(documents, towers.document.preprocessor.inputs, towers.config.vector_inputs())
    asked: dict[str, str | None] = {"query": query, "country": country}
    question = read_channels(towers.query, {name: [value] for name, value in asked.items()})
    if not question.present.any():
        raise InputError(f"query {query!r}: no channel of this run can read anything of it: give another text")
    own = pc.index(read_ids(table), document_id).as_py()
    if own < 0:
        raise InputError(f"--document {document_id}: no such document_id among the {table.num_rows():,} of {documents}")
    _, embeddings = embed_catalogue(towers.document, table)
    order = np.argsort(-(embeddings @ question.embedding[0]), kind="stable")
    rank = int(np.flatnonzero(order == own)[0]) + 1
    rivals = order[[rank - 2]] if rank > 1 else order[1:2]
    rows = take_rows(table, [own, *rivals, *order[:k]])
    names = towers.document.preprocessor.inputs
    answers = read_channels(towers.document, {name: rows[name].to_pylist() for name in names})
    places = {int(place): at + 1 for at, place in enumerate(order)}
    matches = [
        _match(rows, row, places[int(place)], contributions(question, 0, answers, row), answers.names)
        for row, place in enumerate([own, *rivals, *order[:k]])
    ]
    parts = contributions(question, 0, answers, 0)
    own_inputs = {name: rows[name][0].as_py() for name in names}
    trigrams = _read_trigrams(
        (towers.query, question, asked, answers.embedding[0]),
        (towers.document, answers, own_inputs, question.embedding[0]),
    )
    return Explanation(
        score=matches[0].score,
        rank=rank,
        documents=len(order),
        query=Side(asked, _weights(question), trigrams[0]),
        document=Side({name: _told(value) for name, value in own_inputs.items()}, _weights(answers), trigrams[1]),
        contributions={
            name: dict(zip(answers.names, row.tolist(), strict=True))
            for name, row in zip(question.names, parts, strict=True)
        },
        match=matches[0],
        competitor=matches[1] if len(rivals) else None,
        best=matches[1 + len(rivals) :],
    )


def _match(rows: pa.Table, row: int, rank: int, parts: np.ndarray, channels: list[str]) -> Match:
    document_id, title = (rows[name][row].as_py() for name in ("document_id", "title"))
    by_channel = dict(zip(channels, parts.sum(axis=0).tolist(), strict=True))
    return Match(rank, document_id, title, float(parts.sum()), by_channel)


def _weights(channels: ChannelVectors) -> dict[str, float | None]:
    """Fusion weights of the first row."""
    pairs = zip(channels.names, channels.weights[0].tolist(), channels.present[0], strict=True)
    return {name: weight if there else None for name, weight, there in pairs}


def _told(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return f"{len(value)} vectors"


def _read_trigrams(*sides: tuple[Tower, ChannelVectors, dict[str, Any], np.ndarray]) -> list[list[Trigram]]:
    """The 3-grams of both sides; each side is a tower, its rows, the inputs of the first, the other embedding."""
    found = []
    for tower, channels, inputs, other in sides:
        texts = {
            name: inputs[channel.input]
            for name, channel in tower.preprocessor.channels.items()
            if channel.kind == "trigrams"
        }
        found.append(
            {name: trigram_contributions(tower, channels, 0, name, text, other) for name, text in texts.items() if text}
        )
    known = [{trigram for channel in side.values() for trigram in channel} for side in found]
    return [
        sorted(
            (
                Trigram(name, trigram, count, share, trigram in known[1 - at])
                for name, channel in side.items()
                for trigram, (count, share) in channel.items()
            ),
            key=lambda each: -each.contribution,
        )
        for at, side in enumerate(found)
    ]
