#!/usr/bin/env python
"""The weight of BM25 that an export would choose on few queries, and what the choice costs.

Recall@10 over the whole catalogue is measured for each judged query and weight. Queries are then drawn at random, again
and again; each time a weight is chosen on them as an export chooses it, and its recall on all queries is noted.
"""

from pathlib import Path

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import q2s_tf
from q2s_tf import cli
from q2s_tf.index.postings import build_postings
from q2s_tf.index.word_counts import count_words
from q2s_tf.models import embed_catalogue
from q2s_tf.serving.document_rows import to_bytes
from q2s_tf.serving.lexical_weight import WEIGHTS, default_columns, measure_weights, nearest_weight
from q2s_tf.tables import open_documents, open_judgements

DRAWS = 600
ERRORS = (0.0, 1.0, 1.5, 2.0)
"""Standard errors by which a weight may be worse than the best; see `nearest_weight`."""


def main(
    run: Path = typer.Option(..., help="Run directory."),
    documents: Path = typer.Option(..., help="The catalogue."),
    judgements: Path = typer.Option(..., help="Judged queries."),
    queries: str = typer.Option("15,25,60,200", help="Numbers of queries that a weight is chosen on."),
) -> None:
    """Print recall@10 by weight, and its mean after a choice on few queries.

    Example: benchmarks/lexical_weight.py --run runs/own --documents runs/home_depot_4000/documents.parquet
    --judgements runs/home_depot_4000/judgements_dev.parquet
    """
    towers = q2s_tf.load(run)
    table = open_documents(documents, towers.config.tower_inputs("document"), towers.config.vector_inputs())
    columns = default_columns(table)
    postings = build_postings(count_words(table.batches(), columns), columns)
    ids, embeddings = embed_catalogue(towers.document, table)
    recalls = measure_weights(towers, open_judgements(judgements), to_bytes(ids), embeddings, postings)
    means = recalls.mean(axis=0)
    console = Console(width=120)
    by_weight = ", ".join(f"{weight:g}: {mean:.4f}" for weight, mean in zip(WEIGHTS, means, strict=True))
    console.print(f"{len(recalls)} queries; recall@10 by weight: {by_weight}")
    generator = np.random.default_rng(0)
    printed = Table("queries", *(f"{errors:g} standard errors" for errors in ERRORS), title="recall@10 (mean weight)")
    for count in map(int, queries.split(",")):
        cells = []
        draws = generator.choice(len(recalls), (DRAWS, count))
        for errors in ERRORS:
            chosen = np.array([nearest_weight(recalls[draw], errors) for draw in draws])
            cells.append(f"{means[np.searchsorted(WEIGHTS, chosen)].mean():.4f} ({chosen.mean():.2f})")
        printed.add_row(str(count), *cells)
    console.print(printed)


if __name__ == "__main__":
    cli.run(main)
