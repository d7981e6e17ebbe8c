"""Shopping Queries (ESCI): products and graded pairs in English, Spanish and Japanese."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.datasets import tables

RELEVANCE = {
    "exact": 3.0, "substitute": 2.0, "complement": 1.0, "irrelevant": 0.0,
    "e": 3.0, "s": 2.0, "c": 1.0, "i": 0.0,
}  # fmt: skip
"""The grade of each label, written out or by its letter."""

LANGUAGES = {"US": "en", "ES": "es", "JP": "ja"}
"""The language of each of the set's three countries."""


def convert(path: Path, out: Path) -> dict[str, int]:
    """Reads ``products.tsv`` and every ``judgements_PART.tsv`` (plain or ``.gz``) of the folder ``path``.

    Writes ``documents`` (with the column ``brand`` beside our own, empty where it is not known) and
    ``judgements_PART``: exact 3, substitute 2, complement 1, irrelevant 0.

    Raises:
        InputError: See `q2s_tf.datasets.import_dataset`.
    """
    file = tables.locate(path, "products.tsv")
    products = tables.read_tsv(file, ["product_id", "country", "title"], ["description", "brand"])
    products = tables.unique(products, "product_id")
    index = pc.index_in(products["country"], value_set=pa.array(list(LANGUAGES)))
    documents = pa.table({
        "document_id": products["product_id"], "title": products["title"], "description": products["description"],
        "language": pc.take(pa.array(list(LANGUAGES.values())), index), "country": products["country"],
        "brand": products["brand"],
    })  # fmt: skip
    judgements = {
        f"judgements_{part}": judgements_of(file) for part, file in tables.locate_all(path, "judgements").items()
    }
    return tables.write(out, {"documents": documents, **judgements})


def judgements_of(file: Path) -> pa.Table:
    """``query, country, document_id, relevance`` of one file ``query, country, product_id, esci_label``."""
    rows = tables.read_tsv(file, ["query", "country", "product_id", "esci_label"])
    return pa.table({
        "query": rows["query"], "country": rows["country"], "document_id": rows["product_id"],
        "relevance": tables.grades(rows["esci_label"], RELEVANCE, file),
    })  # fmt: skip
