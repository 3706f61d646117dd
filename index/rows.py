"""Rows of a corpus on their way from a reader to the index: as read, as checked, and as rejected."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

import numpy as np
import orjson
import pyarrow as pa
from blake3 import blake3

from index.errors import InvalidOptionError, SourceError
from index.gaussians import Gaussians
from index.manifest import FileEntry

__all__ = ["Columns", "RawBatch", "RejectedRows", "RowDefect", "SourceBatch", "VarianceAs", "base_suffix", "place"]

_SHOWN: Final = 80

_READ_BYTES: Final = 1 << 20

_LINE_SUFFIXES: Final = frozenset({".jsonl", ".ndjson"})

COMPRESSIONS: Final = frozenset({".gz", ".zst"})
"""Endings that JSON Lines may carry on top of their own."""


class VarianceAs(StrEnum):
    """How a corpus writes the spread of its Gaussians: sigma^2, log sigma^2 or sigma."""

    VARIANCE = "variance"
    LOGVAR = "logvar"
    STD = "std"


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the three columns that make a Gaussian; every other column is payload."""

    id: str = "id"
    mean: str = "mean"
    variance: str = "variance"

    def __post_init__(self) -> None:
        if len({self.id, self.mean, self.variance}) < 3:
            raise SourceError(
                f"id, mean and variance must be three columns, not {self.id!r}, {self.mean!r} and {self.variance!r}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class SourceBatch:
    """n consecutive good rows of one file.

    file: as the corpus names it; `file_index` is its place in `Corpus.files`.
    rows: (n,) int64, the rows' numbers as messages show them: 1-based lines of JSON Lines, 0-based rows elsewhere.
    ordinals: (n,) int64, the rows' 0-based places among the records of the file; blank lines are no records.
    next_row: ordinal of the first record of the file that this batch did not consume (rejected rows are consumed); with
        `file_index`, where to start again after this batch.
    ids: (n,) pa.string(), neither null nor empty; not checked to be unique.
    gaussians: (n, k) float32 on the CPU.
    payload: n rows of the other columns in source order, or None where the source has none. JSON Lines have no schema:
        their payload is typed batch by batch, so that a column may be null or int64 in one and double in the next.
    """

    file: Path
    file_index: int
    rows: np.ndarray[Any, np.dtype[np.int64]]
    ordinals: np.ndarray[Any, np.dtype[np.int64]]
    next_row: int
    ids: pa.Array
    gaussians: Gaussians
    payload: pa.Table | None

    def __len__(self) -> int:
        return len(self.ids)

    def split(self, rows: int) -> tuple["SourceBatch", "SourceBatch | None"]:
        """The first `rows` rows, and the others if there are any; rejected rows between the two count as the first's.

        Raises InvalidOptionError for `rows` below 1.
        """
        if rows < 1:
            raise InvalidOptionError(f"a batch cannot be split after {rows} rows; it must be at least 1")
        if rows >= len(self):
            return self, None
        rest = self._part(slice(rows, len(self)), self.next_row)
        return self._part(slice(rows), int(rest.ordinals[0])), rest

    def _part(self, part: slice, next_row: int) -> "SourceBatch":
        return replace(
            self,
            rows=self.rows[part],
            ordinals=self.ordinals[part],
            next_row=next_row,
            ids=self.ids[part],
            gaussians=self.gaussians[part],
            payload=None if self.payload is None else self.payload[part],
        )


@dataclass(frozen=True, slots=True)
class RowDefect:
    """Why one row cannot be used: its number as messages show it, the column (None: the row as a whole), the value as
    the source has it, and what is wrong with it."""

    row: int
    column: str | None
    value: object
    reason: str

    def describe(self, file: Path) -> str:
        """The defect in a sentence that starts with its place."""
        column = "" if self.column is None else f", column {self.column!r}"
        return f"{place(file, self.row)}{column}: {self.reason} (the value is {_shown(self.value)})"


@dataclass(frozen=True, slots=True)
class RawBatch:
    """What a reader yields: a table of the columns as they are, before any row is looked at.

    rows, ordinals, next_row: as in SourceBatch, for the n rows of `table`. rejected: records that never became a row of
    the table.
    """

    table: pa.Table
    rows: np.ndarray[Any, np.dtype[np.int64]]
    ordinals: np.ndarray[Any, np.dtype[np.int64]]
    next_row: int
    rejected: list[RowDefect] = field(default_factory=list)


def place(file: Path, row: int) -> str:
    """Where a row stands, as every message says it: "docs.jsonl line 12" or "docs.parquet row 11"."""
    return f"{file} {'line' if base_suffix(file) in _LINE_SUFFIXES else 'row'} {row}"


def base_suffix(file: Path) -> str:
    """What the file's name says of its format, in lower case and without a compression: ".jsonl" of "a.JSONL.gz"."""
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    if len(suffixes) == 2 and suffixes[1] in COMPRESSIONS and suffixes[0] in _LINE_SUFFIXES:
        return suffixes[0]
    return suffixes[-1] if suffixes else ""


class RejectedRows:
    """A file that takes the rows left out of a build, one JSON object a line: file, row, column, value, reason.

    A context manager. Appends, and hands each line to the system at once, so that a build that dies has said what it
    left out; whoever resumes it cuts off what it rejected after the last segment it kept. `count` is of this run,
    `entry` of the whole file. Entering raises OSError where the path cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.count = 0
        self._file: BinaryIO | None = None
        self._hash, self._bytes = blake3(), 0

    def __enter__(self) -> "RejectedRows":
        self._file = self.path.open("a+b", buffering=0)
        self._file.seek(0)
        self._hash, self._bytes = blake3(), 0
        while earlier := self._file.read(_READ_BYTES):
            self._hash.update(earlier)
            self._bytes += len(earlier)
        return self

    @property
    def entry(self) -> FileEntry:
        """Size and checksum of the file."""
        return FileEntry(bytes=self._bytes, blake3=self._hash.hexdigest())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, file: Path, defect: RowDefect) -> None:
        """Writes one rejected row. Raises ValueError outside the `with` block."""
        if self._file is None:
            raise ValueError("rejected rows are written inside the `with` block only")
        line = {
            # File names that are not UTF-8 cannot go into JSON as they are.
            "file": str(file).encode("utf-8", "replace").decode(),
            "row": defect.row,
            "column": defect.column,
            "value": _json_value(defect.value),
            "reason": defect.reason,
        }
        written = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        self._file.write(written)
        self._hash.update(written)
        self._bytes += len(written)
        self.count += 1


def _shown(value: object) -> str:
    if value is None:
        return "null"
    text = repr(value[:_SHOWN] if isinstance(value, str | list) else value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _json_value(value: object) -> object:
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if isinstance(value, str):
        return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
    return value if value is None or isinstance(value, bool | int) else _shown(value)
