#!/usr/bin/env python
"""A random part of a data set of tools/import_dataset.py: some of its queries, their products, and other products.

A training on the whole of a large data set takes hours. The part has the same files, so that benchmarks read it alike.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer

from q2s_tf import cli
from q2s_tf.errors import InputError


def main(
    data: Path = typer.Option(..., help="Folder of tools/import_dataset.py."),
    out: Path = typer.Option(..., help="Folder for the part."),
    documents: int = typer.Option(4_000, help="Products."),
    training: int = typer.Option(300, help="Training queries."),
    validation: int = typer.Option(60, help="Validation queries."),
    test: int = typer.Option(300, help="Test queries."),
    seed: int = typer.Option(5, help="Seed of the draws."),
) -> None:
    """Draw queries of each file, and products until there are enough.

    Example: benchmarks/draw_part.py --data runs/home_depot_data --out runs/home_depot_4000
    """
    generator = np.random.default_rng(seed)
    sizes = {"positives": training, "judgements_validation": validation, "judgements_dev": test}
    tables, kept = {}, set()
    for name, size in sizes.items():
        rows = pq.read_table(data / f"{name}.parquet")
        tables[name] = draw_queries(rows, size, generator)
        kept |= set(tables[name]["document_id"].to_pylist())
    if len(kept) > documents:
        raise InputError(f"--documents {documents}: the queries have {len(kept)} products: give at least as many")
    catalogue = pq.read_table(data / "documents.parquet")
    others = [name for name in catalogue["document_id"].to_pylist() if name not in kept]
    kept |= set(generator.choice(others, min(documents - len(kept), len(others)), replace=False))
    tables["documents"] = catalogue.filter(pc.is_in(catalogue["document_id"], pa.array(list(kept))))
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        pq.write_table(table, out / f"{name}.parquet")
        cli.console.print(f"{out / name}.parquet: {len(table):,} rows")


def draw_queries(rows: pa.Table, size: int, generator: np.random.Generator) -> pa.Table:
    """The rows of `size` random queries of a table, or of all if it has fewer."""
    queries = np.unique(rows["query"].to_numpy(zero_copy_only=False).astype(str))
    chosen = generator.choice(queries, min(size, len(queries)), replace=False)
    return rows.filter(pc.is_in(rows["query"], pa.array(chosen)))


if __name__ == "__main__":
    cli.run(main)
