#!/usr/bin/env python
"""Measures how many positives of the generated marketplace are relevant, by the rule that defines a positive.

The generator gives the true relevance. A positive is graded for the searches with its query and country: 3 is an exact
match, 2 lacks one stated property, 1 is another thing of the department, 0 is something else.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from typer import Option

from q2s_tf import cli
from q2s_tf.files import atomic_write
from q2s_tf.search_log import Stage, build_positives, duration
from q2s_tf.simulation import START, make_marketplace
from q2s_tf.simulation.listings import COUNTRIES, make_listings
from q2s_tf.simulation.relevance import grade
from q2s_tf.simulation.searches import make_searches

RULES: tuple[tuple[Stage, str], ...] = (
    ("reply", "24h"), ("reply", "1h"), ("reply", "7d"), ("message", "24h"), ("click", "24h"), ("click", "1h"),
)  # fmt: skip

SEARCHES = 8
"""The number of searches to grade for each positive, spread evenly over those with its query and country."""


class Truth:
    """The generator's grades for pairs of the marketplace made with these arguments."""

    def __init__(self, listings: int, seed: int) -> None:
        """Make the listings and the searches again."""
        # The first two random streams, used as in `make_marketplace`.
        first, second, *_ = np.random.default_rng(seed).spawn(5)
        self.listings = make_listings(listings, 64, first)
        self.searches = make_searches(self.listings, listings * 8 // 5, 28, START, second)
        self.document = {name: row for row, name in enumerate(self.listings.table["document_id"].to_pylist())}
        self.rows: dict[tuple[str, str], list[int]] = {}
        countries = list(COUNTRIES)
        for row, (text, country) in enumerate(zip(self.searches.text, self.searches.country.tolist(), strict=True)):
            self.rows.setdefault((str(text).strip(), countries[country]), []).append(row)

    def grades(self, positives: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """The grades of each positive for the searches that may have led to it, and the weight of each grade."""
        rows, documents, weights = [], [], []
        for pair in positives.to_pylist():
            every = self.rows[pair["query"], pair["country"]]
            some = every[:: max(1, len(every) // SEARCHES)]
            rows += some
            documents += [self.document[pair["document_id"]]] * len(some)
            weights += [1 / len(some)] * len(some)
        grades = grade(self.listings, self.searches, np.array(rows), np.array(documents)[:, None])
        return grades[:, 0], np.array(weights)


def measure(truth: Truth, folder: Path, require: Stage, window: str) -> dict[str, Any]:
    """Build positives by one rule, and compute the shares of them that are exact, near and wrong."""
    build_positives(
        folder / "events.parquet", folder / "positives.parquet", documents=folder / "documents.parquet",
        require=require, window=duration(window),
    )  # fmt: skip
    positives = pq.read_table(folder / "positives.parquet")
    grades, weights = truth.grades(positives)
    shares = {name: float(weights[rows].sum() / weights.sum()) for name, rows in
              (("exact", grades == 3), ("near", grades == 2), ("wrong", grades <= 1))}  # fmt: skip
    return {"require": require, "window": window, "positives": len(positives), **shares}


def main(
    listings: Annotated[int, Option(help="Size of the marketplace.")] = 8000,
    seed: Annotated[int, Option(help="Its seed.")] = 1,
    out: Annotated[Path | None, Option(help="JSON file for the result.")] = None,
) -> None:
    """Measures the noise in the positives of the generated marketplace by rule.

    Example: benchmarks/funnel_noise.py --listings 8000 --seed 1
    """
    with tempfile.TemporaryDirectory() as name:
        make_marketplace(Path(name), listings, seed)
        truth = Truth(listings, seed)
        rows = [measure(truth, Path(name), *rule) for rule in cli.track(RULES, "rules")]
    view = Table("require", "window", "positives", "exact", "near", "wrong")
    for row in rows:
        shares = (f"{100 * row[name]:.1f} %" for name in ("exact", "near", "wrong"))
        view.add_row(row["require"], row["window"], f"{row['positives']:,}", *shares)
    Console().print(view)
    if out:
        with atomic_write(out) as partial:
            partial.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main)
