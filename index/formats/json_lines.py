"""Reader of JSON Lines: parsed line by line, so that every message can name its line."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa

from index.errors import SourceError
from index.formats.lines import MAX_LINE_BYTES, lines_of
from index.formats.request import ReadRequest
from index.rows import Columns, RawBatch, RowDefect, TextColumns, place

__all__ = ["read_json_lines"]

_NUMBERS: Final = frozenset({float, int, type(None)})


def read_json_lines(request: ReadRequest) -> Iterator[RawBatch]:
    """Batches of a file of JSON objects, one a line; blank lines are skipped, a byte order mark too.

    Keys other than the columns of vectors and ids become payload, in the order first seen in the batch, null where a
    row lacks them; integers and floats of one key become floats. A line that is not an object, or lacks a column, or
    whose id, title, text or vectors have the wrong type, is a rejected record of the batch.

    Raises SourceError naming the line where the file or its compression is cut short or broken, where a line is longer
    than MAX_LINE_BYTES, or where values of one payload key have types that no column holds together.
    """
    records = itertools.islice(lines_of(request.path), request.start, None)
    ordinal = request.start
    for first in records:
        batch = _Batch(request.path, request.columns, request.ids_only, ordinal)
        size = 0
        for number, line in itertools.chain([first], records):
            batch.add(number, line)
            size += len(line)
            if len(batch) == request.batch_rows or size > MAX_LINE_BYTES:
                break
        ordinal += len(batch)
        yield batch.finish()


class _BadRecordError(Exception):
    """A line that cannot become a row: column, value and reason, in that order."""


@dataclass(slots=True)
class _Batch:
    path: Path
    columns: Columns | TextColumns
    ids_only: bool
    start: int
    id_name: str | None = None
    rows: list[int] = field(default_factory=list)
    ordinals: list[int] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    vectors: dict[str, list[Any]] = field(default_factory=dict)
    others: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[RowDefect] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows) + len(self.rejected)

    def add(self, number: int, line: bytes) -> None:
        names: list[str] | None = None
        try:
            record = _parse(line)
            if not self.start + len(self):
                names = list(record)
            id_name = self.columns.id_among(record)
            identifier = _id(id_name, _take(record, id_name))
            if not self.ids_only:
                self._add_rest(record)
            self.id_name = self.id_name or id_name
        except _BadRecordError as bad:
            column, value, reason = bad.args
            lacking = names if names is not None and column is not None and column not in names else None
            self.rejected.append(RowDefect(number, column, value, reason, lacking, columns=self.columns))
            return
        self.ordinals.append(self.start + len(self))
        self.rows.append(number)
        self.ids.append(identifier)

    def _add_rest(self, record: dict[str, Any]) -> None:
        """Keeps what a record has beside its id."""
        # All of them first: a record is kept whole or not at all.
        vectors = [_vector(name, _take(record, name)) for name in self.columns.vectors]
        if isinstance(self.columns, TextColumns):
            _require_text(self.columns.text, record)
            if self.columns.title in record:
                _require_text(self.columns.title, record)
        for name, vector in zip(self.columns.vectors, vectors, strict=True):
            self.vectors.setdefault(name, []).append(vector)
        self.others.append(record)

    def finish(self) -> RawBatch:
        table = {self.id_name or self.columns.id_among(()): pa.array(self.ids, pa.string())}
        if not self.ids_only:
            for name in self.columns.vectors:
                table[name] = pa.array(self.vectors.get(name, []), pa.list_(pa.float64()))
            for name in dict.fromkeys(itertools.chain.from_iterable(self.others)):
                table[name] = self._payload(name)
        rows, ordinals = (np.array(numbers, dtype=np.int64) for numbers in (self.rows, self.ordinals))
        return RawBatch(pa.table(table), rows, ordinals, self.start + len(self), self.rejected)

    def _payload(self, name: str) -> pa.Array:
        values = [record.get(name) for record in self.others]
        column = _column(values)
        if column is not None:
            return column
        # The shortest prefix that no column holds ends in a value that disagrees with one before it.
        low, high = 0, len(values)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if _column(values[: middle + 1]) is None else (middle + 1, high)
        here = f"{place(self.path, self.rows[low])}, column {name!r}: {values[low]!r:.80}"
        if _column([values[low]]) is None:
            raise SourceError(f"{here} cannot be stored in a column")
        other = next((row for row in range(low) if _column([values[row], values[low]]) is None), 0)
        raise SourceError(
            f"{here} does not go into one column with {values[other]!r:.80} of {place(self.path, self.rows[other])}; "
            "give the key values of one type"
        )


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        # Its position is an offset in the line, as json's own errors have it.
        text = line[:200].decode("utf-8", "replace").strip()
        raise _BadRecordError(None, text, f"it is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise _BadRecordError(None, line[:200].decode("utf-8", "replace").strip(), "it is not a JSON object")
    return record


def _take(record: dict[str, Any], name: str) -> Any:
    try:
        return record.pop(name)
    except KeyError:
        raise _BadRecordError(name, None, "it is missing") from None


def _require_text(name: str, record: dict[str, Any]) -> None:
    if name not in record:
        raise _BadRecordError(name, None, "it is missing")
    if not isinstance(record[name], str | None):
        raise _BadRecordError(name, record[name], "it must be a string")


def _id(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    raise _BadRecordError(name, value, "it must be a string or an integer")


def _vector(name: str, value: Any) -> list[float | None] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise _BadRecordError(name, value, "it must be a list of numbers")
    types = set(map(type, value))
    if not types <= _NUMBERS:
        component = next(place for place, item in enumerate(value) if type(item) not in _NUMBERS)
        raise _BadRecordError(name, value[component], f"component {component}: it must be a number")
    # Arrow refuses integers that float64 cannot hold exactly; vectors are rounded anyway.
    return [None if item is None else float(item) for item in value] if int in types else value


def _column(values: list[Any]) -> pa.Array | None:
    """The values as a column, or None where no type holds them all."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return None
