"""Rows of a corpus on their way from a reader to the index: as read, as checked, and as rejected."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

import numpy as np
import orjson
import pyarrow as pa
from blake3 import blake3

from index.durable import naming
from index.errors import InvalidOptionError, SourceError
from index.gaussians import Gaussians
from index.records import FileEntry

__all__ = [
    "Columns",
    "RawBatch",
    "RejectedRows",
    "RowDefect",
    "SourceBatch",
    "TextColumns",
    "VarianceAs",
    "base_suffix",
    "no_column",
    "no_documents",
    "place",
    "text_columns",
]

_SHOWN: Final = 80

_SHOWN_NAMES: Final = 40

_READ_BYTES: Final = 1 << 20

_LINE_SUFFIXES: Final = frozenset({".jsonl", ".ndjson", ".tsv"})

COMPRESSIONS: Final = frozenset({".gz", ".zst"})
"""Endings that files of lines may carry on top of their own."""


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

    @property
    def vectors(self) -> tuple[str, ...]:
        """Those that hold lists of numbers."""
        return self.mean, self.variance

    def id_among(self, names: Collection[str]) -> str:  # noqa: ARG002 (as TextColumns)
        """The column of ids, where these are the names of all."""
        return self.id

    def needed(self, names: Collection[str]) -> tuple[str, ...]:  # noqa: ARG002 (as TextColumns)
        """The columns without which a file with columns of these names cannot be read."""
        return self.id, self.mean, self.variance


@dataclass(frozen=True, slots=True)
class TextColumns:
    """The names of the columns that make a text; all but the id are payload, too. A title, where there is one, goes
    before the text, with a space in between. Without a name, the ids are in `_id`, as in BEIR, or else in `id`."""

    id: str | None = None
    text: str = "text"
    title: str = "title"

    def __post_init__(self) -> None:
        if len({self.id, self.text, self.title}) < 3:
            raise SourceError(
                f"id, text and title must be three columns, not {self.id!r}, {self.text!r} and {self.title!r}"
            )

    @property
    def vectors(self) -> tuple[str, ...]:
        """None: as Columns."""
        return ()

    def id_among(self, names: Collection[str]) -> str:
        """As Columns."""
        return self.id or ("_id" if "_id" in names else "id")

    def needed(self, names: Collection[str]) -> tuple[str, ...]:
        """As Columns."""
        return self.id_among(names), self.text


def text_columns(id: str, text: str, title: str = "title") -> TextColumns:  # noqa: A002 (as TextColumns)
    """Those that options name, of which `id` is what they say where nobody has named one."""
    return TextColumns(None if id == Columns().id else id, text, title)


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
    the source has it, and what is wrong with it. `names`: what the columns of the first record of a file are called
    that lacks the column, as the other records of the file probably do. `remedy`: what is to be done, where that is
    not to correct the row or to leave it out."""

    row: int
    column: str | None
    value: object
    reason: str
    names: Sequence[str] | None = None
    remedy: str | None = None
    columns: "Columns | TextColumns" = Columns()

    def describe(self, file: Path) -> str:
        """The defect in a sentence that starts with its place."""
        if self.names is not None and self.column is not None:
            return f"{place(file, self.row)}: {no_column(self.column, self.names, self.columns)}"
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


def no_column(name: str, names: Sequence[str], columns: "Columns | TextColumns") -> str:
    """What is said where a file has columns of these names, and not this one of those that it needs."""
    shown = [repr(other[:_SHOWN]) for other in names[:_SHOWN_NAMES]] + ["..."] * (len(names) > _SHOWN_NAMES)
    remedy = "id, mean and variance (--id-column, --mean-column, --variance-column)"
    if not columns.vectors:
        remedy = "id and text (--id-column, --text-column)"
    elif "text" in names:
        remedy += ", or which model is to make Gaussians of its texts (--model)"
    return f"there is no column {name!r}; it has {', '.join(shown) or 'none'}. Say which columns hold {remedy}"


def no_documents(files: Sequence[Path], rejected: "RejectedRows | None", listed: Path) -> SourceError:
    """The error for sources without a good row. `listed` is where the user finds the rows that were left out."""
    where = ", ".join(map(str, files))
    if rejected is None or not rejected.count:
        return SourceError(f"there are no documents in {where}")
    left_out = f"all {rejected.count:,} rows of {where} were" if rejected.count > 1 else f"the only row of {where} was"
    return SourceError(f"{left_out} left out, which {listed} lists. The first: {rejected.first}")


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
    left out; whoever resumes it cuts off what it rejected after the last segment it kept. `count` and `first`, the
    first of them in words, are of this run, `entry` is of the whole file. Entering raises OSError where the path cannot
    be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.count = 0
        self.first: str | None = None
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
        with naming(self.path):
            # An unbuffered file takes what there is room for, and says how much; for the rest there is an error.
            left = memoryview(written)
            while left:
                left = left[self._file.write(left) :]
        self._hash.update(written)
        self._bytes += len(written)
        self.count += 1
        self.first = self.first or defect.describe(file)


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
