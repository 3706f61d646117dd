"""Payload columns without their encodings, and as Python values, the same whether or not pandas is installed."""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index.iso8601 import read_time

__all__ = ["conformed", "payload_rows", "plain", "read_text", "unified", "unknown_zone"]


def unified(tables: Sequence[pa.Table | None]) -> pa.Schema:
    """The columns of all these tables, each of a type that holds those of all; ArrowInvalid or ArrowTypeError where
    there is none."""
    schemas = [table.schema.remove_metadata() for table in tables if table is not None]
    return pa.unify_schemas(schemas, promote_options="permissive") if schemas else pa.schema([])


def conformed(table: pa.Table | None, schema: pa.Schema, rows: int) -> pa.Table:
    """A table of so many rows, or none, with the columns of a schema."""
    columns = []
    for field in schema:
        if table is None or field.name not in table.schema.names:
            columns.append(pa.chunked_array([pa.nulls(rows, field.type)]))
        else:
            column = table.column(field.name)
            # Not safe, because a whole number may have more digits than the float that holds both.
            columns.append(column if column.type == field.type else column.cast(field.type, safe=False))
    return pa.table(columns, schema=schema)


def payload_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table, a dictionary each. What Python's dates and times cannot hold becomes text."""
    columns = [_values(column) for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def read_text(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table in which text is read as what columns of these names hold in a schema, where that is no text: dates and
    times as ISO 8601, decimals, and bytes as base64, as JSON has them.

    Raises ValueError naming the column and what it cannot be.
    """
    for place, field in enumerate(table.schema):
        if field.name not in schema.names:
            continue
        kind = schema.field(field.name).type
        if not (_is_text(_element(field.type)) and _is_written_as_text(_element(kind))):
            continue
        try:
            table = table.set_column(place, field.name, _read(table.column(place), kind))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            raise ValueError(f"payload {field.name!r} is {kind} in the index: {error}") from error
    return table


def _read(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if _is_bytes(kind):
        values = [None if text is None else base64.b64decode(text, validate=True) for text in column.to_pylist()]
        return pa.chunked_array([pa.array(values, kind)])
    if pa.types.is_time(kind):
        times = [None if text is None else read_time(text) for text in column.to_pylist()]
        if None in [time for time, text in zip(times, column.to_pylist(), strict=True) if text is not None]:
            raise ValueError("a value is no time of day, such as 12:30:05")
        return pa.chunked_array([pa.array(times, pa.time64("ns")).cast(kind)])
    return column.cast(kind)


def _element(kind: pa.DataType) -> pa.DataType:
    """The type of a list's elements; the type itself where it is of no list."""
    types = pa.types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return kind.value_type if is_list else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _is_written_as_text(kind: pa.DataType) -> bool:
    types = pa.types
    is_time = types.is_temporal(kind) and not (types.is_duration(kind) or types.is_interval(kind))
    return bool(is_time or types.is_decimal(kind) or _is_bytes(kind))


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same values without an encoding of the column as a whole: Arrow takes rows from plain columns only."""
    types, kind = pa.types, column.type
    if types.is_run_end_encoded(kind):
        return plain(pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], kind.value_type))
    if types.is_dictionary(kind):
        return plain(column.cast(kind.value_type))
    if types.is_string_view(kind) or types.is_binary_view(kind):
        return column.cast(pa.large_string() if types.is_string_view(kind) else pa.large_binary())
    return column


def _values(column: pa.ChunkedArray) -> list[Any]:
    try:
        return list(column.cast(_mapped(column.type, _microseconds)).to_pylist())
    except (ValueError, OverflowError):
        # Python's datetime ends at microseconds and at the year 9999.
        return list(column.cast(_mapped(column.type, _text)).to_pylist())


def _mapped(kind: pa.DataType, leaf: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type with `leaf` applied to every type of time in it; the type itself where there is none."""
    types = pa.types
    if types.is_temporal(kind):
        return leaf(kind)
    if types.is_map(kind):
        made = pa.map_(_mapped(kind.key_type, leaf), _mapped(kind.item_type, leaf))
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        made = pa.large_list(_mapped(kind.value_type, leaf))
    elif types.is_struct(kind):
        made = pa.struct([pa.field(field.name, _mapped(field.type, leaf)) for field in kind])
    else:
        return kind
    return made if _has_time(kind) else kind


def unknown_zone(kind: pa.DataType) -> str | None:
    """A time zone in a type of which nobody here knows what it is, if there is one."""
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        try:
            pa.scalar(0, pa.timestamp("us", kind.tz)).as_py()
        except (pa.ArrowException, ValueError, KeyError):
            return str(kind.tz)
    return next(filter(None, (unknown_zone(kind.field(i).type) for i in range(kind.num_fields))), None)


def _has_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind)) or any(_has_time(kind.field(i).type) for i in range(kind.num_fields))


def _microseconds(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    return pa.time64("us") if kind == pa.time64("ns") else kind


def _text(_: pa.DataType) -> pa.DataType:
    return pa.string()
