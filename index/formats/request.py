"""What every reader is asked, and how it answers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from index.errors import SourceError
from index.rows import Columns, RawBatch

__all__ = ["ReadRequest"]


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """What is asked of a reader: a file, its columns, the record to start at, and how many rows make a batch."""

    path: Path
    columns: Columns
    start: int
    batch_rows: int
    ids_only: bool

    @property
    def wanted(self) -> tuple[str, ...]:
        """The columns that must be there."""
        return (self.columns.id,) if self.ids_only else (self.columns.id, self.columns.mean, self.columns.variance)

    def require(self, names: list[str]) -> None:
        """Raises SourceError unless the three columns are there, once each, and no other name is there twice."""
        for name in self.wanted:
            if name not in names:
                raise SourceError(
                    f"{self.path}: there is no column {name!r}; it has {', '.join(map(repr, names)) or 'none'}. "
                    "Say which columns hold id, mean and variance"
                )
        for name in names:
            if names.count(name) > 1:
                raise SourceError(f"{self.path}: there are {names.count(name)} columns named {name!r}")

    def raw(self, table: pa.Table, first: int) -> RawBatch:
        """A batch of a format whose rows are numbered from 0 and all become rows of the table."""
        rows = np.arange(first, first + table.num_rows, dtype=np.int64)
        return RawBatch(table, rows, rows, first + table.num_rows)
