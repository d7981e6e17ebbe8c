"""Explanation of one score: the pairs of channels and the 3-grams that add to it, and the document's rank."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from q2s_tf.errors import InputError
from q2s_tf.models import Tower, embed_catalogue, load, read_ids
from q2s_tf.report.channels import ChannelVectors, read_channels, take_rows, trigram_texts, trigram_vectors
from q2s_tf.tables import open_documents

SHOWN_TRIGRAMS = 12
"""3-grams of each side that are printed; `--json` has all."""


@dataclass(frozen=True)
class Trigram:
    """A character 3-gram of a text, and what it adds to the score.

    Attributes:
        channel: the 3-gram channel that reads it.
        trigram: three characters; a space is added before and after each text.
        count: number of occurrences.
        contribution: what all its occurrences add to the score, at the given fusion weights.
        shared: whether a 3-gram channel of the other tower has it too.
    """

    channel: str
    trigram: str
    count: int
    contribution: float
    shared: bool


@dataclass(frozen=True)
class Side:
    """The part of one tower in a score.

    Attributes:
        inputs: the inputs; for vectors their number.
        weights: by channel the fusion weight, None where the channel is missing.
        trigrams: largest contribution first.
    """

    inputs: dict[str, str | None]
    weights: dict[str, float | None]
    trigrams: list[Trigram]


@dataclass(frozen=True)
class Match:
    """A document of the ranking, and by document channel what it adds to the score."""

    rank: int
    document_id: str
    title: str | None
    score: float
    contributions: dict[str, float]


@dataclass(frozen=True)
class Explanation:
    """A score and its parts.

    Attributes:
        score: cos(q, d).
        rank: rank of the document in the whole catalogue, from 1.
        documents: size of the catalogue.
        query: the side of the query.
        document: the side of the document.
        contributions: by query channel, by document channel; the sum is the score.
        match: the document in the ranking.
        competitor: the document one rank above it, or below if it is the first; None in a catalogue of one document.
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


def contributions(queries: ChannelVectors, query: int, documents: ChannelVectors, document: int) -> np.ndarray:
    """What each pair of channels adds to one score.

        cos(q, d) = Σᵢ Σⱼ aᵢ bⱼ φᵢ·ψⱼ / (|f| |g|)

    Args:
        queries: rows of the query tower, a and φ.
        query: index of the row.
        documents: rows of the document tower, b and ψ.
        document: index of the row.

    Returns:
        Float `[N_query, N_document]`; the sum is the score. 0 where a channel is missing.
    """
    return queries.weighted(query) @ documents.weighted(document).T


def trigram_contributions(
    tower: Tower, channels: ChannelVectors, row: int, name: str, text: str, other: np.ndarray
) -> dict[str, tuple[int, float]]:
    """What each 3-gram of a text adds to a score.

    The vector of a 3-gram channel is the sum of the embeddings E of its 3-grams g. At the given fusion weight aᵢ, its
    part of the score is therefore the sum of aᵢ E[g]·d̂ / |f|.

    Args:
        tower: the tower of the text.
        channels: rows of that tower.
        row: index of the row.
        name: the 3-gram channel.
        text: the raw text that the channel reads.
        other: the embedding of the other tower, `[D]`.

    Returns:
        By 3-gram the number of occurrences and the contribution.
    """
    trigrams, vectors = trigram_vectors(tower, name, text)
    length = np.linalg.norm(channels.weights[row] @ channels.vectors[row])
    shares = channels.weights[row, channels.names.index(name)] / max(length, 1e-6) * (vectors @ other)
    sums: dict[str, tuple[int, float]] = {}
    for trigram, share in zip(trigrams, shares.tolist(), strict=True):
        count, total = sums.get(trigram, (0, 0.0))
        sums[trigram] = (count + 1, total + share)
    return sums


def explain(run: Path, documents: Path, query: str, country: str | None, document_id: str, k: int = 5) -> Explanation:
    """Explains the score of a document for a query.

    Args:
        run: a trained run directory.
        documents: the catalogue.
        query: text of the query.
        country: country of the searcher; None if unknown.
        document_id: the document.
        k: number of first documents in the explanation.

    Raises:
        InputError: no trained run, no such document, a query without a channel, a table that breaks its contract.
    """
    open_documents(documents)
    towers = load(run)
    names = towers.config.tower_inputs("document")
    table = open_documents(documents, names, towers.config.vector_inputs())
    query_inputs: dict[str, str | None] = {"query": query, "country": country}
    queries = read_channels(towers.query, {name: [value] for name, value in query_inputs.items()})
    if not queries.present.any():
        raise InputError(f"query {query!r}: every channel of this run is missing for it: give another text")
    target = pc.index(read_ids(table), document_id).as_py()
    if target < 0:
        raise InputError(f"--document {document_id}: no such document_id among the {table.num_rows():,} of {documents}")
    order = np.argsort(-(embed_catalogue(towers.document, table)[1] @ queries.embedding[0]), kind="stable")
    ranks = np.argsort(order) + 1
    rank = int(ranks[target])
    competitors = order[[rank - 2]] if rank > 1 else order[1:2]
    numbers = [target, *competitors, *order[:k]]
    rows = take_rows(table, numbers)
    answers = read_channels(towers.document, {name: rows[name].to_pylist() for name in names})
    matches = []
    for row, number in enumerate(numbers):
        parts = contributions(queries, 0, answers, row)
        by_channel = dict(zip(answers.names, parts.sum(axis=0).tolist(), strict=True))
        document = rows.slice(row, 1).to_pylist()[0]
        matches.append(
            Match(int(ranks[number]), document["document_id"], document["title"], float(parts.sum()), by_channel)
        )
    inputs = {name: rows[name][0].as_py() for name in names}
    query_sums = _sum_trigrams(towers.query, queries, query_inputs, answers.embedding[0])
    document_sums = _sum_trigrams(towers.document, answers, inputs, queries.embedding[0])
    shown = {
        name: f"{len(value)} vectors" if value is not None and not isinstance(value, str) else value
        for name, value in inputs.items()
    }
    return Explanation(
        score=matches[0].score,
        rank=rank,
        documents=len(order),
        query=Side(query_inputs, _weights(queries), _list_trigrams(query_sums, document_sums)),
        document=Side(shown, _weights(answers), _list_trigrams(document_sums, query_sums)),
        contributions={
            name: dict(zip(answers.names, row.tolist(), strict=True))
            for name, row in zip(queries.names, contributions(queries, 0, answers, 0), strict=True)
        },
        match=matches[0],
        competitor=matches[1] if len(competitors) else None,
        best=matches[1 + len(competitors) :],
    )


Sums = dict[str, dict[str, tuple[int, float]]]


def _sum_trigrams(tower: Tower, channels: ChannelVectors, inputs: dict[str, Any], other: np.ndarray) -> Sums:
    """By 3-gram channel the contributions in the first row."""
    texts = trigram_texts(tower, inputs)
    return {name: trigram_contributions(tower, channels, 0, name, text, other) for name, text in texts.items()}


def _list_trigrams(own: Sums, other: Sums) -> list[Trigram]:
    shared = {trigram for channel in other.values() for trigram in channel}
    trigrams = [
        Trigram(name, trigram, count, share, trigram in shared)
        for name, channel in own.items()
        for trigram, (count, share) in channel.items()
    ]
    return sorted(trigrams, key=lambda trigram: -trigram.contribution)


def _weights(channels: ChannelVectors) -> dict[str, float | None]:
    """Fusion weights of the first row."""
    rows = zip(channels.names, channels.weights[0].tolist(), channels.present[0], strict=True)
    return {name: weight if present else None for name, weight, present in rows}


def print_explanation(explanation: Explanation, console: Console) -> None:
    """Prints an explanation as tables: contributions of channels, 3-grams, ranking."""
    match, query, document = explanation.match, explanation.query, explanation.document
    console.print(Text(f"{query.inputs['query']}  →  {match.document_id}  {match.title or '(no title)'}", "bold"))
    console.print(f"score {explanation.score:.4f}, rank {explanation.rank:,} of {explanation.documents:,} documents\n")
    console.print(_contributions_table(explanation))
    for trigrams, tower, other in ((query.trigrams, "query", "document"), (document.trigrams, "document", "query")):
        if trigrams:
            console.print(_trigrams_table(trigrams, f"3-grams of the {tower} (● also in the {other})"))
    console.print(_ranking_table(explanation))


def _contributions_table(explanation: Explanation) -> RichTable:
    """One row per query channel and one column per document channel; the total is the score."""
    table = RichTable(
        title="Contribution of each pair of channels to the score", title_justify="left", show_footer=True
    )
    table.add_column("query channel (weight)", "all", no_wrap=True)

    def heading(name: str, weight: float | None) -> str:
        return f"{name} ({'missing' if weight is None else f'{weight:.2f}'})"

    for column, weight in explanation.document.weights.items():
        total = "–" if weight is None else f"{explanation.match.contributions[column]:+.4f}"
        table.add_column(heading(column, weight).replace(" ", "\n"), total, justify="right")
    table.add_column("all", f"{explanation.score:+.4f}", justify="right")
    for name, row in explanation.contributions.items():
        weight = explanation.query.weights[name]
        missing = [weight is None or explanation.document.weights[column] is None for column in row]
        cells = ["–" if none else f"{value:+.4f}" for none, value in zip(missing, row.values(), strict=True)]
        table.add_row(heading(name, weight), *cells, "–" if weight is None else f"{sum(row.values()):+.4f}")
    return table


def _trigrams_table(trigrams: list[Trigram], title: str) -> RichTable:
    if len(trigrams) > SHOWN_TRIGRAMS:
        title += f", the first {SHOWN_TRIGRAMS} of {len(trigrams)}"
    table = RichTable("3-gram", "channel", title=title, title_justify="left", min_width=len(title) + 2)
    for heading in ("count", "contribution", ""):
        table.add_column(heading, justify="right")
    for row in trigrams[:SHOWN_TRIGRAMS]:
        trigram = Text(row.trigram.replace(" ", "␣"))
        table.add_row(trigram, row.channel, str(row.count), f"{row.contribution:+.4f}", "●" if row.shared else "")
    return table


def _ranking_table(explanation: Explanation) -> RichTable:
    """The first documents, the explained document and its competitor, with the contributions of their channels."""
    caption = "→ the explained document   ◀ its nearest competitor"
    table = RichTable(title="Ranking, and contribution of each document channel", title_justify="left", caption=caption)
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("document", min_width=24, max_width=40, overflow="ellipsis", no_wrap=True)
    table.add_column("score", justify="right")
    for name in explanation.match.contributions:
        table.add_column(name.replace("_", "_\n"), justify="right", min_width=6, overflow="fold")
    competitor = [explanation.competitor] if explanation.competitor else []
    rows = {match.rank: match for match in [*explanation.best, *competitor, explanation.match]}
    for rank, match in sorted(rows.items()):
        mark = "→ " if rank == explanation.rank else "◀ " if rank in [row.rank for row in competitor] else ""
        document = Text.assemble((match.document_id, "dim"), f" {match.title or '(no title)'}")
        parts = [f"{value:+.3f}" if value else "–" for value in match.contributions.values()]
        style = "bold" if rank == explanation.rank else None
        table.add_row(f"{mark}{rank:,}", document, f"{match.score:.4f}", *parts, style=style)
    return table
