"""The arguments of a client, checked and converted to what a request holds."""

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from q2s_tf.errors import InputError

Texts = Any
"""A column of texts: a list, a tuple, a Series, a DataFrame of one column, or an Arrow or NumPy array. None, NaN and
``""`` are missing texts."""


def to_texts(name: str, values: Texts, rows: int | None = None) -> np.ndarray:
    """A column of texts as bytes `[B]`; with `rows`, one text or None stands for that many equal ones.

    A lone surrogate becomes invalid UTF-8, which the towers read as a space.
    """
    if rows is not None and (values is None or isinstance(values, str | bytes)):
        values = [values] * rows
    if hasattr(values, "columns") and hasattr(values, "iloc"):  # a DataFrame; pandas itself is not needed here
        if len(values.columns) != 1:
            columns = ", ".join(map(str, values.columns))
            raise InputError(f"{name} must be one column of texts, got a DataFrame of the columns {columns}")
        values = values.iloc[:, 0]
    for method in ("to_pylist", "tolist"):  # Arrow, and NumPy and pandas
        values = getattr(values, method, lambda values=values: values)()
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise InputError(f"{name} must be a list of texts, one for each row, got {values!r:.80}; wrap one text in []")
    texts = list(values)
    array = np.empty(len(texts), object)
    for row, text in enumerate(texts):
        if isinstance(text, str):
            array[row] = text.encode("utf-8", "surrogatepass")
        elif isinstance(text, bytes):
            array[row] = text
        elif text is None or type(text).__name__ == "NAType" or (isinstance(text, float) and math.isnan(text)):
            array[row] = b""
        else:
            raise InputError(f"{name} must be texts, got {text!r:.80} in row {row}")
    return array


def to_int(name: str, value: Any, least: int, limit: int = 2**31) -> int:
    """A whole number of at least `least` and below `limit`, also of NumPy's types."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not least <= number < limit:
        below = f"2^{limit.bit_length() - 1}"
        raise InputError(f"{name} must be a whole number of at least {least} and below {below}, got {value!r:.80}")
    return number


def to_float(name: str, value: Any) -> np.float32:
    """A finite number."""
    try:
        number = np.float32("nan" if isinstance(value, str | bytes) else value)
    except (TypeError, ValueError):
        number = np.float32("nan")
    if np.ndim(number) or not np.isfinite(number):
        raise InputError(f"{name} must be a finite number, got {value!r:.80}")
    return number


def to_array(value: Any) -> np.ndarray:
    """An input of `Client.predict` as an array; raises ValueError for one that cannot be sent."""
    array = np.asarray(value)
    if isinstance(value, np.ndarray | np.generic):
        return array
    if array.dtype.kind in "SU":  # NumPy's own strings drop NULs at the end; objects keep them
        return np.asarray(value, dtype=object)
    narrow = {"i": np.int32, "f": np.float32}.get(array.dtype.kind)
    if narrow is None:
        return array
    with np.errstate(over="ignore"):
        narrowed = array.astype(narrow)
    if array.dtype.kind == "i" and (narrowed != array).any():
        raise ValueError("a number does not fit int32; give an array of int64")
    return narrowed
