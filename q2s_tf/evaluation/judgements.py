"""Judged pairs of a query and a document, ready to be scored."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.cli import console
from q2s_tf.errors import InputError
from q2s_tf.tables import Table, check_judgements

MAX_GRADE = 30
"""The gain 2^(g−1) of a higher grade would drown all others."""


@dataclass
class Judgements:
    """Judged pairs as numbers.

    Attributes:
        queries: the distinct queries, as columns `query` and `country` of length Q.
        query: int `[J]`, place in `queries` of each pair.
        document: int `[J]`, place in the catalogue.
        relevance: float `[J]`. Where the table has no ratings, 1 for its rows and 0 for as many sampled documents.
        rated: whether the table has ratings.
        left_out: pairs whose document is not in the catalogue, or that lack a query or a rating.
    """

    queries: dict[str, list[str | None]]
    query: np.ndarray
    document: np.ndarray
    relevance: np.ndarray
    rated: bool
    left_out: int

    def relevant(self, grade: float) -> np.ndarray:
        """Which pairs are relevant from a grade on, bool `[J]`; compared as float32, which tables may hold."""
        return self.relevance.astype(np.float32) >= np.float32(grade if self.rated else 1)

    def select(self, pairs: np.ndarray) -> "Judgements":
        """Some of the pairs, bool or int `[J]`; all queries stay."""
        return replace(self, query=self.query[pairs], document=self.document[pairs], relevance=self.relevance[pairs])

    def by_query(self) -> list[np.ndarray]:
        """For each query the numbers of its pairs."""
        order = np.argsort(self.query, kind="stable")
        starts = np.searchsorted(self.query[order], np.arange(1, len(self.queries["query"])))
        return np.split(order, starts)


def read_judgements(table: Table, document_ids: pa.Array, seed: int) -> Judgements:
    """Reads judgements against a catalogue.

    A pair that occurs twice keeps its highest rating. A table of later positives, which has no ratings, gets as many
    negatives as it has rows: documents drawn evenly from the catalogue, none of them a positive of the query.

    Args:
        table: judgements or positives (`q2s_tf.tables.open_judgements`).
        document_ids: ids of the catalogue, whose places number the documents.
        seed: of the sampled negatives.

    Raises:
        InputError: no usable pair, or a grade above `MAX_GRADE`.
    """
    rated = check_judgements(table)
    rows = table.read()
    total = len(rows)
    place = pc.index_in(rows["document_id"], document_ids)
    usable = pc.and_(pc.is_valid(place), pc.is_valid(rows["query"]))
    if rated:
        usable = pc.and_(usable, pc.fill_null(pc.is_finite(rows["relevance"]), False))
    rows = rows.append_column("document", place).filter(usable)
    if not len(rows):
        raise InputError(f"judgements {table.path}: no row has a query, a rating and a document of the catalogue")
    if rated and (highest := pc.max(rows["relevance"]).as_py()) > MAX_GRADE:
        raise InputError(
            f"judgements {table.path}: a grade must be at most {MAX_GRADE}, as nDCG gains 2^(grade-1) from it; got "
            f"{highest:g}: map the grades to a short scale such as 0 to 3"
        )
    best = rows.group_by(["query", "country", "document"], use_threads=False).aggregate([("relevance", "max")])
    queries = best.group_by(["query", "country"], use_threads=False).aggregate([]).to_pylist()
    number = {(row["query"], row["country"]): at for at, row in enumerate(queries)}
    pairs = zip(best["query"].to_pylist(), best["country"].to_pylist(), strict=True)
    query = np.fromiter((number[pair] for pair in pairs), np.int64, len(best))
    document = best["document"].to_numpy().astype(np.int64)
    relevance = best["relevance_max"].to_numpy().astype(np.float64) if rated else np.ones(len(best))
    if left_out := total - len(rows):
        console.print(
            f"left out {left_out:,} of {total:,} judgements: no such document in the catalogue, or an empty cell"
        )
    if not rated:
        negative_query, negative = _sample_negatives(query, document, len(document_ids), seed)
        query, document = np.concatenate([query, negative_query]), np.concatenate([document, negative])
        relevance = np.concatenate([relevance, np.zeros(len(negative))])
    columns: dict[str, list[str | None]] = {name: [row[name] for row in queries] for name in ("query", "country")}
    return Judgements(columns, query, document, relevance, rated, left_out)


def share_queries(judged: Judgements, later: Judgements) -> tuple[Judgements, Judgements]:
    """Both over one list of queries: those of `judged`, and after them those that only `later` has."""
    pairs = [list(zip(each.queries["query"], each.queries["country"], strict=True)) for each in (judged, later)]
    number = {pair: at for at, pair in enumerate(dict.fromkeys([*pairs[0], *pairs[1]]))}
    columns: dict[str, list[str | None]] = {"query": [pair[0] for pair in number], "country": [p[1] for p in number]}
    place = np.array([number[pair] for pair in pairs[1]])
    return replace(judged, queries=columns), replace(later, queries=columns, query=place[later.query])


def _sample_negatives(
    query: np.ndarray, document: np.ndarray, catalogue: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """One document a positive, drawn evenly; a draw that is a positive of the query is dropped."""
    drawn = np.random.default_rng(seed).integers(catalogue, size=len(query))
    wrong = np.isin(query * catalogue + drawn, query * catalogue + document)
    return query[~wrong], drawn[~wrong]
