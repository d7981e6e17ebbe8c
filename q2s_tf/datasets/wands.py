"""WANDS (Wayfair): furniture, queries and three grades, in English."""

from pathlib import Path

import pyarrow as pa

from q2s_tf.datasets import tables
from q2s_tf.errors import InputError

RELEVANCE = {"exact": 2.0, "partial": 1.0, "irrelevant": 0.0}
"""The grade of each label."""

COUNTRY, LANGUAGE = "US", "en"


def convert(path: Path, out: Path) -> dict[str, int]:
    """Reads ``query.csv``, ``product.csv`` and ``label.csv`` (tab-separated, plain or ``.gz``) of the folder ``path``.

    Writes ``documents`` (with ``product_class`` and ``category hierarchy`` as ``category`` beside our own columns)
    and ``judgements``: Exact 2, Partial 1, Irrelevant 0. Language en and country US, which the set does not state.

    Raises:
        InputError: See `q2s_tf.datasets.import_dataset`; also a label of a query that is not in ``query.csv``.
    """
    products = tables.read_tsv(
        tables.locate(path, "product.csv"),
        ["product_id", "product_name"], ["product_description", "product_class", "category hierarchy"], quoted=True,
    )  # fmt: skip
    products = tables.unique(products, "product_id")
    constant = {name: pa.array([value] * len(products)) for name, value in
                (("language", LANGUAGE), ("country", COUNTRY))}  # fmt: skip
    documents = pa.table({
        "document_id": products["product_id"], "title": products["product_name"],
        "description": products["product_description"], **constant,
        "product_class": products["product_class"], "category": products["category hierarchy"],
    })  # fmt: skip
    return tables.write(out, {"documents": documents, "judgements": judgements_of(path)})


def judgements_of(folder: Path) -> pa.Table:
    """``query, country, document_id, relevance``: the labels with the text of their queries."""
    queries = tables.read_tsv(tables.locate(folder, "query.csv"), ["query_id", "query"], quoted=True)
    file = tables.locate(folder, "label.csv")
    labels = tables.read_tsv(file, ["query_id", "product_id", "label"], quoted=True)
    text = dict(zip(queries["query_id"].to_pylist(), queries["query"].to_pylist(), strict=True))
    found = [text.get(query_id) for query_id in labels["query_id"].to_pylist()]
    if None in found:
        stranger = labels["query_id"][found.index(None)].as_py()
        raise InputError(f"{file}: query_id {stranger!r} has no query in query.csv; use files of one release")
    return pa.table({
        "query": pa.array(found, pa.string()), "country": pa.array([COUNTRY] * len(labels)),
        "document_id": labels["product_id"], "relevance": tables.grades(labels["label"], RELEVANCE, file),
    })  # fmt: skip
