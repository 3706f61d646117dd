"""Arrow files of an index, memory-mapped: looked at before Arrow reads them, and their values before they are used.

Arrow checks where the parts of a file lie, and `validate` what is in them. It does not ask how large a compressed part
becomes: a few bytes may stand for any number. Nothing in an index is compressed, so that such files are refused before
anything is unpacked, by following the few tables of the format that say so
(https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc).
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from index.errors import CorruptIndexError
from index.untrusted import IndexFile

__all__ = ["map_table", "require_valid"]

MOST_MESSAGES = 100_000
"""An index's files have one for each two gigabytes of a column."""

_MAGIC = b"ARROW1"
_CONTINUED = b"\xff\xff\xff\xff"
_VERSION_5 = 4
_DICTIONARY, _RECORDS = 2, 3
"""Kinds of a message."""
_BLOCK = struct.Struct("<qi4xq")
"""Where a message of the file lies: its place, the size of its metadata and of its body."""


def map_table(file: IndexFile, rows: int, *, verify: bool) -> pa.Table:
    """Memory-maps an Arrow file of so many rows; reads and checks all of it first if `verify`.

    Raises CorruptIndexError where it is anything else.
    """
    with file.open() as opened:
        if verify:
            opened.verify()
        mapped = opened.map()
    try:
        if any(map(_is_compressed, _messages(mapped))):
            raise CorruptIndexError(f"{file.path} is compressed, which no file of an index is")
        table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all()
    except (pa.ArrowException, struct.error, ValueError, OSError) as error:
        raise CorruptIndexError(f"{file.path} is not an Arrow file: {error}") from error
    if table.num_rows != rows:
        raise CorruptIndexError(f"{file.path} has {table.num_rows} rows, not {rows}")
    if verify:
        require_valid(file.path, table)
    return table


def require_valid(path: Path, table: pa.Table) -> None:
    """Raises CorruptIndexError where a value of a table of this file lies outside of it or is not of its type."""
    try:
        table.validate(full=True)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise CorruptIndexError(f"{path} has values that are not of their column's type: {error}") from error


class _Table:
    """A table of a FlatBuffer. Whatever lies outside of the data raises struct.error or ValueError."""

    def __init__(self, data: memoryview, place: int) -> None:
        self._data, self._place = data, place
        self._fields = place - _read("<i", data, place)
        self._size = _read("<H", data, self._fields)

    @classmethod
    def root(cls, data: memoryview) -> "_Table":
        return cls(data, _read("<I", data, 0))

    def place(self, field: int) -> int | None:
        """Where a field lies; None where the table does not have it."""
        entry = 4 + 2 * field
        offset = _read("<H", self._data, self._fields + entry) if entry + 2 <= self._size else 0
        return self._place + offset if offset else None

    def number(self, form: str, field: int) -> int:
        """A number; 0 where the table does not have it."""
        place = self.place(field)
        return 0 if place is None else _read(form, self._data, place)

    def table(self, field: int) -> "_Table":
        place = self._required(field)
        return _Table(self._data, place + _read("<I", self._data, place))

    def blocks(self, field: int) -> Iterator[tuple[int, int, int]]:
        """The blocks of a vector of them."""
        place = self.place(field)
        if place is None:
            return
        start = place + _read("<I", self._data, place)
        count = _read("<I", self._data, start)
        if count > MOST_MESSAGES:
            raise ValueError(f"it has {count} parts, and none of an index has more than {MOST_MESSAGES}")
        for number in range(count):
            at = start + 4 + number * _BLOCK.size
            _require_inside(at, self._data)
            yield _BLOCK.unpack_from(self._data, at)

    def _required(self, field: int) -> int:
        place = self.place(field)
        if place is None:
            raise ValueError("a part of its description is missing")
        return place


def _messages(data: memoryview) -> Iterator[_Table]:
    """The messages that the end of the file lists, of dictionaries and of records."""
    end = len(data) - len(_MAGIC) - 4
    if end < 0 or data[end + 4 :] != _MAGIC:
        raise ValueError("it does not end like one")
    start = end - _read("<i", data, end)
    if not 0 <= start <= end:
        raise ValueError("its footer lies outside of it")
    footer = _Table.root(data[start:end])
    for field in (2, 3):
        for place, size, _ in footer.blocks(field):
            if place < 0 or size < 8 or place + size > len(data):
                raise ValueError("a message lies outside of it")
            if data[place : place + 4] != _CONTINUED:
                raise ValueError("it is of a version that no index has")
            yield _Table.root(data[place + 8 : place + size])


def _is_compressed(message: _Table) -> bool:
    if message.number("<h", 0) != _VERSION_5:
        raise ValueError("it is of a version that no index has")
    kind = message.number("<B", 1)
    if kind not in (_DICTIONARY, _RECORDS):
        raise ValueError("a message is neither records nor a dictionary")
    records = message.table(2) if kind == _RECORDS else message.table(2).table(1)
    return records.place(3) is not None


def _read(form: str, data: memoryview, place: int) -> int:
    _require_inside(place, data)
    return int(struct.unpack_from(form, data, place)[0])


def _require_inside(place: int, data: memoryview) -> None:
    # struct counts a negative place from the end.
    if not 0 <= place < len(data):
        raise ValueError("a part of its description lies outside of it")
