"""What an event log looks like inside the funnel: seven columns, text keys, UTC timestamps."""

import ibis
import ibis.expr.types as ir

from q2s_tf.errors import InputError

REQUIRED = ("user_id", "event", "timestamp", "query", "country", "document_id")

COLUMNS = (*REQUIRED, "search_id")

BLANK = r"\x{9}-\x{d}\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
"""The characters that Python's ``str.strip`` removes, for the regular expressions of DuckDB and of Spark."""

ISO = (
    r"^\d{4}-\d{2}-\d{2}"
    r"([T ]\d{2}:\d{2}(:\d{2}([.]\d{1,9})?)?( ?(Z|[+-]\d{2}(:?\d{2})?))?)?$"
)


def normalise(raw: ir.Table, origin: str) -> ir.Table:
    """The seven event columns of ``raw``, as text (``timestamp``: UTC), with empty cells as nulls.

    ``product_id`` stands in for ``document_id``; an absent ``search_id`` is null; queries lose the white space around
    them and are otherwise left as typed. One more column, ``unparsable``, tells rows whose timestamp is there but
    cannot be read from rows that have none.

    Raises:
        InputError: ``origin`` (the name of the log, for the message) lacks a required column, or its timestamps are
            of a type that holds no time.
    """
    raw = with_document_id(raw)
    missing = [name for name in REQUIRED if name not in raw.columns]
    if missing:
        raise InputError(
            f"{origin}: an event log needs the columns {', '.join(REQUIRED)}; {', '.join(missing)} missing, "
            f"found {', '.join(raw.columns)}; rename or add them (an empty column will do)"
        )
    if "search_id" not in raw.columns:
        raw = raw.mutate(search_id=ibis.null("string"))
    texts = {name: text(raw[name]) for name in COLUMNS if name != "timestamp"}
    edges = f"^[{BLANK}]+|[{BLANK}]+$"
    timestamp = instant(raw["timestamp"], origin)
    given = text(raw["timestamp"]) if raw["timestamp"].type().is_string() else raw["timestamp"]
    events = raw.select(
        **{**texts, "query": texts["query"].re_replace(edges, "").nullif("")},
        timestamp=timestamp,
        unparsable=timestamp.isnull() & given.notnull(),
    )
    return events.select(*COLUMNS, "unparsable")


def with_document_id(table: ir.Table) -> ir.Table:
    """``table`` with ``product_id`` taken for ``document_id`` where there is none."""
    if "product_id" not in table.columns:
        return table
    if "document_id" not in table.columns:
        return table.rename(document_id="product_id")
    return table.mutate(document_id=ibis.coalesce(table.document_id, table.product_id)).drop("product_id")


def text(column: ir.Column) -> ir.StringColumn:
    """``column`` as text; the empty string is a missing value. A whole number stays one: 12.0 is "12"."""
    if column.type().is_floating():  # what pandas makes of whole numbers where some are missing
        whole = column.cast("int64")
        return ibis.ifelse(whole == column, whole.cast("string"), column.cast("string"))
    return column.cast("string").nullif("")


def instant(column: ir.Column, origin: str) -> ir.TimestampColumn:
    """``column`` as UTC timestamps without zone, microseconds; what cannot be read is null.

    Timestamps with a zone keep their instant, those without are taken as UTC. Text may be ISO 8601 (a date alone is
    its midnight; without an offset it is UTC) or an epoch number. Epoch numbers count in the unit that makes them a
    time between 1973 and 5138 as seconds, else milliseconds, microseconds or nanoseconds; smaller ones are ambiguous
    and stay null.
    """
    kind = column.type()
    if kind.is_timestamp() or kind.is_date():
        return column.cast("timestamp")
    if "TIMESTAMPTZ_NS" in str(kind):  # a type of DuckDB 2 that Ibis does not know, and that casts by way of this one
        return column.cast("timestamp('UTC')").cast("timestamp")
    if kind.is_integer():
        return _epoch(column.cast("int64"))
    if kind.is_floating() or kind.is_decimal():
        return _epoch_with_fraction(column.cast("float64"))
    if kind.is_null():
        return column.cast("timestamp")
    if not kind.is_string():
        raise InputError(
            f"{origin}: column timestamp must hold UTC timestamps, ISO 8601 text or epoch numbers; it holds {kind}"
        )
    # Spark and DuckDB both read more than this, each in its own way: only what both read alike is let through.
    iso = ibis.ifelse(column.re_search(ISO), column, None)
    compact_offset = iso.re_search(r":\d{2}.*[+-]\d{4}$")
    iso = ibis.ifelse(compact_offset, iso.substr(0, iso.length() - 2) + ":" + iso.right(2), iso)
    whole = ibis.ifelse(column.re_search(r"^\d{9,19}$"), column, None).try_cast("int64")
    fraction = ibis.ifelse(column.re_search(r"^\d{9,19}[.]\d+$"), column, None).try_cast("float64")
    return ibis.coalesce(
        iso.try_cast("timestamp('UTC')").cast("timestamp"), _epoch(whole), _epoch_with_fraction(fraction)
    )


def _epoch(number: ir.IntegerColumn) -> ir.TimestampColumn:
    microseconds = ibis.cases(
        (number < 10**8, ibis.null("int64")),
        (number < 10**11, number * 10**6),
        (number < 10**14, number * 10**3),
        (number < 10**17, number),
        # Both engines divide as floats, which are 0.25 apart here: take off the remainder, then round.
        else_=((number - number % 1000) / 1000 + 0.5).floor().cast("int64"),
    )
    return _since_1970(microseconds)


def _epoch_with_fraction(number: ir.FloatingColumn) -> ir.TimestampColumn:
    factor = ibis.cases(
        (number < 1e8, ibis.null("float64")), (number < 1e11, 1e6), (number < 1e14, 1e3), (number < 1e17, 1.0),
        (number < 1e19, 1e-3), else_=ibis.null("float64"),
    )  # fmt: skip
    return _since_1970((number * factor + 0.5).floor().cast("int64"))


def _since_1970(microseconds: ir.IntegerColumn) -> ir.TimestampColumn:
    return ibis.timestamp("1970-01-01 00:00:00") + microseconds.as_interval("us")
