#!/usr/bin/env python
"""Recall@10 by country in a catalogue of several languages, over all documents.

- `BM25 of whitespace words`: bm25s, normalised texts, no stems;
- `lexical index`: that of a retriever, with the stems of each language, and character bigrams where a script has no
  spaces;
- `embeddings`: a run, which may be untrained;
- `hybrid`: cos + w · BM25 / max BM25 of the lexical index.
"""

from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table as RichTable

from q2s_tf import cli


def main(
    data: Path = typer.Option(..., help="Folder of tools/import_dataset.py."),
    run: Path = typer.Option(..., help="A run."),
    relevant_at: float = typer.Option(3.0, help="Grade of a relevant document."),
    weight: float = typer.Option(0.5, help="Weight w of BM25."),
) -> None:
    """Print the mean over the queries of each country.

    Example: benchmarks/languages.py --data runs/esci_data --run runs/esci
    """
    import bm25s
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    import q2s_tf
    from q2s_tf.evaluation.collection import rank_documents
    from q2s_tf.evaluation.judgements import read_judgements
    from q2s_tf.evaluation.metrics import as_run, retrieval
    from q2s_tf.evaluation.rankers import LexicalPart, cosine_rows
    from q2s_tf.models import embed_catalogue, encode
    from q2s_tf.serving.lexical_weight import default_columns
    from q2s_tf.tables import open_documents, open_judgements

    path = data / "documents.parquet"
    table, towers = open_documents(path), q2s_tf.load(run)
    columns = default_columns(table)
    documents = pq.read_table(path, columns=["document_id", *columns])
    ids = documents["document_id"].cast(pa.string()).combine_chunks()
    judged = read_judgements(open_judgements(data / "judgements_dev.parquet"), ids, 0)
    judged = judged.select(judged.relevant(relevant_at))
    queries = [query or "" for query in judged.queries["query"]]

    texts = zip(*(documents[name].to_pylist() for name in columns), strict=True)
    bm25 = bm25s.BM25()
    bm25.index(split([" ".join(part or "" for part in parts) for parts in texts]), show_progress=False)
    vectors = embed_catalogue(towers.document, table)[1]
    cosines = cosine_rows(encode(towers.query, judged.queries)["embedding"], vectors)
    lexical = LexicalPart(table, columns).rows(judged.queries["query"])
    rows = (
        {
            "BM25 of whitespace words": bm25.get_scores(words) if words else np.zeros(len(ids)),
            "lexical index": part,
            "embeddings": cosine,
            "hybrid": cosine + weight * part,
        }
        for words, part, cosine in zip(split(queries), lexical, cosines, strict=True)
    )
    retrieved = rank_documents(judged, rows)[1]
    relevant = np.unique(judged.query)  # the queries with a relevant document
    countries = np.array([judged.queries["country"][query] or "" for query in relevant])
    names, counts = np.unique(countries, return_counts=True)
    output = RichTable("recall@10", *(f"{name}, {count} queries" for name, count in zip(names, counts, strict=True)))
    for system, ranked in retrieved.items():
        recalls = retrieval(as_run(ranked), judged.query, judged.document)["recall@10"][relevant]
        output.add_row(system, *(f"{recalls[countries == name].mean():.3f}" for name in names))
    Console(width=120).print(output)


def split(texts: list[str]) -> list[list[str]]:
    """The words between spaces of each text, normalised as in the towers."""
    import tensorflow as tf

    from q2s_tf.text import normalise

    return [text.decode().split() for text in normalise(tf.constant(texts, tf.string)).numpy()]


if __name__ == "__main__":
    cli.run(main)
