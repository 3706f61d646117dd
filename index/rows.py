"""Rows of a corpus on their way from a reader to the index: as read, as checked, and what is wrong with them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from index.errors import InvalidOptionError, SourceError
from index.gaussians import Gaussians

__all__ = [
    "SHOWN",
    "Columns",
    "RawBatch",
    "RowDefect",
    "SourceBatch",
    "TextColumns",
    "VarianceAs",
    "base_suffix",
    "no_column",
    "place",
    "shown",
    "text_columns",
]

SHOWN: Final = 80
"""Characters of a value that a message shows."""

_SHOWN_NAMES: Final = 40

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
        return f"{place(file, self.row)}{column}: {self.reason} (the value is {shown(self.value)})"


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
    listed = [repr(other[:SHOWN]) for other in names[:_SHOWN_NAMES]] + ["..."] * (len(names) > _SHOWN_NAMES)
    remedy = "id, mean and variance (--id-column, --mean-column, --variance-column)"
    if not columns.vectors:
        remedy = "id and text (--id-column, --text-column)"
    elif "text" in names:
        remedy += ", or which model is to make Gaussians of its texts (--model)"
    return f"there is no column {name!r}; it has {', '.join(listed) or 'none'}. Say which columns hold {remedy}"


def place(file: Path, row: int) -> str:
    """Where a row stands, as every message says it: "docs.jsonl line 12" or "docs.parquet row 11"."""
    return f"{file} {'line' if base_suffix(file) in _LINE_SUFFIXES else 'row'} {row}"


def base_suffix(file: Path) -> str:
    """What the file's name says of its format, in lower case and without a compression: ".jsonl" of "a.JSONL.gz"."""
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    if len(suffixes) == 2 and suffixes[1] in COMPRESSIONS and suffixes[0] in _LINE_SUFFIXES:
        return suffixes[0]
    return suffixes[-1] if suffixes else ""


def shown(value: object) -> str:
    """A value of a source as messages show it."""
    if value is None:
        return "null"
    text = repr(value[:SHOWN] if isinstance(value, str | list) else value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
