#!/usr/bin/env python
"""How many of stage 2's in-batch negatives answer the query after all, by the truth of a generated marketplace.

Batches of positives are drawn at random; known positives of a query are masked, as in training. Each row's documents
are ranked by the run's stage 1; its negative is the first of them, the hardest, or a later one
(`stage2.negative_rank`), of all documents or of those of the searcher's country (`stage2.negatives`). The truth is the
generator's own grade, which no training sees: 3 is an exact match, so a negative that is none.
"""

from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table as View
from typer import Option

from q2s_tf import cli
from q2s_tf.errors import InputError

BATCHES = 40


def main(
    run: Annotated[Path, Option(help="A run that was trained on this marketplace.")],
    data: Annotated[Path, Option(help="Its folder with documents and positives, Parquet.")],
    listings: Annotated[int, Option(help="As it was made with.")],
    users: Annotated[int, Option(help="As it was made with.")],
    seed: Annotated[int, Option(help="As it was made with.")] = 1,
    batch_sizes: Annotated[list[int], Option(help="May be given again.")] = [64, 512],  # noqa: B006
    ranks: Annotated[list[int], Option(help="May be given again.")] = [1, 3, 16],  # noqa: B006
) -> None:
    """Tell of which grade the in-batch negatives are.

    Example: benchmarks/hardest_negatives.py --run runs/marketplace --data data --listings 6000 --users 4800
    """
    import numpy as np

    scores, grades, known, same_country = truth(run, data, listings, users, seed)
    generator = np.random.default_rng(0)
    view = View("batch", "country", "rank", "exact", "substitute", "complement", "irrelevant")
    for size in batch_sizes:
        drawn = [
            generator.choice(len(scores), min(size, len(scores)), replace=False)
            for _ in range(max(BATCHES, BATCHES * 256 // size))
        ]
        for country, allowed in (("any", ~known), ("same", ~known & same_country)):
            found = sum(
                (count(scores[block], grades[block], allowed[block], ranks) for block in (np.ix_(r, r) for r in drawn)),
                start=np.zeros((len(ranks), 4)),
            )
            for rank, grade in zip(ranks, found, strict=True):
                shares = (f"{share:.1%}" for share in (grade / max(1, grade.sum()))[::-1])
                view.add_row(str(size), country, str(rank), *shares)
    Console().print(view)


def count(scores: Any, grades: Any, allowed: Any, ranks: list[int]) -> Any:
    """How many rows of a batch `[B, B]` have a negative of each grade, by rank, `[R, 4]`; one with too few has none."""
    import numpy as np

    order = np.argsort(np.where(allowed, -scores, np.inf), axis=1, kind="stable")
    found = []
    for rank in ranks:
        rows = np.flatnonzero(allowed.sum(axis=1) >= rank)
        found.append(np.bincount(grades[rows, order[rows, rank - 1]] if len(rows) else [], minlength=4))
    return np.array(found)


def truth(run: Path, data: Path, listings: int, users: int, seed: int) -> tuple[Any, Any, Any, Any]:
    """For the positives `[P]` whose query has one meaning: scores, grades, and what is known and of the same country.

    Each is `[P, P]`: row i holds the query of positive i, column j the document of positive j.

    Raises:
        InputError: the marketplace made anew is not the one in `data`.
    """
    import numpy as np
    import pyarrow.parquet as pq

    from q2s_tf.models import load
    from q2s_tf.simulation import START
    from q2s_tf.simulation.listings import ids, make_listings
    from q2s_tf.simulation.relevance import grade
    from q2s_tf.simulation.searches import make_searches

    documents = pq.read_table(data / "documents.parquet")
    streams = np.random.default_rng(seed).spawn(5)
    image_dimension = next(
        len(vector) for photos in documents["image_embeddings"].to_pylist() for vector in photos or ()
    )
    catalogue = make_listings(listings, image_dimension, streams[0])
    if not catalogue.table.equals(documents):
        raise InputError(
            f"--data {data}: was not made by --listings {listings} --seed {seed}: give what it was made by"
        )
    searches = make_searches(catalogue, users, 28, START, streams[1])
    meanings: dict[str, set[tuple[int, ...]]] = {}
    for text, *meaning in zip(searches.text, searches.thing, searches.modifier, *searches.stated.T, strict=True):
        meanings.setdefault(text, set()).add(tuple(int(value) for value in meaning))
    first = {text: row for row, text in reversed(list(enumerate(searches.text)))}

    positives = [
        pair
        for pair in pq.read_table(data / "positives.parquet").to_pylist()
        if len(meanings.get(pair["query"], ())) == 1
    ]
    if not positives:
        raise InputError(f"--data {data}: no query of its positives was searched by --users {users}: give its number")
    rows = np.array([first[pair["query"]] for pair in positives])
    number = {name: row for row, name in enumerate(ids("d", np.arange(listings)))}
    columns = np.array([number[pair["document_id"]] for pair in positives])
    towers = load(run, stage=1)
    inputs = {name: [pair[name] for pair in positives] for name in ("query", "country")}
    scores = towers.encode_queries(inputs) @ towers.encode_documents(documents.take(columns)).T
    answers: dict[str, set[int]] = {}
    for pair, column in zip(positives, columns.tolist(), strict=True):
        answers.setdefault(pair["query"], set()).add(column)
    known = np.array([np.isin(columns, list(answers[pair["query"]])) for pair in positives])
    grades = grade(catalogue, searches, rows, np.broadcast_to(columns, known.shape))
    countries = np.array([pair["country"] for pair in positives]), np.array(documents["country"].to_pylist())[columns]
    return scores, grades, known, countries[0][:, None] == countries[1]


if __name__ == "__main__":
    cli.run(main)
