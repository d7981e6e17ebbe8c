"""WANDS (Wayfair): furniture, queries and three grades, in English."""

from pathlib import Path

import pyarrow as pa

from q2s_tf.datasets.published_files import constant, grades, locate, unique, write_tables
from q2s_tf.errors import InputError
from q2s_tf.tables import Table

RELEVANCE = {"exact": 2.0, "partial": 1.0, "irrelevant": 0.0}
"""The grade of each label."""

COUNTRY, LANGUAGE = "US", "en"
"""The country and language of all products; the set does not state them."""


def convert(path: Path, out: Path) -> dict[str, int]:
    """Convert `query.csv`, `product.csv` and `label.csv` (quoted, tab-separated, plain or `.gz`) of the folder `path`.

    Writes `documents`, with `product_class` and `category hierarchy` (as `category`), and `judgements`: Exact 2,
    Partial 1, Irrelevant 0.

    Raises:
        InputError: See `q2s_tf.datasets.import_dataset`; also a label whose query is not in `query.csv`.
    """

    def read(name: str, required: list[str], optional: tuple[str, ...] = ()) -> pa.Table:
        return Table(locate(path, f"{name}.csv")[0], name, required, optional, csv_delimiter="\t").read()

    optional = ("product_description", "product_class", "category hierarchy")
    products = unique(read("product", ["product_id", "product_name"], optional), "product_id")
    documents = pa.table({
        "document_id": products["product_id"], "title": products["product_name"],
        "description": products["product_description"], "language": constant(LANGUAGE, products),
        "country": constant(COUNTRY, products), "product_class": products["product_class"],
        "category": products["category hierarchy"],
    })  # fmt: skip
    queries = read("query", ["query_id", "query"])
    labels = read("label", ["query_id", "product_id", "label"])
    text = dict(zip(queries["query_id"].to_pylist(), queries["query"].to_pylist(), strict=True))
    texts = [text.get(query_id) for query_id in labels["query_id"].to_pylist()]
    if None in texts:
        unknown = labels["query_id"][texts.index(None)].as_py()
        raise InputError(f"label {path}: query_id {unknown!r} has no query in query.csv; use files of one release")
    judgements = pa.table({
        "query": pa.array(texts, pa.string()), "country": constant(COUNTRY, labels),
        "document_id": labels["product_id"], "relevance": grades(labels["label"], RELEVANCE, path / "label.csv"),
    })  # fmt: skip
    return write_tables(out, {"documents": documents, "judgements": judgements})
