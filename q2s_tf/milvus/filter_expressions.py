"""Milvus's filter expressions.

Values are written into the text of an expression: milvus-lite has no templates, and pymilvus does not escape the ids
that it writes into one.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf

from q2s_tf.errors import InputError
from q2s_tf.milvus.publications import Publication
from q2s_tf.serving.signatures import FILTER_PREFIX
from q2s_tf.text import normalise

ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


def literal(text: str) -> str:
    """A string literal of Milvus's filter expressions."""
    return f'"{text.translate(ESCAPES)}"'


def any_of(field: str, texts: Iterable[str]) -> str:
    """The filter expression that a field has one of some texts."""
    return f"{field} in [{', '.join(map(literal, texts))}]"


def filter_expressions(publication: Publication, wanted: Mapping[str, np.ndarray], count: int) -> list[str]:
    """The filter expression of each query; "" where it has no filter.

    Args:
        publication: The collection that is searched.
        wanted: The values that documents must have by column, bytes `[count]`; "" matches every document.
        count: The number of queries.

    Raises:
        InputError: The collection has no such filter.
    """
    parts: list[list[str]] = [[] for _ in range(count)]
    columns = publication.settings["filters"]
    for name, values in wanted.items():
        if name not in columns:
            known = f"was published to filter by {', '.join(columns)}" if columns else "has no filters"
            raise InputError(
                f'there is no filter "{name}"; {publication.name} {known}; name columns when it is published: '
                "--filter COLUMN"
            )
        for part, value in zip(parts, normalise(tf.constant(values, tf.string, [count])).numpy(), strict=True):
            if value:
                part.append(f"{FILTER_PREFIX}{name} == {literal(value.decode())}")
    return [" and ".join(part) for part in parts]
