"""The file of the rows that a build leaves out, and what is said where they are all."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

import numpy as np
import orjson
from blake3 import blake3

from index.durable import naming
from index.errors import SourceError
from index.records import FileEntry
from index.rows import SHOWN, RowDefect, shown

__all__ = ["RejectedRows", "no_documents"]

_READ_BYTES: Final = 1 << 20


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


def no_documents(files: Sequence[Path], rejected: RejectedRows | None, listed: Path) -> SourceError:
    """The error for sources without a good row. `listed` is where the user finds the rows that were left out."""
    where = ", ".join(map(str, files))
    if rejected is None or not rejected.count:
        return SourceError(f"there are no documents in {where}")
    left_out = f"all {rejected.count:,} rows of {where} were" if rejected.count > 1 else f"the only row of {where} was"
    return SourceError(f"{left_out} left out, which {listed} lists. The first: {rejected.first}")


def _json_value(value: object) -> object:
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if isinstance(value, str):
        return value if len(value) <= SHOWN else f"{value[:SHOWN]}..."
    return value if value is None or isinstance(value, bool | int) else shown(value)
