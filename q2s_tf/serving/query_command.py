"""The query command: documents and channel weights of one query, printed as a table."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from q2s_tf import tables
from q2s_tf.cli import console, printable
from q2s_tf.errors import InputError
from q2s_tf.serving import DEFAULT_EFFORT, DEFAULT_LEXICAL_WEIGHT
from q2s_tf.serving.folders import channel_names
from q2s_tf.serving.serving_error import ServingError

if TYPE_CHECKING:
    from q2s_tf.serving.search_client import SearchClient


class SearchResults(NamedTuple):
    """Pages of (document id, score, cosine, share of the highest BM25), and (channel, weight) of the query."""

    pages: list[list[tuple[str, float, float, float]]]
    channel_weights: list[tuple[str, float]]


def read_filters(assignments: Sequence[str]) -> dict[str, str]:
    """Parse ``column=value`` texts into values by column.

    Raises:
        InputError: A text has no ``=`` or no column, or a column is named twice.
    """
    filters: dict[str, str] = {}
    for text in assignments:
        column, equals, value = text.partition("=")
        if not (column and equals):
            raise InputError(f'--filter must be column=value, got "{text}"; write for example --filter country=US')
        if column in filters:
            raise InputError(f'--filter may name a column once, got "{column}" twice; leave one out')
        filters[column] = value
    return filters


def search(
    client: "SearchClient",
    query: str,
    country: str = "",
    k: int = 10,
    pages: int = 1,
    effort: int = DEFAULT_EFFORT,
    min_score: float = -1.0,
    lexical_weight: float = DEFAULT_LEXICAL_WEIGHT,
    filters: Mapping[str, str] | None = None,
    version: int | str | None = None,
    models: Path | None = None,
) -> SearchResults:
    """Search for one query: ``pages`` of ``k`` documents, and the channel weights.

    The arguments are those of `q2s_tf.Client.retrieve`, and ``models``, the folder of the exports, to read the names of
    the channels. Channels have numbers if the served export is not there.

    Raises:
        InputError: ``k`` or ``effort`` is out of range, there is no such filter, or the server does not succeed.
    """
    try:
        weights = weigh_channels(client, query, country, models)
        if pages > 1:
            efforts = [effort] if effort else None
            iterator = client.pages(query, country, k, efforts, min_score, filters, version, lexical_weight)
            results = [list(zip(*page[:4], strict=True)) for page in islice(iterator, pages)]
        else:
            found = client.retrieve([query], [country], k, effort, min_score, filters, version, lexical_weight)
            rows = zip(*(column[0].tolist() for column in found[:4]), strict=True)
            results = [[row for row in rows if row[0]]]
    except ServingError as error:
        raise InputError(f"the server at {client.target} refused: {error}") from error
    return SearchResults(results, weights)


def weigh_channels(client: "SearchClient", query: str, country: str, models: Path | None) -> list[tuple[str, float]]:
    """The weights of the query tower by channel; channels have numbers if the served export is not in ``models``."""
    embeddings = client.embed_query([query], [country])
    weights = embeddings.channel_weights[0].tolist()
    known = client.channel_names
    if known is None and models is not None:
        known = channel_names(models, "query_tower", embeddings.version)
    if known is None or len(known) != len(weights):
        known = [f"channel {number}" for number in range(1, len(weights) + 1)]
    return list(zip(known, weights, strict=True))


def look_up_titles(documents: tables.Table, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Read the title and language of the documents with these ids; warns of ids that are not in the table.

    Raises:
        InputError: The table cannot be read.
    """
    wanted = pa.array(sorted(set(ids)), pa.string())
    titles: dict[str, tuple[str, str]] = {}
    for batch in documents.batches():
        rows = batch.filter(pc.is_in(batch["document_id"], value_set=wanted)).to_pylist()
        titles.update({row["document_id"]: (row["title"] or "", row["language"] or "") for row in rows})
        if len(titles) == len(wanted):
            return titles
    absent = [name for name in ids if name not in titles]
    console.print(
        f"warning: {len(absent)} of {len(ids)} results are not in --documents {documents.path}, for example "
        f"{absent[0]}: give the catalogue that was exported",
        markup=False,
    )
    return titles


def print_results(results: SearchResults, titles: Mapping[str, tuple[str, str]] | None, output: Console) -> None:
    """Print the ranked documents, with page numbers if there are several pages, and the channel weights.

    A score is the cosine plus the lexical weight times BM25, which is a share of the highest BM25 of the query.
    """
    table = Table(box=None, pad_edge=False)
    paged = len(results.pages) > 1
    for column in [*(["page"] if paged else []), "rank", "score", "cosine", "BM25", "document_id"]:
        table.add_column(column)
    for column in ("language", "title") if titles is not None else ():
        table.add_column(column, overflow="fold")
    for number, page in enumerate(results.pages, start=1):
        for document_id, *scores in page:
            numbers = [f"{score:.4f}" for score in scores]
            cells = [*([str(number)] if paged else []), str(table.row_count + 1), *numbers, document_id]
            if titles is not None:
                title, language = titles.get(document_id, ("", ""))
                cells += [language, title]
            table.add_row(*map(printable, cells))
    output.print(table if table.row_count else "no document reaches the minimum score")
    weights = "  ".join(f"{name} {weight:.2f}" for name, weight in results.channel_weights)
    output.print(printable(f"channel weights: {weights}"))
