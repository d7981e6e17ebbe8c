"""The types of the data contract, and the conversion of a column of any type to one of them."""

import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TEXT, NUMBER, TIME = pa.string(), pa.float64(), pa.timestamp("us", "UTC")
VECTORS = pa.list_(pa.list_(pa.float32()))
IDS = ("document_id", "user_id", "search_id")
"""Columns of ids, which are text: the whole number 101.0 is the id "101" in every format."""

_TEXT_TYPES = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary,
    pa.types.is_large_binary, pa.types.is_binary_view,
)  # fmt: skip

SPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
"""The characters that `str.strip` removes."""

_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:[.,](\d{1,9}))?(?: ?(Z|[+-]\d\d(?::?\d\d)?))?)?", re.ASCII
)
_PLAIN_ISO = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:?\d\d)?$"
"""The notation that Arrow reads too, and faster."""
_ZONE = r"(Z|[+-]\d\d:?\d\d)$"
_EPOCH = r"^(\d{9,18}|[1-8]\d{18})(\.\d+)?$"
_EPOCH_LIMITS = (10**8, 10**11, 10**14, 10**17, 9 * 10**18)
"""An epoch number below each limit is ambiguous, in seconds, milliseconds, microseconds, nanoseconds."""


class CellError(Exception):
    """A column that cannot be converted: the rule, and the position of the first bad row (None: all of them)."""

    def __init__(self, rule: str, row: int | None = None):
        super().__init__(rule)
        self.rule, self.row = rule, row


def as_text(values: pa.Array, column: str) -> pa.Array:
    """Text, with empty cells as nulls. Numbers must be whole; UUIDs have their canonical form.

    Args:
        values: The column.
        column: Its name. Queries lose surrounding white space; `IDS` that are whole numbers lose a fraction of zeros.

    Raises:
        CellError: The type holds no text or whole number, or a value is not whole.
    """
    kind = values.type
    values = _decoded(values.storage if isinstance(values, pa.ExtensionArray) else values)
    if pa.types.is_fixed_size_binary(values.type) and values.type.byte_width == 16:
        text = pa.array([value and str(uuid.UUID(bytes=value)) for value in values.to_pylist()], TEXT)
    elif pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        text = _whole(values).cast(TEXT)
    elif pa.types.is_nested(values.type):
        raise CellError(f"must be text or whole numbers; it is {kind}")
    else:
        text = pc.cast(values, TEXT)
    if column == "query":
        text = pc.utf8_trim(text, SPACE)
    if column in IDS and pc.any(pc.match_substring(text, ".")).as_py():
        text = pc.replace_substring_regex(text, r"^(-?\d+)\.0+$", r"\1")
    return pc.if_else(pc.equal(text, ""), None, text)


def as_number(values: pa.Array, minimum: float | None = None) -> pa.Array:
    """Finite numbers, of at least `minimum` if it is given, from numbers or text.

    Raises:
        CellError: A value is another one, such as NaN.
    """
    rule = "must be a finite number" + ("" if minimum is None else f" of {minimum:g} or more")
    try:
        numbers = pc.cast(_decoded(values), NUMBER)
    except pa.ArrowInvalid:
        bad = next(row for row, value in enumerate(values.to_pylist()) if value is not None and not _is_number(value))
        raise CellError(f"{rule}; got {values[bad].as_py()!r}", bad) from None
    _check(pc.is_finite(numbers), values, rule)
    if minimum is not None:
        _check(pc.greater_equal(numbers, minimum), values, rule)
    return numbers


def as_times(values: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Times in UTC, and which cells hold something that is no time, bool.

    Timestamps without a zone are UTC. Text is ISO 8601 (a date is its midnight; no offset means UTC) or an epoch
    number. The unit of an epoch number is the one that makes it a time between 1973 and 5138: seconds, milliseconds,
    microseconds or nanoseconds.

    Raises:
        CellError: The type holds no time.
    """
    values = _decoded(values)
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        finer = pa.types.is_timestamp(kind) and kind.unit == "ns"
        times = pc.cast(values, pa.timestamp("us", getattr(kind, "tz", None)), safe=not finer)
        times = times.cast(TIME) if times.type.tz else pc.assume_timezone(times, "UTC")
    elif pa.types.is_integer(kind):
        times = _epoch_times(values.cast(pa.int64()))
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = values.cast(pa.float64())
        values = pc.if_else(pc.is_nan(values), None, values)
        times = _epoch_times(values)
    elif kind == TEXT:
        values = pc.if_else(pc.equal(values, ""), None, values)
        times = _parse_times(values)
    elif pa.types.is_null(kind):
        times = pa.nulls(len(values), TIME)
    else:
        raise CellError(f"must hold UTC timestamps, ISO 8601 text or epoch numbers; it holds {kind}")
    return times, pc.and_(pc.is_null(times), pc.is_valid(values))


def as_vectors(values: pa.Array, width: int | None = None) -> pa.Array:
    """Lists of vectors of finite numbers. One vector in place of a list is a list of one; text is JSON.

    Args:
        values: The column.
        width: The width that the vectors must have, if it is known.

    Raises:
        CellError: A value is something else.
    """
    count = f"{width} " if width else ""
    rule = f"must be a list of vectors of {count}finite numbers, such as [[0.1, 0.2], [0.3, 0.4]]"
    values = _decoded(values)
    if values.type == TEXT:
        cells = enumerate(values.to_pylist())
        values = pa.array([_parse_vectors(cell, row, rule) if cell else None for row, cell in cells], VECTORS)
    elif _is_list(values.type) and pa.types.is_primitive(values.type.value_type):  # one vector a row
        offsets = pa.array(range(len(values) + 1), pa.int32())
        values = pa.ListArray.from_arrays(offsets, values, mask=pc.is_null(values))
    try:
        vectors = pc.cast(values, VECTORS)
    except pa.ArrowException:
        raise CellError(f"{rule}; it is {values.type}") from None
    numbers, widths = vectors.flatten().flatten(), pc.list_value_length(vectors.flatten())
    regular = width is None or pc.all(pc.equal(widths, width), skip_nulls=False, min_count=0).as_py()
    if regular and not (widths.null_count or numbers.null_count) and np.isfinite(numbers.to_numpy()).all():
        return vectors
    for row, vector_set in enumerate(vectors.to_pylist()):
        for vector in vector_set or ():
            if vector is None or (width and len(vector) != width):
                received = "null in place of a vector" if vector is None else f"a vector of {len(vector)}"
                raise CellError(f"{rule}; got {received}", row)
            if bad := [number for number in vector if number is None or not np.isfinite(number)]:
                raise CellError(f"{rule}; got {bad[0]}", row)
    return vectors


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _decoded(values: pa.Array) -> pa.Array:
    """The column without dictionary encoding; text of every layout as valid `TEXT`."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if any(is_text(values.type) for is_text in _TEXT_TYPES):
        values = pc.cast(values, TEXT)
        values.validate(full=True)
    return values


def _whole(values: pa.Array) -> pa.Array:
    """Whole numbers as integers; NaN as null."""
    exact = 2.0**53 if pa.types.is_floating(values.type) else 2.0**63
    numbers = values.cast(pa.float64())
    missing = pc.is_nan(numbers)
    values, numbers = pc.if_else(missing, None, values), pc.if_else(missing, None, numbers)
    _check(pc.equal(pc.floor(numbers), numbers), values, "must be text or whole numbers")
    _check(pc.less(pc.abs(numbers), exact), values, f"must be text: numbers of {exact:.2g} or more are not exact")
    return values.cast(pa.int64())


def _check(good: pa.Array, values: pa.Array, rule: str) -> None:
    if (row := pc.index(good, False).as_py()) >= 0:
        raise CellError(f"{rule}; got {values[row].as_py()!r}", row)


def _is_number(value: Any) -> bool:
    try:
        return bool(pc.cast(pa.scalar(value), NUMBER).is_valid)
    except pa.ArrowException:
        return False


def _epoch_times(numbers: pa.Array) -> pa.Array:
    """Epoch numbers of every unit as times, rounded to microseconds; null where the unit is ambiguous."""
    plain = int if pa.types.is_integer(numbers.type) else float
    below = pc.make_struct(*(pc.less(numbers, plain(limit)) for limit in _EPOCH_LIMITS))
    if plain is int:
        nanoseconds = pc.divide(pc.add(numbers, 500), 1000)
        units = (pc.multiply(numbers, 10**6), pc.multiply(numbers, 10**3), numbers, nanoseconds)
    else:
        scaled = (pc.floor(pc.add(pc.multiply(numbers, factor), 0.5)) for factor in (1e6, 1e3, 1.0, 1e-3))
        units = tuple(pc.cast(values, pa.int64(), safe=False) for values in scaled)
    return pc.case_when(below, pa.scalar(None, pa.int64()), *units).cast(TIME)


def _parse_times(texts: pa.Array) -> pa.Array:
    """Times of ISO 8601 texts and epoch numbers; null for other texts."""
    if pc.all(pc.match_substring_regex(texts, _PLAIN_ISO)).as_py():
        has_zone = pc.match_substring_regex(texts, _ZONE)
        try:
            return pc.cast(pc.if_else(has_zone, texts, pc.binary_join_element_wise(texts, "Z", "")), TIME)
        except pa.ArrowInvalid:  # a day such as 2026-13-01
            pass
    numbers = pc.if_else(pc.match_substring_regex(texts, _EPOCH), texts, None)
    has_point = pc.match_substring(numbers, ".")
    whole = pc.cast(pc.if_else(has_point, None, numbers), pa.int64())
    fractional = pc.cast(pc.if_else(has_point, numbers, None), NUMBER)
    iso = pa.array([text and _parse_iso(text) for text in texts.to_pylist()], TIME)
    return pc.coalesce(iso, _epoch_times(whole), _epoch_times(fractional))


def _parse_iso(text: str) -> datetime | None:
    if not (match := _ISO.fullmatch(text)):
        return None
    date, clock, fraction, zone = match.groups()
    try:
        time = datetime.fromisoformat(f"{date}T{clock or '00:00'}{zone or 'Z'}").astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return time + timedelta(microseconds=int(f"{fraction or 0:0<6}"[:6]))


def _parse_vectors(cell: str, row: int, rule: str) -> list[list[float]]:
    try:
        vectors = np.array(json.loads(cell), np.float32)
        if vectors.ndim in (1, 2):
            return np.atleast_2d(vectors).tolist() if vectors.size else []
    except (ValueError, TypeError, RecursionError):
        pass
    raise CellError(f"{rule}; got {cell[:60]!r}", row)
