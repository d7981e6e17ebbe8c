"""Home Depot Product Search Relevance: titles and human grades from 1 to 3, in English."""

import zlib
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from q2s_tf.datasets.published_files import constant, locate, locate_judgements, unique, write_tables
from q2s_tf.errors import InputError
from q2s_tf.tables import Table

COUNTRY, LANGUAGE = "US", "en"

RELEVANT = 2.33
"""The lowest grade of a positive (grades are thirds: 2.33, 2.67 and 3)."""

TIME = datetime(2016, 1, 1, tzinfo=UTC)
"""The timestamp of every positive: about when the set was published. It has no clicks and no times."""

VALIDATION_EVERY = 20
"""One training query in this many is used for validation."""


def convert(path: Path, out: Path, validation_every: int = VALIDATION_EVERY) -> dict[str, int]:
    """Convert `products.tsv` and every `judgements_PART.tsv` (plain or `.gz`) of the folder `path`.

    Writes `documents` and `judgements_PART`. The part `train` also gives `judgements_validation`, all rows of one query
    in `validation_every` (by a hash of the query), and `positives`: the pairs of the other queries graded 2.33 or more,
    with weight 1, country US and the timestamp `TIME`.

    Raises:
        InputError: See `q2s_tf.datasets.import_dataset`.
    """
    products = Table(locate(path, "products.tsv")[0], "products", ["product_id", "title"]).read()
    products = unique(products, "product_id").rename_columns(["document_id", "title"])
    documents = products.append_column("language", constant(LANGUAGE, products))
    written = {"documents": documents.append_column("country", constant(COUNTRY, products))}
    for name, file in locate_judgements(path).items():
        rows = Table(file, "judgements", ["query", "document_id", "relevance"]).read()
        if missing := rows["relevance"].null_count:
            raise InputError(f"judgements {file}: relevance must be a number; {missing} cells are empty")
        rows = rows.add_column(1, "country", constant(COUNTRY, rows))
        rows = rows.set_column(3, "relevance", rows["relevance"].cast(pa.float32()))
        written[name] = rows
        if name == "judgements_train":
            hashes = (zlib.crc32(query.encode()) for query in rows["query"].to_pylist())
            held_out = pa.array([value % validation_every == 0 for value in hashes])
            written["judgements_validation"] = rows.filter(held_out)
            written["positives"] = _positives(rows.filter(pc.invert(held_out)))
    return write_tables(out, written)


def _positives(judgements: pa.Table) -> pa.Table:
    # Grades are two decimals in float32: compare half a step below the limit, not with the limit.
    rows = judgements.filter(pc.greater(judgements["relevance"], RELEVANT - 0.005)).drop_columns("relevance")
    rows = rows.group_by(rows.column_names, use_threads=False).aggregate([])
    times = pa.array([TIME] * len(rows), pa.timestamp("us", "UTC"))
    return rows.append_column("timestamp", times).append_column("weight", pa.array([1] * len(rows), pa.int64()))
