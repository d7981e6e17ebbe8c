#!/usr/bin/env python
"""How many of stage 2's hardest in-batch documents answer the query after all, by the truth of a generated marketplace.

Batches of positives are drawn at random; known positives of a query are masked, as in training. Each row's hardest
document is the one that scores highest by the run's stage 1. The truth is the generator's own grade, which no training
sees: 3 is an exact match, so a negative that is none.
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
    batch_sizes: Annotated[list[int], Option(help="May be given again.")] = [16, 64, 256, 768],  # noqa: B006
) -> None:
    """Tell of which grade the hardest in-batch documents are.

    Example: benchmarks/hardest_negatives.py --run runs/marketplace --data data --listings 6000 --users 4800
    """
    import numpy as np

    scores, grades, known = truth(run, data, listings, users, seed)
    generator = np.random.default_rng(0)
    view = View("batch", "exact match", "substitute", "complement", "irrelevant", title="grade of the hardest document")
    for size in batch_sizes:
        found = np.zeros(4)
        for _ in range(max(BATCHES, BATCHES * 256 // size)):
            rows = generator.choice(len(scores), min(size, len(scores)), replace=False)
            block = np.ix_(rows, rows)
            hardest = np.where(known[block], -np.inf, scores[block]).argmax(axis=1)
            found += np.bincount(grades[block][np.arange(len(rows)), hardest], minlength=4)
        view.add_row(str(size), *(f"{share:.1%}" for share in (found / found.sum())[::-1]))
    Console().print(view)


def truth(run: Path, data: Path, listings: int, users: int, seed: int) -> tuple[Any, Any, Any]:
    """For the positives `[P]` whose query has one meaning: scores, grades and what is known, each `[P, P]`.

    Row i holds the query of positive i, column j the document of positive j.

    Raises:
        InputError: the marketplace made anew is not the one in `data`.
    """
    import numpy as np
    import pyarrow.parquet as pq

    from q2s_tf.marketplace.catalogue import document_ids, make_catalogue
    from q2s_tf.marketplace.generate import START
    from q2s_tf.marketplace.lexicon import load_lexicon
    from q2s_tf.marketplace.relevance import grade
    from q2s_tf.marketplace.searches import make_searches
    from q2s_tf.towers import embed_documents, load

    documents = pq.read_table(data / "documents.parquet")
    lexicon, streams = load_lexicon(), np.random.default_rng(seed).spawn(5)
    image_dimension = next(
        len(vector) for photos in documents["image_embeddings"].to_pylist() for vector in photos or ()
    )
    catalogue = make_catalogue(lexicon, listings, image_dimension, streams[0])
    if not catalogue.table.equals(documents):
        raise InputError(
            f"--data {data}: was not made by --listings {listings} --seed {seed}: give what it was made by"
        )
    searches = make_searches(lexicon, catalogue, users, 28, START, streams[1])
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
    number = {name: row for row, name in enumerate(document_ids(np.arange(listings)))}
    columns = np.array([number[pair["document_id"]] for pair in positives])
    towers = load(run, stage=1)
    inputs = {name: [pair[name] for pair in positives] for name in ("query", "country")}
    scores = towers.query.predict(inputs)["embedding"] @ embed_documents(towers.document, documents.take(columns)).T
    answers: dict[str, set[int]] = {}
    for pair, column in zip(positives, columns.tolist(), strict=True):
        answers.setdefault(pair["query"], set()).add(column)
    known = np.array([np.isin(columns, list(answers[pair["query"]])) for pair in positives])
    same = (len(rows), len(rows))
    return scores, grade(lexicon, catalogue, searches, rows, np.broadcast_to(columns, same)), known


if __name__ == "__main__":
    cli.run(main)
