"""What a value of a filter means in a payload column, by the column's Arrow type, and the rows it compares with.

A number is compared by value with columns of integers and decimals: 2**53 + 1 is not 2**53, and 2.5 lies between 2 and
3. A number with a fraction is what JSON writes, so that 0.1 equals the decimal 0.10. In a column of floats a number is
first rounded to float64 and then to the column's type, as the column's own values were: 0.1 equals what a float32
column holds for 0.1. A number beyond the type's range stays beyond it. NaN compares with nothing.

Strings are ordered by their UTF-8 bytes. Columns of dates, times and timestamps take ISO 8601 and are compared by
value, whatever their unit. A timestamp without a zone is in UTC where the column has a zone; one with a zone is refused
where the column has none, because nobody has said where its clocks stand.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index.iso8601 import read_date, read_moment, read_time

__all__ = ["Bound", "ColumnType", "Scalar", "column_type"]

Scalar = str | int | float | bool
Bound = tuple[str, Any]
"""One of gt, gte, lt and lte, and a value that the column's type has read."""

_COMPARE: Final = {"gt": pc.greater, "gte": pc.greater_equal, "lt": pc.less, "lte": pc.less_equal}
_UNITS: Final = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
"""Nanoseconds."""
_DAY: Final = 24 * 3600 * 10**9
_DIGITS: Final = 76
"""Of the widest decimal."""


class ColumnType(ABC):
    """How a column of one type is compared. `takes` says in words which values it takes."""

    takes: str

    @abstractmethod
    def read(self, value: Scalar) -> Any:
        """What the value is in such a column, or None where the column does not take it."""

    @abstractmethod
    def equal(self, column: pa.ChunkedArray, values: Sequence[Any]) -> pa.ChunkedArray:
        """Whether each row equals one of the values that were read, at least one: (n,) bool, no row of null true."""

    @abstractmethod
    def between(self, column: pa.ChunkedArray, bounds: Sequence[Bound]) -> pa.ChunkedArray:
        """Whether each row keeps all bounds, at least one: (n,) bool, no row of null true."""


def column_type(kind: pa.DataType) -> ColumnType | None:
    """How columns of an Arrow type without encoding are compared; None where they take no value."""
    types = pa.types
    if types.is_string(kind) or types.is_large_string(kind):
        return _Plain(str, "strings")
    if types.is_boolean(kind):
        return _Plain(bool, "true and false")
    if types.is_floating(kind):
        return _Floats(kind)
    if types.is_integer(kind):
        return _integers(kind)
    if types.is_decimal(kind):
        return _decimals(kind)
    return _temporal(kind)


@dataclass(frozen=True, slots=True)
class _Plain(ColumnType):
    """Columns whose values are those of JSON."""

    python: type
    takes: str

    def read(self, value: Scalar) -> Scalar | None:
        return value if isinstance(value, self.python) else None

    def equal(self, column: pa.ChunkedArray, values: Sequence[Scalar]) -> pa.ChunkedArray:
        return _among(column, pa.array(values, column.type))

    def between(self, column: pa.ChunkedArray, bounds: Sequence[Bound]) -> pa.ChunkedArray:
        return _all(_COMPARE[name](column, pa.scalar(value, column.type)) for name, value in bounds)


class _Floats(ColumnType):
    takes = "numbers"

    def __init__(self, kind: pa.DataType) -> None:
        self._dtype: np.dtype[np.floating[Any]] = np.dtype(kind.to_pandas_dtype())
        self._largest = float(np.finfo(self._dtype).max)

    def read(self, value: Scalar) -> float | None:
        """Rounded to the column's type, and infinite where it is beyond."""
        if not _is_number(value):
            return None
        with np.errstate(over="ignore"):
            return float(self._dtype.type(float(value)))

    def equal(self, column: pa.ChunkedArray, values: Sequence[float]) -> pa.ChunkedArray:
        column = _comparable(column)
        wanted = {value for value in values if math.isfinite(value)}
        # Arrow's sets tell the two zeros apart.
        signed = [*wanted, *((-0.0, 0.0) if 0.0 in wanted else ())]
        return _among(column, pa.array(signed, column.type))

    def between(self, column: pa.ChunkedArray, bounds: Sequence[Bound]) -> pa.ChunkedArray:
        column = _comparable(column)
        finite = [bound if math.isfinite(bound[1]) else self._within(*bound) for bound in bounds]
        return _all(_COMPARE[name](column, pa.scalar(value, column.type)) for name, value in finite)

    def _within(self, name: str, value: float) -> Bound:
        """A bound beyond the largest finite value, which an infinite row keeps or not: as one at that value."""
        if value > 0:
            return ("gt" if name in ("gt", "gte") else "lte"), self._largest
        return ("gte" if name in ("gt", "gte") else "lt"), -self._largest


@dataclass(frozen=True, slots=True)
class _Units(ColumnType):
    """Columns whose values are whole numbers of some unit, from `low` to `high` of them.

    count: the value in units, exactly, or None where the column does not take it. counted: the column as Arrow compares
    it. of: so many units as a value of that column.
    """

    takes: str
    low: int
    high: int
    count: Callable[[Any], Fraction | None]
    counted: Callable[[pa.ChunkedArray], pa.ChunkedArray]
    of: Callable[[int], Any]

    def read(self, value: Scalar) -> Fraction | None:
        return self.count(value)

    def equal(self, column: pa.ChunkedArray, values: Sequence[Fraction]) -> pa.ChunkedArray:
        column = self.counted(column)
        wanted = {int(value) for value in values if value.denominator == 1 and self.low <= value <= self.high}
        return _among(column, pa.array([self.of(units) for units in wanted], column.type))

    def between(self, column: pa.ChunkedArray, bounds: Sequence[Bound]) -> pa.ChunkedArray:
        column = self.counted(column)
        low, high = self.low, self.high
        for name, value in bounds:
            if name in ("gt", "gte"):
                low = max(low, math.floor(value) + 1 if name == "gt" else math.ceil(value))
            else:
                high = min(high, math.ceil(value) - 1 if name == "lt" else math.floor(value))
        if low > high:
            return _among(column, pa.array([], column.type))
        kept = [("gte", low)] if low > self.low else []
        kept += [("lte", high)] if high < self.high else []
        compared = [_COMPARE[name](column, pa.scalar(self.of(units), column.type)) for name, units in kept]
        return _all(compared or [column.is_valid()])


def _integers(kind: pa.DataType) -> ColumnType:
    limits = np.iinfo(kind.to_pandas_dtype())
    return _Units("numbers", int(limits.min), int(limits.max), _exact, lambda column: column, int)


def _decimals(kind: pa.DataType) -> ColumnType | None:
    scale = max(kind.scale, 0)
    precision = kind.precision + scale - kind.scale
    if precision > _DIGITS:
        return None
    # Arrow has no order for negative scales, and no sets of decimals narrower than these.
    make = pa.decimal256 if kind.bit_width > 128 or precision > 38 else pa.decimal128
    wide = make(precision, scale)

    def count(value: Scalar) -> Fraction | None:
        return Fraction(repr(value)) * 10**scale if _is_number(value) else None

    def of(units: int) -> Decimal:
        # Whole, whatever the precision of Python's decimal context is.
        return Decimal((int(units < 0), tuple(map(int, str(abs(units)))), -scale))

    largest = 10**precision - 1
    return _Units("numbers", -largest, largest, count, lambda column: column.cast(wide), of)


def _temporal(kind: pa.DataType) -> ColumnType | None:
    """None where it is no type of dates or times."""
    types = pa.types
    if types.is_timestamp(kind):
        unit = _UNITS[kind.unit]
        if kind.tz is None:
            return _times(kind, "ISO 8601 dates and times without a zone, such as 2024-02-29T12:30:00", _local, unit)
        takes = "ISO 8601 dates and times, in UTC unless they name a zone, such as 2024-02-29T12:30:00+01:00"
        return _times(kind, takes, _instant, unit)
    if types.is_date(kind):
        takes = "ISO 8601 dates, such as 2024-02-29"
        return _times(kind, takes, _date, _DAY if types.is_date32(kind) else _UNITS["ms"])
    if types.is_time(kind):
        return _times(kind, "ISO 8601 times without a zone, such as 12:30:00", read_time, _UNITS[kind.unit])
    return None


def _times(kind: pa.DataType, takes: str, read: Callable[[str], int | None], unit: int) -> ColumnType:
    """Of what `read` reads as nanoseconds, in units of so many."""

    def count(value: Scalar) -> Fraction | None:
        nanoseconds = read(value) if isinstance(value, str) else None
        return None if nanoseconds is None else Fraction(nanoseconds, unit)

    whole = pa.int32() if kind.bit_width == 32 else pa.int64()
    highest = 2 ** (kind.bit_width - 1) - 1
    return _Units(takes, -highest - 1, highest, count, lambda column: column.cast(whole), int)


def _local(text: str) -> int | None:
    found = read_moment(text)
    return None if found is None or found[1] else found[0]


def _instant(text: str) -> int | None:
    found = read_moment(text)
    return None if found is None else found[0]


def _date(text: str) -> int | None:
    days = read_date(text)
    return None if days is None else days * _DAY


def _exact(value: Scalar) -> Fraction | None:
    return Fraction(value) if _is_number(value) else None


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Arrow compares no float16; float32 holds them all."""
    return column.cast(pa.float32()) if pa.types.is_float16(column.type) else column


def _among(column: pa.ChunkedArray, values: pa.Array) -> pa.ChunkedArray:
    return pc.equal(column, values[0]) if len(values) == 1 else pc.is_in(column, value_set=values)


def _all(compared: Iterable[pa.ChunkedArray]) -> pa.ChunkedArray:
    return reduce(pc.and_, compared)
