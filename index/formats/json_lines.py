"""Reader of JSON Lines, plain or compressed: parsed line by line, so that every message can name its line."""

import gzip
import io
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import zstandard

from index.errors import SourceError
from index.rows import Columns, RawBatch, RowDefect, place

__all__ = ["read_json_lines"]

MAX_LINE_BYTES: Final = 64 * 2**20
"""The longest line read; also about how many bytes of lines one batch takes, however many rows it was asked for."""

_ZSTD_INPUT: Final = 4096
# One call returns everything its input expands to, which is at most 128 KiB for every 4 bytes: 128 MiB.

_NUMBERS: Final = frozenset({float, int, type(None)})


def read_json_lines(path: Path, columns: Columns, *, start: int, batch_rows: int, ids_only: bool) -> Iterator[RawBatch]:
    """Batches of a file of JSON objects, one a line; blank lines are skipped, a byte order mark too.

    Keys other than the three columns become payload, in the order first seen in the batch, null where a row lacks
    them; integers and floats of one key become floats. A line that is not an object, or lacks a column, or whose id or
    vectors have the wrong type, is a rejected record of the batch.

    Raises SourceError naming the line where the file or its compression is cut short or broken, where a line is longer
    than MAX_LINE_BYTES, or where values of one payload key have types that no column holds together.
    """
    records = itertools.islice(_lines(path), start, None)
    ordinal = start
    for first in records:
        batch = _Batch(path, columns, ids_only, ordinal)
        size = 0
        for number, line in itertools.chain([first], records):
            batch.add(number, line)
            size += len(line)
            if len(batch) == batch_rows or size > MAX_LINE_BYTES:
                break
        ordinal += len(batch)
        yield batch.finish()


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their 1-based numbers."""
    number = 0
    try:
        with _open(path) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise SourceError(f"{place(path, number)}: it is longer than {MAX_LINE_BYTES} bytes")
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise SourceError(f"{place(path, number + 1)}: the file cannot be read on: {error}") from error


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    suffix = path.suffix.lower()
    if suffix in (".gz", ".zst") and path.stat().st_size == 0:
        raise EOFError("it is empty, where even an empty compressed file has a header")
    if suffix == ".gz":
        return gzip.open(path, "rb")
    if suffix == ".zst":
        return io.BufferedReader(_ZstdFile(path), buffer_size=2**17)
    return path.open("rb")


class _ZstdFile(io.RawIOBase):
    """The frames of a zstd file, one after another.

    zstandard's own stream readers take the end of the file for the end of a frame, and so read a truncated file without
    a word.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("rb")
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            if not self._fill():
                return 0
        size = min(len(buffer), len(self._pending))
        buffer[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        return size

    def _fill(self) -> bool:
        compressed = self._file.read(_ZSTD_INPUT)
        if not compressed:
            if self._frame is not None:
                raise EOFError("the compressed file ends in the middle of a frame")
            return False
        pieces = []
        while compressed:
            frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            pieces.append(frame.decompress(compressed))
            self._frame, compressed = (None, frame.unused_data) if frame.eof else (frame, b"")
        self._pending = memoryview(b"".join(pieces))
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


class _BadRecordError(Exception):
    """A line that cannot become a row: column, value and reason, in that order."""


@dataclass(slots=True)
class _Batch:
    path: Path
    columns: Columns
    ids_only: bool
    start: int
    rows: list[int] = field(default_factory=list)
    ordinals: list[int] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    vectors: tuple[list[Any], list[Any]] = field(default_factory=lambda: ([], []))
    others: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[RowDefect] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows) + len(self.rejected)

    def add(self, number: int, line: bytes) -> None:
        try:
            record = _parse(line)
            identifier = _id(self.columns.id, _take(record, self.columns.id))
            if not self.ids_only:
                mean = _vector(self.columns.mean, _take(record, self.columns.mean))
                variance = _vector(self.columns.variance, _take(record, self.columns.variance))
                self.vectors[0].append(mean)
                self.vectors[1].append(variance)
                self.others.append(record)
        except _BadRecordError as bad:
            self.rejected.append(RowDefect(number, *bad.args))
            return
        self.ordinals.append(self.start + len(self))
        self.rows.append(number)
        self.ids.append(identifier)

    def finish(self) -> RawBatch:
        table = {self.columns.id: pa.array(self.ids, pa.string())}
        if not self.ids_only:
            kind = pa.list_(pa.float64())
            table[self.columns.mean] = pa.array(self.vectors[0], kind)
            table[self.columns.variance] = pa.array(self.vectors[1], kind)
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
