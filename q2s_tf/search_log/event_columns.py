"""The columns of an event log as the funnel reads them: text keys and UTC timestamps."""

import ibis
import ibis.expr.types as ir

from q2s_tf.errors import InputError

REQUIRED = ("user_id", "event", "timestamp", "query", "document_id")

COLUMNS = (*REQUIRED, "country", "search_id")

_BLANK = r"\x{9}-\x{d}\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
"""The characters that Python's `str.strip` removes, for the regular expressions of DuckDB and Spark."""

_ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.]\d{1,9})?)?( ?(Z|[+-]\d{2}(:?\d{2})?))?)?$"


def normalise(raw: ir.Table, origin: str) -> ir.Table:
    """The event columns of `raw` as text (`timestamp`: UTC), with empty cells as nulls.

    `product_id` is another name of `document_id`. `country` and `search_id` are null if `raw` does not have them.
    Queries lose surrounding white space and are otherwise unchanged. The additional column `unparsable` is true where
    a timestamp is present and cannot be read.

    Args:
        raw: The log as it was read.
        origin: The name of the log in errors.

    Raises:
        InputError: A required column is absent, or the timestamps have a type that holds no time.
    """
    raw = _with_document_id(raw)
    missing = [name for name in REQUIRED if name not in raw.columns]
    if missing:
        raise InputError(
            f"{origin}: needs the columns {', '.join(REQUIRED)}; {', '.join(missing)} missing, "
            f"found {', '.join(raw.columns)}; rename columns, or add empty ones"
        )
    raw = raw.mutate(**{name: ibis.null("string") for name in COLUMNS if name not in raw.columns})
    texts = {name: _as_text(raw[name]) for name in COLUMNS if name != "timestamp"}
    timestamp = _as_utc(raw["timestamp"], origin)
    given = _as_text(raw["timestamp"]) if raw["timestamp"].type().is_string() else raw["timestamp"]
    return raw.select(
        **{**texts, "query": texts["query"].re_replace(f"^[{_BLANK}]+|[{_BLANK}]+$", "").nullif("")},
        timestamp=timestamp,
        unparsable=timestamp.isnull() & given.notnull(),
    )


def document_ids(table: ir.Table, origin: str) -> ir.Table:
    """The distinct `document_id` of a catalogue, as text.

    Raises:
        InputError: The catalogue has no such column; `origin` is its name in the error.
    """
    table = _with_document_id(table)
    if "document_id" not in table.columns:
        raise InputError(f"{origin}: needs the column document_id; it has {', '.join(table.columns)}")
    ids = table.select(document_id=_as_text(table.document_id))
    return ids.filter(ids.document_id.notnull()).distinct()


def _with_document_id(table: ir.Table) -> ir.Table:
    """`table` with `product_id` in place of `document_id` where the latter is absent or null."""
    if "product_id" not in table.columns:
        return table
    if "document_id" not in table.columns:
        return table.rename(document_id="product_id")
    return table.mutate(document_id=ibis.coalesce(table.document_id, table.product_id)).drop("product_id")


def _as_text(column: ir.Column) -> ir.StringColumn:
    """`column` as text, with the empty string as null; whole numbers have no decimal point (12.0 is "12")."""
    if column.type().is_floating():  # pandas stores whole numbers as floats where some are missing
        whole = column.cast("int64")
        return ibis.ifelse(whole == column, whole.cast("string"), column.cast("string"))
    return column.cast("string").nullif("")


def _as_utc(column: ir.Column, origin: str) -> ir.TimestampColumn:
    """`column` as UTC timestamps without zone, in microseconds; values that cannot be read are null.

    Timestamps with a zone keep their instant; those without are UTC. Text may be ISO 8601 (a date is its midnight; no
    offset means UTC) or an epoch number. The unit of an epoch number is the one that makes it a time between 1973 and
    5138: seconds, else milliseconds, microseconds or nanoseconds. Smaller numbers are ambiguous and become null.

    Raises:
        InputError: The type of `column` holds no time; `origin` is the name of the log in the error.
    """
    kind = column.type()
    if kind.is_timestamp() or kind.is_date() or kind.is_null():
        return column.cast("timestamp")
    if "TIMESTAMPTZ_NS" in str(kind):  # a type of DuckDB 2 that Ibis does not know; it casts by way of this one
        return column.cast("timestamp('UTC')").cast("timestamp")
    if kind.is_integer():
        return _from_epoch(column.cast("int64"))
    if kind.is_floating() or kind.is_decimal():
        return _from_fractional_epoch(column.cast("float64"))
    if not kind.is_string():
        raise InputError(
            f"{origin}: column timestamp must hold UTC timestamps, ISO 8601 text or epoch numbers; it holds {kind}"
        )
    # Spark and DuckDB each accept further notations: restrict the text to notations that both read in the same way.
    iso = ibis.ifelse(column.re_search(_ISO), column, None)
    compact_offset = iso.re_search(r":\d{2}.*[+-]\d{4}$")
    iso = ibis.ifelse(compact_offset, iso.substr(0, iso.length() - 2) + ":" + iso.right(2), iso)
    whole = ibis.ifelse(column.re_search(r"^\d{9,19}$"), column, None).try_cast("int64")
    fraction = ibis.ifelse(column.re_search(r"^\d{9,19}[.]\d+$"), column, None).try_cast("float64")
    return ibis.coalesce(
        iso.try_cast("timestamp('UTC')").cast("timestamp"), _from_epoch(whole), _from_fractional_epoch(fraction)
    )


_1970 = ibis.timestamp("1970-01-01 00:00:00")


def _from_epoch(number: ir.IntegerColumn) -> ir.TimestampColumn:
    microseconds = ibis.cases(
        (number < 10**8, ibis.null("int64")),
        (number < 10**11, number * 10**6),
        (number < 10**14, number * 10**3),
        (number < 10**17, number),
        # Both engines divide as floats, which are 0.25 apart here: take off the remainder, then round.
        else_=((number - number % 1000) / 1000 + 0.5).floor().cast("int64"),
    )
    return _1970 + microseconds.as_interval("us")


def _from_fractional_epoch(number: ir.FloatingColumn) -> ir.TimestampColumn:
    factor = ibis.cases(
        (number < 1e8, ibis.null("float64")), (number < 1e11, 1e6), (number < 1e14, 1e3), (number < 1e17, 1.0),
        (number < 1e19, 1e-3), else_=ibis.null("float64"),
    )  # fmt: skip
    return _1970 + (number * factor + 0.5).floor().cast("int64").as_interval("us")
