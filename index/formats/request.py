"""What every reader is asked, and how it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from index.errors import SourceError
from index.rows import Columns, RawBatch, TextColumns, no_column

__all__ = ["ReadRequest"]


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """What is asked of a reader: a file, its columns, the record to start at, and how many rows make a batch."""

    path: Path
    columns: Columns | TextColumns
    start: int
    batch_rows: int
    ids_only: bool

    def wanted(self, names: Sequence[str]) -> tuple[str, ...]:
        """The columns that must be there, of a file with columns of these names."""
        return (self.columns.id_among(names),) if self.ids_only else self.columns.needed(names)

    def require(self, names: list[str]) -> None:
        """Raises SourceError unless these columns are there, once each, and no other name is there twice."""
        for name in self.wanted(names):
            if name not in names:
                raise SourceError(f"{self.path}: {no_column(name, names, self.columns)}")
        for name in names:
            if names.count(name) > 1:
                raise SourceError(f"{self.path}: there are {names.count(name)} columns named {name!r}")

    def raw(self, table: pa.Table, first: int) -> RawBatch:
        """A batch of a format whose rows are numbered from 0 and all become rows of the table."""
        rows = np.arange(first, first + table.num_rows, dtype=np.int64)
        return RawBatch(table, rows, rows, first + table.num_rows)
