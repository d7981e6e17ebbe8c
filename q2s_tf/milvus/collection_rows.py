"""The fields of a collection, and the rows of documents."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from q2s_tf.errors import InputError
from q2s_tf.index.postings import K1, B
from q2s_tf.milvus.lexical_terms import MAX_BYTES, document_terms
from q2s_tf.serving.signatures import FILTER_PREFIX
from q2s_tf.text import normalise

if TYPE_CHECKING:
    from pymilvus import CollectionSchema
    from pymilvus.milvus_client import IndexParams

ID, VECTOR, TERMS, BM25 = "document_id", "embedding", "terms", "bm25"
EXACT_UP_TO = 20_000
"""Documents up to which all vectors are compared (FLAT), as in the default index of a retriever. Above, AUTOINDEX:
Milvus chooses an approximate index. Up to as many, BM25 is exact in milvus-lite after changes."""
ROWS = 500
"""Rows of one request: with the longest texts they are below the 64 MB that Milvus accepts."""
MAX_ID_BYTES = 1_000


def make_schema(settings: Mapping[str, Any]) -> "CollectionSchema":
    """The fields: `document_id`, `embedding`, `filter_<column>`, and with a lexical index `terms` and `bm25`.

    `bm25` is the output of Milvus's BM25 function, which reads `terms`.

    Args:
        settings: Of the publication.
    """
    from pymilvus import DataType, Function, FunctionType, MilvusClient

    schema = MilvusClient.create_schema()
    schema.add_field(ID, DataType.VARCHAR, is_primary=True, max_length=MAX_ID_BYTES)
    schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=settings["dimension"])
    for column in settings["filters"]:
        schema.add_field(FILTER_PREFIX + column, DataType.VARCHAR, max_length=MAX_BYTES)
    if settings["lexical"]:
        analyzer = {"tokenizer": "standard"}
        schema.add_field(TERMS, DataType.VARCHAR, max_length=MAX_BYTES, enable_analyzer=True, analyzer_params=analyzer)
        schema.add_field(BM25, DataType.SPARSE_FLOAT_VECTOR)
        schema.add_function(Function(BM25, FunctionType.BM25, [TERMS], [BM25]))
    return schema


def make_index_params(settings: Mapping[str, Any], documents: int) -> "IndexParams":
    """The indexes: cosines, BM25 with the parameters of a retriever, and one for each filter."""
    from pymilvus import MilvusClient

    indexes = MilvusClient.prepare_index_params()
    kind = "FLAT" if documents <= EXACT_UP_TO else "AUTOINDEX"
    indexes.add_index(VECTOR, index_type=kind, metric_type="COSINE")
    for column in settings["filters"]:
        indexes.add_index(FILTER_PREFIX + column, index_type="INVERTED")
    if settings["lexical"]:
        indexes.add_index(
            BM25, index_type="SPARSE_INVERTED_INDEX", metric_type="BM25", params={"bm25_k1": K1, "bm25_b": B}
        )
    return indexes


def make_rows(
    ids: pa.Array, embeddings: np.ndarray, texts: pa.RecordBatch, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The rows of documents with an input of any channel.

    The others have a zero vector, which is near to no query. Values to filter by are normalised, as in a retriever.

    Args:
        ids: The document ids `[N]`.
        embeddings: Their unit vectors `[N, D]`.
        texts: Their columns to filter by and of the lexical index.
        settings: Of the publication.

    Raises:
        InputError: An id is longer than `MAX_ID_BYTES`.
    """
    present = np.any(embeddings != 0, axis=1)
    texts, names = texts.filter(pa.array(present)), ids.filter(pa.array(present)).to_pylist()
    for name in names:
        if len(name.encode()) > MAX_ID_BYTES:
            raise InputError(f"document_id {name!r:.80}…: may have {MAX_ID_BYTES} bytes in Milvus; shorten it")
    columns: dict[str, list[Any]] = {ID: names, VECTOR: list(embeddings[present])}
    for column in settings["filters"]:
        values = texts.column(column).fill_null("").to_pylist()
        normalised = normalise(tf.constant(values, tf.string, [len(values)])).numpy()
        columns[FILTER_PREFIX + column] = [value.decode() for value in normalised]
    if settings["lexical"]:
        columns[TERMS] = document_terms(texts, settings["lexical"], settings["language"])
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
