"""Shopping Queries (ESCI): products and graded pairs in English, Spanish and Japanese."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.datasets.published_files import grades, locate, locate_judgements, unique, write_tables
from q2s_tf.tables import Table

GRADES = {"exact": 3.0, "substitute": 2.0, "complement": 1.0, "irrelevant": 0.0}
RELEVANCE = {**GRADES, **{label[0]: grade for label, grade in GRADES.items()}}
"""The grade of each label, written out or by its letter."""

LANGUAGES = {"US": "en", "ES": "es", "JP": "ja"}
"""The language of each of the set's three countries."""


def convert(path: Path, out: Path) -> dict[str, int]:
    """Convert `products.tsv` and every `judgements_PART.tsv` (plain or `.gz`) of the folder `path`.

    Writes `documents`, with the column `brand` (missing where it is unknown), and `judgements_PART`: exact 3,
    substitute 2, complement 1, irrelevant 0.

    Raises:
        InputError: See `q2s_tf.datasets.import_dataset`.
    """
    columns = ["product_id", "country", "title"]
    products = Table(locate(path, "products.tsv")[0], "products", columns, ["description", "brand"]).read()
    products = unique(products, "product_id").rename_columns({"product_id": "document_id"})
    index = pc.index_in(products["country"], value_set=pa.array(list(LANGUAGES)))
    documents = products.append_column("language", pc.take(pa.array(list(LANGUAGES.values())), index))
    written = {"documents": documents.select(["document_id", "title", "description", "language", "country", "brand"])}
    for name, file in locate_judgements(path).items():
        rows = Table(file, "judgements", ["query", "country", "document_id", "esci_label"]).read()
        relevance = grades(rows["esci_label"], RELEVANCE, file)
        written[name] = rows.drop_columns("esci_label").append_column("relevance", relevance)
    return write_tables(out, written)
