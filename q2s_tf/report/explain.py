"""Explanation of one score: the pairs of channels and the 3-grams that add to it, and the document's rank."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from q2s_tf.cli import printable
from q2s_tf.errors import InputError
from q2s_tf.models import Tower, embed_catalogue, load, read_ids
from q2s_tf.report.channels import ChannelVectors, read_channels, take_rows, trigram_vectors
from q2s_tf.tables import open_documents

SHOWN_TRIGRAMS = 12
"""3-grams of each side that are printed; `--json` has all."""


@dataclass(frozen=True)
class Side:
    """The part of one tower in a score.

    Attributes:
        inputs: the inputs; for vectors their number.
        weights: by channel the fusion weight, None where the channel is missing.
        trigrams: the 3-grams of the texts, largest contribution first (`trigram_contributions`); `shared` tells
            whether the other tower has one too.
    """

    inputs: dict[str, str | None]
    weights: dict[str, float | None]
    trigrams: list[dict[str, Any]]


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
        ranking: the first documents, the explained one, and the one above it (below it if it is the first), by `rank`,
            each with `document_id`, `title`, `score`, and by document channel its `contributions` to the score.
    """

    score: float
    rank: int
    documents: int
    query: Side
    document: Side
    contributions: dict[str, dict[str, float]]
    ranking: list[dict[str, Any]]


def contributions(queries: ChannelVectors, query: int, documents: ChannelVectors, document: int) -> np.ndarray:
    """What each pair of channels adds to the score of two rows, float `[N_query, N_document]`.

        cos(q, d) = Σᵢ Σⱼ aᵢ bⱼ φᵢ·ψⱼ / (|f| |g|)

    The sum is the score. A missing channel contributes 0.
    """
    return queries.parts(query) @ documents.parts(document).T


def trigram_contributions(
    tower: Tower, channels: ChannelVectors, row: int, inputs: dict[str, Any], other: np.ndarray
) -> list[dict[str, Any]]:
    """What each 3-gram of the texts of a row adds to a score, largest contribution first.

    The vector of a 3-gram channel is the sum of the embeddings E of its 3-grams g. With the attention aᵢ of eq. 1, its
    part of the score is therefore the sum of aᵢ E[g]·d̂ / |f|.

    Args:
        tower: the tower of the row.
        channels: rows of that tower.
        row: index of the row.
        inputs: the raw inputs of the row.
        other: the embedding of the other tower, `[D]`.

    Returns:
        For each 3-gram its `channel`, the `trigram` with a space before and after the text, the `count` of its
        occurrences, and their `contribution`.
    """
    found = []
    factors = channels.factors(row).tolist()
    for index, name in enumerate(channels.names):
        text = inputs[tower.channels[name].input]
        if tower.channels[name].kind == "trigrams" and text:
            trigrams, vectors = trigram_vectors(tower, name, text)
            totals: Counter[str] = Counter()
            for trigram, share in zip(trigrams, (vectors @ other).tolist(), strict=True):
                totals[trigram] += share * factors[index]
            counts = Counter(trigrams)
            found += [
                {"channel": name, "trigram": trigram, "count": counts[trigram], "contribution": total}
                for trigram, total in totals.items()
            ]
    return sorted(found, key=lambda trigram: -trigram["contribution"])


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
    rank = int(np.flatnonzero(order == target)[0]) + 1
    shown = {*range(1, k + 1), rank, rank - 1 if rank > 1 else 2}
    ranks = [number for number in range(1, len(order) + 1) if number in shown]
    rows = take_rows(table, order[np.array(ranks) - 1])
    answers = read_channels(towers.document, {name: rows[name].to_pylist() for name in names})
    parts = [contributions(queries, 0, answers, row) for row in range(len(ranks))]
    row = ranks.index(rank)
    inputs = {name: rows[name][row].as_py() for name in names}
    query_trigrams = trigram_contributions(towers.query, queries, 0, query_inputs, answers.embedding[row])
    document_trigrams = trigram_contributions(towers.document, answers, row, inputs, queries.embedding[0])
    shared = {each["trigram"] for each in query_trigrams} & {each["trigram"] for each in document_trigrams}
    for each in (*query_trigrams, *document_trigrams):
        each["shared"] = each["trigram"] in shared
    vectors = {name: f"{len(inputs[name])} vectors" for name in towers.config.vector_inputs() if inputs[name]}
    return Explanation(
        score=float(parts[row].sum()),
        rank=rank,
        documents=len(order),
        query=Side(query_inputs, _weights(queries, 0), query_trigrams),
        document=Side({**inputs, **vectors}, _weights(answers, row), document_trigrams),
        contributions={
            name: dict(zip(answers.names, values.tolist(), strict=True))
            for name, values in zip(queries.names, parts[row], strict=True)
        },
        ranking=[
            {
                "rank": number,
                **document,
                "score": float(part.sum()),
                "contributions": dict(zip(answers.names, part.sum(axis=0).tolist(), strict=True)),
            }
            for number, part, document in zip(
                ranks, parts, rows.select(["document_id", "title"]).to_pylist(), strict=True
            )
        ],
    )


def _weights(channels: ChannelVectors, row: int) -> dict[str, float | None]:
    weights = zip(channels.names, channels.weights[row].tolist(), channels.present[row], strict=True)
    return {name: weight if present else None for name, weight, present in weights}


def print_explanation(explanation: Explanation, console: Console) -> None:
    """Prints an explanation as tables: contributions of channels, 3-grams, ranking."""
    match = next(match for match in explanation.ranking if match["rank"] == explanation.rank)
    query, document = explanation.query, explanation.document
    title = f"{query.inputs['query']}  →  {match['document_id']}  {match['title'] or '(no title)'}"
    console.print(printable(title), style="bold")
    console.print(f"score {explanation.score:.4f}, rank {explanation.rank:,} of {explanation.documents:,} documents\n")
    console.print(_contributions_table(explanation))
    for trigrams, tower, other in ((query.trigrams, "query", "document"), (document.trigrams, "document", "query")):
        if trigrams:
            console.print(_trigrams_table(trigrams, f"3-grams of the {tower} (● also in the {other})"))
    console.print(_ranking_table(explanation))


def _contributions_table(explanation: Explanation) -> RichTable:
    """One row per query channel and one column per document channel; the total is the score."""
    table = RichTable(title="Contribution of each pair of channels to the score", title_justify="left")
    shown = {
        name: "missing" if weight is None else f"{weight:.2f}" for name, weight in explanation.query.weights.items()
    }
    columns = explanation.document.weights
    table.add_column("query channel (weight)", no_wrap=True)
    for name, weight in columns.items():
        table.add_column(f"{name}\n({'missing' if weight is None else f'{weight:.2f}'})", justify="right")
    table.add_column("all", justify="right")
    totals: Counter[str] = Counter()
    for name, row in explanation.contributions.items():
        totals.update(row)
        missing = [weight is None or shown[name] == "missing" for weight in columns.values()]
        cells = ["–" if none else f"{value:+.4f}" for none, value in zip(missing, row.values(), strict=True)]
        table.add_row(f"{name} ({shown[name]})", *cells, f"{sum(row.values()):+.4f}")
    table.add_section()
    table.add_row("all", *(f"{totals[name]:+.4f}" for name in columns), f"{explanation.score:+.4f}")
    return table


def _trigrams_table(trigrams: list[dict[str, Any]], title: str) -> RichTable:
    if len(trigrams) > SHOWN_TRIGRAMS:
        title += f", the first {SHOWN_TRIGRAMS} of {len(trigrams)}"
    table = RichTable("3-gram", "channel", title=title, title_justify="left", min_width=len(title) + 2)
    for heading in ("count", "contribution", ""):
        table.add_column(heading, justify="right")
    for row in trigrams[:SHOWN_TRIGRAMS]:
        trigram, mark = printable(row["trigram"].replace(" ", "␣")), "●" if row["shared"] else ""
        table.add_row(trigram, row["channel"], str(row["count"]), f"{row['contribution']:+.4f}", mark)
    return table


def _ranking_table(explanation: Explanation) -> RichTable:
    """The ranking, with the contributions of the document channels."""
    title = "Ranking, and contribution of each document channel (→ the explained document)"
    table = RichTable(title=title, title_justify="left")
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("document", min_width=24, max_width=40, overflow="ellipsis", no_wrap=True)
    table.add_column("score", justify="right")
    for name in explanation.document.weights:
        table.add_column(name.replace("_", "_\n"), justify="right", min_width=6, overflow="fold")
    for match in explanation.ranking:
        mark, style = ("→ ", "bold") if match["rank"] == explanation.rank else ("", None)
        document = Text.assemble((printable(match["document_id"]).plain, "dim"), " ")
        document.append_text(printable(match["title"] or "(no title)"))
        parts = [f"{value:+.3f}" if value else "–" for value in match["contributions"].values()]
        table.add_row(f"{mark}{match['rank']:,}", document, f"{match['score']:.4f}", *parts, style=style)
    return table
