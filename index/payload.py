"""Payload as Python values, the same whether or not pandas is installed."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

__all__ = ["payload_rows"]


def payload_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table, a dictionary each. What Python's dates and times cannot hold becomes text."""
    columns = [_values(column) for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


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
