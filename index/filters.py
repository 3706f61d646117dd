"""Filters over the payload of documents: what a search is restricted to.

    {"lang": "en", "year": {"gte": 1990, "lt": 2000}, "not": {"tags": {"in": ["draft", "obsolete"]}}}

A filter is an object, and holds for a document that meets all that it names. A key is a column of the payload, or "id",
the document's id; or "and" or "or" with a list of filters, or "not" with one. So columns of these three names, and one
named "id", cannot be asked for.

A condition on a column is one of

    a string, a number, true or false     the field equals it
    null                                  the field is null or missing
    {"in": [...]}                         the field equals one of these; null as above; an empty list holds for nothing
    {"gte": x, "lt": y}                   the field lies there: one of gt and gte, one of lt and lte, or both

A field that is a list meets a condition if one of its elements does, and null if the list itself is null. A comparison
with a field that is null or missing is false, and so is one with NaN; "not" of it is true. index.filter_types says how
values of each type compare.
"""

import json
import sys
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from index.errors import InvalidOptionError
from index.filter_masks import ID, AllOf, Among, AnyOf, Between, Mask, Not, Part, shown
from index.filter_types import Scalar

__all__ = ["MAX_CONDITIONS", "MAX_DEPTH", "MAX_TEXT", "MAX_VALUES", "Filter"]

MAX_DEPTH: Final = 16
"""Filters within each other, the outermost included."""
MAX_CONDITIONS: Final = 256
"""Conditions on fields in one filter: each looks at every document."""
MAX_VALUES: Final = 4_096
"""Values in all "in" lists of a filter together."""
MAX_TEXT: Final = 4_096
"""Characters of a string, and of a field's name."""

_LOWER: Final = ("gt", "gte")
_UPPER: Final = ("lt", "lte")
_CONDITION: Final = "a string, a number, true, false, null, or an object with in, gt, gte, lt or lte"


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter that has been checked; equal to those with the same key.

    key: the filter as JSON, the same for filters that differ in the order of an object's keys alone.
    fields: the columns of the payload that it names.
    """

    key: str
    fields: frozenset[str] = field(compare=False)
    _part: Part = field(compare=False, repr=False)

    @classmethod
    def parse(cls, value: object) -> "Filter":
        """A filter of what JSON is in Python; raises InvalidOptionError naming the place in it that is wrong."""
        parser = _Parser()
        part = parser.filter(value, "filter", 1)
        key = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return cls(key, frozenset(parser.fields - {ID}), part)

    def mask(self, payload: pa.Table | None, ids: pa.ChunkedArray) -> Mask:
        """Whether the filter holds for each document of a segment, (n,) bool.

        payload: n rows, or None where the segment has none. ids: (n,) strings. Columns may be missing, and have other
        types in other segments. Raises InvalidOptionError for a value that the type of its column does not take.
        """
        return self._part.mask(payload, ids)


class _Parser:
    """Reads one filter, and counts what it has. Nothing is looked into before its depth and its size are known."""

    def __init__(self) -> None:
        self.fields: set[str] = set()
        self._conditions = 0
        self._values = 0

    def filter(self, value: object, path: str, depth: int) -> Part:
        if not isinstance(value, dict):
            raise InvalidOptionError(f"{path} is {shown(value)}; it must be an object of fields and their conditions")
        if not value:
            raise InvalidOptionError(f"{path} is empty; name a field, or leave it out to have every document")
        if depth > MAX_DEPTH:
            raise InvalidOptionError(f"{path} is {depth} filters deep; the limit is {MAX_DEPTH}")
        parts = tuple(self._part(key, item, path, depth) for key, item in value.items())
        return parts[0] if len(parts) == 1 else AllOf(parts)

    def _part(self, key: object, value: object, path: str, depth: int) -> Part:
        if not isinstance(key, str):
            raise InvalidOptionError(f"{path} has a key that is {shown(key)}; keys are names of fields")
        place = f"{path}.{key if key.isprintable() and len(key) < 80 else shown(key)}"
        if key == "not":
            return Not(self.filter(value, place, depth + 1))
        if key not in ("and", "or"):
            return self._condition(key, value, place)
        if not isinstance(value, list) or not value:
            given = "empty" if isinstance(value, list) else shown(value)
            raise InvalidOptionError(f"{place} is {given}; it must be a list of filters, at least one")
        parts = tuple(self.filter(item, f"{place}.{number}", depth + 1) for number, item in enumerate(value))
        return AllOf(parts) if key == "and" else AnyOf(parts)

    def _condition(self, name: str, value: object, path: str) -> Part:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise InvalidOptionError(f"{path} is one condition more than the {MAX_CONDITIONS} that a filter may have")
        _check_text(name, f"the name of {path}")
        self.fields.add(name)
        if not isinstance(value, dict):
            return Among(path, name, (None if value is None else _scalar(value, path, _CONDITION),), False)
        unknown = [key for key in value if key not in ("in", *_LOWER, *_UPPER)]
        if unknown or not value:
            given = f"has {shown(unknown[0])}" if unknown else "is empty"
            raise InvalidOptionError(f'{path} {given}; a condition is {_CONDITION}. "not" goes around a filter')
        if "in" in value:
            return self._among(name, value, f"{path}.in")
        for pair in (_LOWER, _UPPER):
            if all(bound in value for bound in pair):
                raise InvalidOptionError(f"{path} has both {pair[0]} and {pair[1]}; leave one of them out")
        bounds = tuple((bound, _bound(item, f"{path}.{bound}")) for bound, item in value.items())
        return Between(path, name, bounds)

    def _among(self, name: str, condition: dict[str, object], path: str) -> Part:
        values = condition["in"]
        if len(condition) > 1:
            other = next(key for key in condition if key != "in")
            raise InvalidOptionError(f'{path} stands beside {other}; put the two into filters of an "and"')
        if not isinstance(values, list):
            raise InvalidOptionError(f"{path} is {shown(values)}; it must be a list of values")
        self._values += len(values)
        if self._values > MAX_VALUES:
            raise InvalidOptionError(
                f"{path} has {len(values)} values, which makes {self._values} in the filter; the limit is {MAX_VALUES}"
            )
        takes = "a string, a number, true, false or null"
        read = [
            None if value is None else _scalar(value, f"{path}.{number}", takes) for number, value in enumerate(values)
        ]
        return Among(path, name, tuple(read), True)


def _scalar(value: object, path: str, takes: str) -> Scalar:
    if isinstance(value, str):
        return _check_text(value, path)
    if not isinstance(value, int | float):
        raise InvalidOptionError(f"{path} is {shown(value)}; it must be {takes}")
    # Python compares an integer with the largest float exactly, and NaN lies within nothing.
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise InvalidOptionError(f"{path} is {shown(value)}; numbers must be finite in float64")
    # NumPy's float64 is a float that writes itself otherwise.
    return float(value) if isinstance(value, float) else value


def _bound(value: object, path: str) -> Scalar:
    if value is None or isinstance(value, bool):
        raise InvalidOptionError(f"{path} is {shown(value)}; it must be a string or a number")
    return _scalar(value, path, "a string or a number")


def _check_text(text: str, what: str) -> str:
    if len(text) > MAX_TEXT:
        raise InvalidOptionError(f"{what} has {len(text)} characters; the limit is {MAX_TEXT}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidOptionError(f"{what} is not text: it has a surrogate at character {error.start}") from error
    return text
