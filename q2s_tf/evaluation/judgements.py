"""Judged pairs of a query and a document, as arrays."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.cli import console
from q2s_tf.errors import InputError
from q2s_tf.tables import Table, check_judgements

MAX_GRADE = 30
"""With a higher grade, its nDCG gain 2^grade would outweigh all others."""

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
        lowest: lowest grade of the table.
        left_out: by reason, the number of rows that are left out.
    """

    queries: Columns
    query: np.ndarray
    document: np.ndarray
    relevance: np.ndarray
    rated: bool
    lowest: float
    left_out: dict[str, int]

    @property
    def gains(self) -> np.ndarray:
        """Gains of nDCG, 2^(g − lowest grade) − 1, float `[J]`."""
        return np.exp2(self.relevance - self.lowest) - 1

    def relevant(self, grade: float) -> np.ndarray:
        """Which pairs have at least this grade, bool `[J]`; compared as float32, which tables may hold."""
        return self.relevance.astype(np.float32) >= np.float32(grade if self.rated else 1)

    def select(self, pairs: np.ndarray) -> "Judgements":
        """Some of the pairs, bool or int `[J]`, with all queries."""
        return replace(self, query=self.query[pairs], document=self.document[pairs], relevance=self.relevance[pairs])

    def by_query(self) -> list[np.ndarray]:
        """The pairs of each query, as indices into the J pairs."""
        order = np.argsort(self.query, kind="stable")
        starts = np.searchsorted(self.query[order], np.arange(1, len(self.queries["query"])))
        return np.split(order, starts)

    def without_ndcg(self) -> dict[str, int]:
        """By reason, the number of judged queries that have no nDCG; empty without ratings."""
        pairs = np.bincount(self.query)
        best = np.zeros(len(pairs))
        np.maximum.at(best, self.query, self.gains)
        counts = {
            "with one judged document": int(np.sum(pairs == 1)),
            f"without a grade above the lowest, {self.lowest:g}": int(np.sum((pairs > 1) & (best == 0))),
        }
        return {reason: count for reason, count in counts.items() if count and self.rated}


def read_judgements(
    table: Table, document_ids: pa.Array, seed: int, known: Columns | None = None, need_grades: bool = False
) -> Judgements:
    """Reads judgements of the documents of a catalogue.

    A pair that occurs more than once keeps its highest rating. A table without ratings (later positives) gets one
    negative per row: a document drawn uniformly from the catalogue, left out if it is a positive of the query. The
    number of rows that cannot be used is printed by reason.

    Args:
        table: judgements or positives (`q2s_tf.tables.open_judgements`).
        document_ids: ids of the catalogue, in the order of its rows.
        seed: of the sampled negatives.
        known: queries of other judgements, which come first among the queries of these.
        need_grades: whether the table must have ratings, because a lowest relevant grade was given.

    Raises:
        InputError: no usable pair, no ratings where they are needed, or a grade above `MAX_GRADE`.
    """
    rated = check_judgements(table)
    if need_grades and not rated:
        raise InputError(
            f"judgements {table.path}: needs the column relevance, because a lowest relevant grade is given; it has "
            f"{', '.join(table.columns)}: rename the column of the grades, or give no --relevant-at"
        )
    rows = table.read()
    document_rows = pc.index_in(rows["document_id"], document_ids)
    unusable = {
        "without a query": pc.equal(pc.utf8_trim_whitespace(pc.fill_null(rows["query"], "")), ""),
        "without a grade": pc.invert(pc.fill_null(pc.is_finite(rows["relevance"]), not rated)),
        "of no document of the catalogue": pc.is_null(document_rows),
    }
    reasons = pc.case_when(pc.make_struct(*unusable.values()), *unusable)
    left_out = {entry["values"]: entry["counts"] for entry in reasons.drop_null().value_counts().to_pylist()}
    usable = rows.append_column("document", document_rows).filter(pc.is_null(reasons))
    if not len(usable):
        raise InputError(
            f"judgements {table.path}: no row has a query, a rating and a document of the catalogue: "
            f"{_listed(left_out)}"
        )
    lowest, highest = pc.min_max(usable["relevance"]).as_py().values() if rated else (0.0, 1.0)
    if max(highest, highest - lowest) > MAX_GRADE:
        raise InputError(
            f"judgements {table.path}: a grade must be at most {MAX_GRADE}, because nDCG uses the gain 2^grade; "
            f"got {highest:g}: map the grades to a short scale such as 0 to 3"
        )
    pairs = usable.group_by(["query", "country", "document"], use_threads=False).aggregate([("relevance", "max")])
    if repeated := len(usable) - len(pairs):
        left_out["repeated (the highest grade counts)"] = repeated
    if left_out:
        console.print(f"left out {sum(left_out.values()):,} of {len(rows):,} judgements: {_listed(left_out)}")
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
    return Judgements(queries, query, document, relevance, rated, lowest, left_out)


def relevant_pairs(
    judged: Judgements, grade: float, source: str, remedy: str, irrelevant_too: bool = True
) -> np.ndarray:
    """Which pairs are relevant, bool `[J]`.

    Raises:
        InputError: no relevant pair; with `irrelevant_too` also if all are relevant.
    """
    relevant = judged.relevant(grade)
    if not relevant.any() or (irrelevant_too and relevant.all()):
        raise InputError(
            f"judgements {source}: need relevant and irrelevant pairs, with relevant from {grade} on; got "
            f"{int(relevant.sum())} of {len(relevant)} relevant: {remedy}"
        )
    return relevant


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
