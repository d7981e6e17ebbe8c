"""Plain data (lists, arrays, data frames, Arrow tables) as inputs of a tower, and the outputs for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from q2s_tf.errors import InputError

BATCH_SIZE = 128
"""Rows that a tower embeds at a time. With twice as many, a title of 32 tokens took half as long again with MiniLM: the
operating system hands out the memory of large intermediate results page by page."""
Column = Sequence[Any] | np.ndarray
"""One value a row."""


class RowError(InputError):
    """A value of a column that cannot be used. `row` is its position; `rule` is the message without the position."""

    def __init__(self, column: str, row: int, rule: str):
        super().__init__(f"{column}: row {row} {rule}")
        self.column, self.row, self.rule = column, row, rule


def as_columns(data: Any, main_input: str, inputs: Sequence[str], name: str) -> dict[str, Column]:
    """Columns of plain data by input, with as many rows each.

    Args:
        data: a dict of columns; a pandas DataFrame or an Arrow table, whose other columns are ignored; or one column,
            the `main_input`. A column is a list, a tuple, an array, a Series, an Arrow array or a tensor.
        main_input: input of a single column.
        inputs: the inputs of the tower.
        name: of the tower, for errors.

    Raises:
        InputError: an unknown input, no known input, columns of different lengths, a single text instead of a column.
    """
    if isinstance(data, pa.Table | pa.RecordBatch):
        names = data.schema.names
    elif hasattr(data, "columns") and hasattr(data, "loc"):  # a DataFrame; pandas itself is not needed here
        names = list(data.columns)
    else:
        data = data if isinstance(data, Mapping) else {main_input: data}
        names = list(data)
        if unknown := [str(key) for key in names if key not in inputs]:
            raise InputError(f"{name}: unknown input {', '.join(unknown)}; the inputs are {', '.join(inputs)}")
    columns = {key: _as_sequence(name, key, data[key]) for key in names if key in inputs}
    if not columns:
        raise InputError(
            f"{name}: none of the columns {', '.join(map(str, names))} is an input; the inputs are {', '.join(inputs)}"
        )
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{name}: every input needs the same number of rows; got {lengths}")
    return columns


def text_tensor(name: str, column: Column) -> tf.Tensor:
    """A column of texts as strings `[rows]`. None and NaN become ""; a lone surrogate becomes invalid UTF-8.

    Raises:
        InputError: a value that is not a text.
    """
    texts = [_as_bytes(name, row, value) for row, value in enumerate(column)]
    return tf.constant(texts, tf.string, shape=[len(texts)])


def vector_tensor(name: str, column: Column, dimension: int | None) -> tf.Tensor:
    """A column of sets of vectors as float32 `[rows, M, dimension]`, padded with zeros.

    Args:
        name: of the input, for errors.
        column: a list of vectors a row; None and NaN are empty sets.
        dimension: width of the vectors; that of the widest vectors when None.

    Raises:
        InputError: a set that is not a list of vectors of `dimension` finite numbers.
    """
    sets = [_as_vectors(name, row, vectors) for row, vectors in enumerate(column)]
    width = dimension or max((vectors.shape[-1] for vectors in sets if vectors.size), default=0)
    padded = np.zeros((len(sets), max(map(len, sets), default=0), width), np.float32)
    for row, vectors in enumerate(sets):
        if not vectors.size:
            continue
        if vectors.ndim != 2 or vectors.shape[1] != width or not np.isfinite(vectors).all():
            shaped = vectors.ndim == 2 and vectors.shape[1] == width
            received = "a number that is not finite" if shaped else f"shape {list(vectors.shape)}"
            wrap = ": put the one vector of a row into a list" if vectors.ndim == 1 else ""
            raise RowError(name, row, f"must be a list of vectors of {width} finite numbers; got {received}{wrap}")
        padded[row, : len(vectors)] = vectors
    return tf.constant(padded)


def encode(tower: Any, data: Any, batch_size: int = BATCH_SIZE) -> dict[str, np.ndarray]:
    """Outputs of a tower for plain data: `predict` on batches of rows of similar length.

    Args:
        tower: a `Tower`.
        data: what `Tower.as_inputs` takes.
        batch_size: rows of a batch; it does not change the result.

    Returns:
        `embedding` float32 `[rows, D]` and `channel_weights` float32 `[rows, N]`.

    Raises:
        InputError: see `Tower.as_inputs`.
    """
    inputs = tower.as_inputs(data)
    if not len(next(iter(inputs.values()))):
        return {name: np.zeros((0, output.shape[1]), np.float32) for name, output in tower.output.items()}
    order = order_by_length(inputs)
    batches = tf.data.Dataset.from_tensor_slices({name: tf.gather(values, order) for name, values in inputs.items()})
    outputs = tower.predict(batches.batch(batch_size), verbose=0)
    inverse = np.argsort(order)
    return {name: values[inverse] for name, values in outputs.items()}


def order_by_length(inputs: dict[str, tf.Tensor]) -> np.ndarray:
    """The rows of a tower's inputs by the length of their texts, int `[rows]`: similar lengths need little padding."""
    lengths = [tf.strings.length(values).numpy() for values in inputs.values() if values.dtype == tf.string]
    return np.argsort(np.sum(lengths, axis=0), kind="stable")


def _as_sequence(name: str, key: str, column: Any) -> Column:
    if isinstance(column, str | bytes):
        raise InputError(f"{name}: '{key}' must be a list of values, one a row; got one text: {column!r:.80}")
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return column.to_pylist()
    if hasattr(column, "to_numpy"):  # a Series
        return column.to_numpy()
    if hasattr(column, "numpy"):  # a tensor
        return column.numpy()
    if not hasattr(column, "__len__"):
        raise InputError(f"{name}: '{key}' must be a list of values, one a row; got {column!r:.80}")
    return column


def _is_missing(value: Any) -> bool:
    """None, and what pandas holds for a missing value: NaN, NaT, NA."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or (np.isscalar(value) and value != value)


def _as_bytes(name: str, row: int, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return value
    if _is_missing(value):
        return b""
    raise RowError(name, row, f"must be a text; got {value!r:.80}")


def _as_vectors(name: str, row: int, vectors: Any) -> np.ndarray:
    if _is_missing(vectors):
        return np.zeros((0, 0), np.float32)
    try:
        return np.array([np.asarray(vector, np.float32) for vector in vectors])
    except (TypeError, ValueError):
        raise RowError(name, row, f"must be a list of vectors of equal length; got {vectors!r:.80}") from None
