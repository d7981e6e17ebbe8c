#!/usr/bin/env python
"""Agreement of the lexical index with bm25s: both rank the titles of a table for the same words.

The index keeps at most `MAX_POSTINGS` documents for each term. bm25s (Lucene's BM25) reads the same stems of all
documents. A document of the first hundred of the index agrees if its score by bm25s is at least that of the hundredth
document of bm25s, so that the order of equal titles does not count. Words of a query that no title has are left out for
both. The titles of a catalogue that is larger than the table are repeated.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from q2s_tf import cli

if TYPE_CHECKING:
    from q2s_tf.index.word_counts import WordCounts

K = 100
TOLERANCE = 1e-4


def main(
    queries: Path = typer.Option(..., help="Parquet file with the column query."),
    documents: Path = typer.Option(..., help="Parquet file with the column title."),
    sizes: list[int] = typer.Option([54_667, 1_000_000], help="Number of documents; may be repeated."),
    limit: int = typer.Option(500, help="Number of queries."),
) -> None:
    """Print the overlap of the first hundred documents.

    Example: benchmarks/lexical.py --queries runs/home_depot_data/judgements_dev.parquet
    --documents runs/home_depot_data/documents.parquet
    """
    import numpy as np
    import pyarrow.parquet as pq

    texts = pq.read_table(queries, columns=["query"])["query"].unique().drop_null().to_pylist()[:limit]
    table = Table("documents", "documents of the most frequent term", "queries", "mean overlap", "lowest overlap")
    for size in sizes:
        counts = count_titles(documents, size)
        frequency, overlaps = measure(counts, texts)
        figures = f"{np.mean(overlaps):.4f}", f"{np.min(overlaps):.2f}"
        table.add_row(f"{size:,}", f"{frequency:,}", str(len(overlaps)), *figures)
    Console().print(table)


def count_titles(documents: Path, size: int) -> "WordCounts":
    """The words of `size` titles: those of a table, again and again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from q2s_tf.index.word_counts import count_words

    titles = pq.read_table(documents, columns=["title"])
    titles = pa.concat_tables([titles] * -(-size // len(titles))).slice(0, size)
    return count_words(cli.track(titles.to_batches(8_192), "counting words"), {"title": 1.0})


def measure(counts: "WordCounts", texts: list[str]) -> tuple[int, list[float]]:
    """The number of documents of the most frequent term, and the overlap for each query that has a known word."""
    import bm25s
    import numpy as np
    import tensorflow as tf

    from q2s_tf.index.lexical import LexicalIndex
    from q2s_tf.index.postings import build_postings

    postings = build_postings(counts, {"title": 1.0})
    index = LexicalIndex(postings, len(counts.lengths))
    specs = [tf.TensorSpec([1], tf.string)]

    def scores_of(words: tf.Tensor) -> tf.Tensor:
        return index.score(*index.find_words(words)).of_all(index.count)

    score = tf.function(scores_of, input_signature=specs, autograph=False)
    numbers: dict[bytes, int] = {}  # of a stem
    words = {word: numbers.setdefault(stem, len(numbers)) for word, (_, stem) in counts.vocabulary.items()}
    order = np.argsort(counts.rows, kind="stable")
    distinct, entry = np.unique(counts.words[order], return_inverse=True)
    terms = np.array([words[word] for word in distinct.tolist()])[entry]
    corpus = np.split(terms, np.cumsum(np.bincount(counts.rows, minlength=len(counts.lengths)))[:-1])
    reference = bm25s.BM25()
    vocabulary = {str(number): number for number in range(len(numbers))}
    reference.index(([document.tolist() for document in corpus], vocabulary), show_progress=False)
    overlaps = []
    for known in cli.track(list(known_words(texts, words)), "searching"):
        expected = reference.get_scores([words[word] for word, _ in known])
        scores = score(tf.constant([b" ".join(text for _, text in known)])).numpy()
        best = np.argpartition(-scores, K)[:K]
        last = max(-np.partition(-expected, K - 1)[K - 1], TOLERANCE)
        wanted = min(K, int(np.sum(expected > 0)))
        overlaps.append(min(1.0, float(np.sum(expected[best] >= last - TOLERANCE)) / wanted))
    return int(postings.frequencies.max()), overlaps


def known_words(texts: list[str], words: dict[int, int]) -> Iterator[list[tuple[int, bytes]]]:
    """For each query with a known word the hash and the text of these words."""
    import tensorflow as tf

    from q2s_tf.index.word_counts import hash_words
    from q2s_tf.text import normalise, split_words

    for text in texts:
        parts = split_words(normalise(tf.constant([text])))[0].numpy().tolist()
        known = [pair for pair in zip(hash_words(parts).tolist(), parts, strict=True) if pair[0] in words]
        if known:
            yield known


if __name__ == "__main__":
    cli.run(main)
