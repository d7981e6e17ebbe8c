"""What a retriever holds of a catalogue: ids, values to filter by, embeddings, words."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pyarrow as pa
import tensorflow as tf

from q2s_tf.cli import console
from q2s_tf.embedding.shards import EmbeddingShards
from q2s_tf.errors import InputError
from q2s_tf.index import DocumentRows
from q2s_tf.index.word_counts import WordCounts, count_words
from q2s_tf.models import Towers, embed_catalogue
from q2s_tf.tables import Table, open_documents
from q2s_tf.text import normalise


def read_documents(
    path: Path, towers: Towers, filters: Sequence[str], collapse: str | None, lexical: Mapping[str, float] | None
) -> tuple[pa.LargeBinaryArray, DocumentRows, np.ndarray, WordCounts | None]:
    """Read and embed a documents table.

    Returns:
        The ids of all documents, byte strings; the rows, the embeddings `[R, D]` and the words of those with an input
        of any channel. The others have a zero vector, which is near to no query, so the retriever does not hold them.
        The words are None without a lexical index.

    Raises:
        InputError: The table violates its contract, or a column to filter or collapse by is absent, is named twice or
            holds vectors.
    """
    vectors = towers.config.vector_inputs()
    options = _column_options(filters, collapse, lexical, vectors)
    table = open_documents(path, [*towers.document.input, *options], vectors)
    for name, option in options.items():
        if name in table.missing:
            known = ", ".join(table.columns)
            raise InputError(f"documents {path}: has no column {name} for --{option}; known columns of it are {known}")
    texts, embeddings = embed_catalogue(towers.document, table)
    ids, present = to_bytes(texts), np.any(embeddings != 0, axis=1)
    rows, words = _read_rows(table, ids, present, filters, collapse, lexical)
    return ids, rows, embeddings[present], words


def map_documents(
    shards: EmbeddingShards,
    folder: Path,
    filters: Sequence[str],
    collapse: str | None,
    lexical: Mapping[str, float] | None,
) -> tuple[DocumentRows, np.ndarray, WordCounts | None]:
    """Read the rows and the words of a catalogue that is embedded already, and map its vectors.

    Args:
        shards: The embeddings.
        folder: Where the temporary file with the vectors is.
        filters: Columns to filter by.
        collapse: The column to collapse by.
        lexical: Weights of the columns of the lexical index.

    Returns:
        The rows, the embeddings `[R, D]` and the words as in `read_documents`.

    Raises:
        InputError: A column is absent or named twice, or a shard is damaged.
    """
    options = _column_options(filters, collapse, lexical, ())
    shards.check_columns(list(options))
    table = open_documents(shards.path, list(options), ())
    with TemporaryFile(dir=folder) as file:  # the mapping keeps it
        embeddings, present = shards.map_vectors(file)
    batches = table.batches()
    ids = pa.chunked_array([to_bytes(batch.column("document_id")) for batch in batches]).combine_chunks()
    rows, words = _read_rows(table, ids, present, filters, collapse, lexical)
    return rows, embeddings, words


def _column_options(
    filters: Sequence[str], collapse: str | None, lexical: Iterable[str] | None, vectors: Collection[str]
) -> dict[str, str]:
    """The option of each column of the documents that an export reads beside the inputs of the tower."""
    options = dict.fromkeys(lexical or (), "lexical") | ({} if collapse is None else {collapse: "collapse"})
    options |= dict.fromkeys(filters, "filter")
    for name, option in options.items():
        if list(filters).count(name) > 1:
            raise InputError(f"filter {name}: is named twice; leave one out")
        if name in vectors or not name.isidentifier():
            raise InputError(f"{option} {name}: must be a text column named by letters, digits and _; name another one")
    return options


def _read_rows(
    table: Table,
    ids: pa.LargeBinaryArray,
    present: np.ndarray,
    filters: Sequence[str],
    collapse: str | None,
    lexical: Mapping[str, float] | None,
) -> tuple[DocumentRows, WordCounts | None]:
    """The rows and the words of the documents `present`, booleans `[N]`, of a table with the ids `[N]`."""
    values = _read_values(table, [*filters, *([] if collapse is None else [collapse])])
    groups = None if collapse is None else _group(values[collapse], ids)
    rows = DocumentRows(ids, {name: values[name] for name in filters}, groups)
    if not present.all():
        console.print(f"{np.sum(~present):,} documents have no input of any channel and cannot be found")
    words = None if lexical is None else count_words(table.batches(), lexical).select(present)
    return rows.take(present), words


def _read_values(table: Table, columns: list[str]) -> dict[str, np.ndarray]:
    """The normalised value of each row by text column, bytes `[N]`, with b"" where there is none."""
    if not columns:
        return {}
    texts = pa.Table.from_batches([batch.select(columns) for batch in table.batches()])
    values = {}
    for name in columns:
        encoded = texts[name].combine_chunks().fill_null("").dictionary_encode()
        distinct = tf.constant(encoded.dictionary.to_pylist(), tf.string, [len(encoded.dictionary)])
        values[name] = normalise(distinct).numpy()[encoded.indices.to_numpy()]
    return values


def _group(values: np.ndarray, ids: pa.LargeBinaryArray) -> np.ndarray:
    """The group of each document, int64 `[N]`: a hash of its value, or of its id if it has none."""
    keys = np.where(values == b"", b"id=" + ids.to_numpy(zero_copy_only=False), b"value=" + values)
    return tf.strings.to_hash_bucket_fast(tf.constant(keys, tf.string), 2**63 - 1).numpy()


def to_bytes(texts: pa.Array) -> pa.LargeBinaryArray:
    """Convert texts to byte strings `[N]`."""
    return texts.cast(pa.large_binary())
