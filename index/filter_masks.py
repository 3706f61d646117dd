"""The parts of a filter, and the documents of a segment that each holds for.

Logic has two values: a comparison with null, or with a column that is missing, is false, and `not` of it true.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from index.errors import InvalidOptionError
from index.filter_types import ColumnType, Scalar, column_type
from index.payload import plain

__all__ = ["ID", "AllOf", "Among", "AnyOf", "Between", "Mask", "Not", "Part", "shown"]

ID: Final = "id"
"""The field that is the document id, and never a column of the payload."""
_SHOWN: Final = 80
_SHOWN_BITS: Final = 1024
"""Of integers that float64 reaches; Python writes no very long ones."""

Mask = npt.NDArray[np.bool_]


class Part(Protocol):
    """A filter in a filter."""

    def mask(self, payload: pa.Table | None, ids: pa.ChunkedArray) -> Mask:
        """Whether it holds for each document, (n,), in an array of its own.

        Raises InvalidOptionError for a value that the type of its column does not take.
        """


@dataclass(frozen=True, slots=True)
class AllOf:
    """Holds where all parts do; at least one."""

    parts: tuple[Part, ...]

    def mask(self, payload: pa.Table | None, ids: pa.ChunkedArray) -> Mask:
        """As Part says."""
        mask = self.parts[0].mask(payload, ids)
        for part in self.parts[1:]:
            mask &= part.mask(payload, ids)
        return mask


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Holds where one of the parts does; at least one."""

    parts: tuple[Part, ...]

    def mask(self, payload: pa.Table | None, ids: pa.ChunkedArray) -> Mask:
        """As Part says."""
        mask = self.parts[0].mask(payload, ids)
        for part in self.parts[1:]:
            mask |= part.mask(payload, ids)
        return mask


@dataclass(frozen=True, slots=True)
class Not:
    """Holds where the part does not."""

    part: Part

    def mask(self, payload: pa.Table | None, ids: pa.ChunkedArray) -> Mask:
        """As Part says."""
        mask = self.part.mask(payload, ids)
        return np.logical_not(mask, out=mask)


@dataclass(frozen=True, slots=True)
class Among:
    """Holds where the field, or an element of its list, equals one of the values; null is a field that has none.

    listed: whether the values stand in a list, as messages say it.
    """

    path: str
    field: str
    values: tuple[Scalar | None, ...]
    listed: bool

    def mask(self, payload: pa.Table | None, ids: pa.ChunkedArray) -> Mask:
        """As Part says."""
        rows, null = _rows(self.field, payload, ids), None in self.values
        if rows is None:
            return np.full(len(ids), null)
        places = [f"{self.path}.{number}" if self.listed else self.path for number in range(len(self.values))]
        given = [(place, value) for place, value in zip(places, self.values, strict=True) if value is not None]
        kind, values = _read(given, self.field, rows.type)
        mask = _none(rows) if kind is None or not values else _holds(rows, lambda some: kind.equal(some, values))
        return mask | _dense(rows.is_null()) if null else mask


@dataclass(frozen=True, slots=True)
class Between:
    """Holds where the field, or an element of its list, keeps all bounds: pairs of gt, gte, lt or lte and a value."""

    path: str
    field: str
    bounds: tuple[tuple[str, Scalar], ...]

    def mask(self, payload: pa.Table | None, ids: pa.ChunkedArray) -> Mask:
        """As Part says."""
        rows = _rows(self.field, payload, ids)
        if rows is None:
            return _none(ids)
        given = [(f"{self.path}.{name}", value) for name, value in self.bounds]
        kind, values = _read(given, self.field, rows.type)
        if kind is None:
            return _none(rows)
        bounds = [(name, value) for (name, _), value in zip(self.bounds, values, strict=True)]
        return _holds(rows, lambda some: kind.between(some, bounds))


def shown(value: object) -> str:
    """A value as messages show it: as JSON writes it, cut where it is long; of lists and objects no more than that."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:
        return "a number beyond float64"
    if not (value is None or isinstance(value, str | int | float)):
        return f"of type {type(value).__name__}"
    text = json.dumps(value[:_SHOWN] if isinstance(value, str) else value, ensure_ascii=False)
    # A lone surrogate is no text that can be sent.
    text = text.encode(errors="replace").decode()
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _rows(field: str, payload: pa.Table | None, ids: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The column without encoding; None where it is missing."""
    if field == ID:
        return ids
    return plain(payload.column(field)) if payload is not None and field in payload.schema.names else None


def _read(given: list[tuple[str, Scalar]], field: str, column: pa.DataType) -> tuple[ColumnType | None, list[Any]]:
    """Values, which come with their places, as a column of this type has them, or as elements of its lists are.

    None and no values where the type is that of null, which compares with nothing. Raises InvalidOptionError for the
    first value that the type does not take.
    """
    compared = column
    if _is_list(column):
        compared = plain(pa.chunked_array([], column.value_type)).type
    if pa.types.is_null(compared):
        return None, []
    kind = column_type(compared)
    values = [None if kind is None else kind.read(value) for _, value in given]
    if None in values:
        place, value = given[values.index(None)]
        raise InvalidOptionError(
            f"{place} is {shown(value)}, but the column {shown(field)} is {_cut(str(column))}, which takes "
            f"{'null only' if kind is None else kind.takes}"
        )
    return kind, values


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _holds(rows: pa.ChunkedArray, compare: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> Mask:
    """Whether each row, or an element of it, compares true."""
    if not _is_list(rows.type):
        return _dense(compare(rows))
    masks = [_any_element(chunk, compare) for chunk in rows.chunks]
    return np.concatenate([_none(rows[:0]), *masks])


def _any_element(lists: pa.Array, compare: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> Mask:
    if pa.types.is_fixed_size_list(lists.type):
        edges = (lists.offset + np.arange(len(lists) + 1)) * lists.type.list_size
    else:
        edges = lists.offsets.to_numpy()
    # Where lists are a slice of others, `values` are the elements of all of them.
    elements = lists.values.slice(edges[0], edges[-1] - edges[0])
    held = _dense(compare(plain(pa.chunked_array([elements]))))
    before = np.concatenate([[0], np.cumsum(held, dtype=np.int64)])[edges - edges[0]]
    # A list that is null may have elements all the same.
    any_held: Mask = (before[1:] > before[:-1]) & _dense(lists.is_valid())
    return any_held


def _dense(compared: pa.Array | pa.ChunkedArray) -> Mask:
    """False for null."""
    mask: Mask = pc.fill_null(compared, False).to_numpy(zero_copy_only=False)
    return mask


def _none(rows: pa.ChunkedArray) -> Mask:
    return np.zeros(len(rows), dtype=np.bool_)
