"""Judged pairs of a query and a document, as arrays."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.cli import console
from q2s_tf.errors import InputError
from q2s_tf.tables import Table, check_judgements

MAX_GRADE = 30
"""With a higher grade, its nDCG gain 2^(g−1) would outweigh all others."""

Columns = dict[str, list[str | None]]


@dataclass
class Judgements:
    """J judged pairs of Q queries.

    Attributes:
        queries: the distinct queries, as columns `query` and `country` of length Q.
        query: int `[J]`, index into `queries`.
        document: int `[J]`, row of the catalogue.
        relevance: float `[J]`, the grades. For a table without ratings, 1 for its rows and 0 for sampled documents.
        rated: whether the table has ratings.
        left_out: number of rows without a query or a rating, or whose document is not in the catalogue.
    """

    queries: Columns
    query: np.ndarray
    document: np.ndarray
    relevance: np.ndarray
    rated: bool
    left_out: int

    def relevant(self, grade: float) -> np.ndarray:
        """Which pairs have at least this grade, bool `[J]`; compared as float32, which tables may hold."""
        return self.relevance.astype(np.float32) >= np.float32(grade if self.rated else 1)

    def select(self, pairs: np.ndarray) -> "Judgements":
        """Some of the pairs, bool or int `[J]`, with all queries."""
        return replace(self, query=self.query[pairs], document=self.document[pairs], relevance=self.relevance[pairs])

    def by_query(self) -> list[np.ndarray]:
        """For each query the indices of its pairs."""
        order = np.argsort(self.query, kind="stable")
        starts = np.searchsorted(self.query[order], np.arange(1, len(self.queries["query"])))
        return np.split(order, starts)


def read_judgements(table: Table, document_ids: pa.Array, seed: int, known: Columns | None = None) -> Judgements:
    """Reads judgements of the documents of a catalogue.

    A pair that occurs more than once keeps its highest rating. A table without ratings (later positives) gets one
    negative per row: a document drawn uniformly from the catalogue, left out if it is a positive of the query.

    Args:
        table: judgements or positives (`q2s_tf.tables.open_judgements`).
        document_ids: ids of the catalogue, in the order of its rows.
        seed: of the sampled negatives.
        known: queries of other judgements, which come first among the queries of these.

    Raises:
        InputError: no usable pair, or a grade above `MAX_GRADE`.
    """
    rated = check_judgements(table)
    rows = table.read()
    total = len(rows)
    document_rows = pc.index_in(rows["document_id"], document_ids)
    usable = pc.and_(pc.is_valid(document_rows), pc.is_valid(rows["query"]))
    if rated:
        usable = pc.and_(usable, pc.fill_null(pc.is_finite(rows["relevance"]), False))
    rows = rows.append_column("document", document_rows).filter(usable)
    if not len(rows):
        raise InputError(f"judgements {table.path}: no row has a query, a rating and a document of the catalogue")
    if rated and (highest := pc.max(rows["relevance"]).as_py()) > MAX_GRADE:
        raise InputError(
            f"judgements {table.path}: a grade must be at most {MAX_GRADE}, because nDCG uses the gain 2^(grade-1); "
            f"got {highest:g}: map the grades to a short scale such as 0 to 3"
        )
    if left_out := total - len(rows):
        console.print(f"left out {left_out:,} of {total:,} judgements: an empty cell, or no such document")
    pairs = rows.group_by(["query", "country", "document"], use_threads=False).aggregate([("relevance", "max")])
    keys = list(zip(pairs["query"].to_pylist(), pairs["country"].to_pylist(), strict=True))
    first = list(zip(known["query"], known["country"], strict=True)) if known else []
    numbers = {key: number for number, key in enumerate(dict.fromkeys([*first, *keys]))}
    query, document = np.array([numbers[key] for key in keys]), pairs["document"].to_numpy().astype(np.int64)
    if rated:
        relevance = pairs["relevance_max"].to_numpy().astype(np.float64)
    else:
        sampled = np.random.default_rng(seed).integers(len(document_ids), size=len(query))
        negative = ~np.isin(query * len(document_ids) + sampled, query * len(document_ids) + document)
        relevance = np.repeat([1.0, 0.0], [len(query), negative.sum()])
        query, document = np.append(query, query[negative]), np.append(document, sampled[negative])
    queries: Columns = {"query": [key[0] for key in numbers], "country": [key[1] for key in numbers]}
    return Judgements(queries, query, document, relevance, rated, left_out)
