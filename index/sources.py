"""Corpora: the files that a build reads, and their rows as batches of checked Gaussians.

Formats: Parquet, Arrow IPC (file or stream, Feather), NPZ, safetensors, JSON Lines (plain, gzip, zstd), and a pickled
`(means, variances, ids)`; index.formats says what each must hold. Memory is bounded by a batch whatever the file's
size, the pickle excepted.
"""

import glob
import os
import sys
from bisect import bisect_left
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from index.background import in_order, read_ahead
from index.cores import available_cores
from index.durable import checksum, measure
from index.errors import InvalidOptionError, SourceError
from index.formats import SUFFIXES, is_known, read
from index.row_checks import RowChecker, id_column
from index.rows import Columns, RawBatch, RejectedRows, RowDefect, SourceBatch, VarianceAs, place

__all__ = ["Columns", "Corpus", "RejectedRows", "SourceBatch", "Stamps", "VarianceAs", "place"]

DEFAULT_BATCH_ROWS: Final = 8192

HASHED_BYTES: Final = 1 << 23
"""How much of a file one core hashes at a time."""


Stamps = list[tuple[int, int, int]]


class Corpus:
    """The documents of one or many files, in a fixed order.

    sources: files, folders (every file of a known format in them, however deep, hidden ones excepted) and glob
    patterns (`**` goes down folders). What one source names is sorted; sources keep their order; a file named twice is
    read once.
    apart_from: a folder whose files are no part of it, though a source may contain them: an index, say.
    rejected: where rows that cannot be used are written and counted; without it the first of them raises SourceError.

    Raises SourceError for a source that is missing, that names nothing, or whose format is not known by its suffix.
    """

    def __init__(
        self,
        sources: Sequence[str | Path],
        *,
        columns: Columns | None = None,
        variance_as: VarianceAs = VarianceAs.VARIANCE,
        apart_from: Path | None = None,
        rejected: RejectedRows | None = None,
    ) -> None:
        self.columns = columns or Columns()
        self.variance_as = VarianceAs(variance_as)
        self.files: tuple[Path, ...] = _resolve([sources] if isinstance(sources, str | Path) else sources, apart_from)
        self._rejected = rejected

    def digest(self) -> str:
        """A checksum, in hexadecimal, of every file's content in order, the columns and `variance_as`.

        Two corpora with one digest give the same batches, wherever their files lie. Reads every file once, pieces of it
        on all cores. Raises SourceError where a file cannot be read.
        """
        identity: list[object] = [*astuple(self.columns), self.variance_as]
        with ThreadPoolExecutor(available_cores()) as pool:
            for file in self.files:
                try:
                    starts = range(0, max(1, file.stat().st_size), HASHED_BYTES)
                    piece = partial(measure, file, size=HASHED_BYTES)
                    identity.append([it.blake3 for it in in_order(pool, piece, starts, ahead=2 * available_cores())])
                except OSError as error:
                    raise SourceError(f"{file}: cannot be read: {error}") from error
        return checksum(orjson.dumps(identity))

    def stamps(self) -> "Stamps":
        """What changes when one of the files is written: its inode, size and time of modification."""
        return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in self.files)]

    def batches(
        self,
        *,
        start: tuple[int, int] = (0, 0),
        batch_rows: int = DEFAULT_BATCH_ROWS,
        cut_every: int | None = None,
        k: int | None = None,
    ) -> Iterator[SourceBatch]:
        """The corpus from `start` on, in batches of 1 to `batch_rows` rows, none of which spans two files.

        start: index into `files`, and ordinal of a record in that file: `(batch.file_index, batch.next_row)` goes on
        after that batch. What lies before is skipped without being checked. cut_every: also ends a batch after every so
        many good rows, counted from `start`; rejected rows up to there have then been written, and no others. k: the
        width every row must have; otherwise the first good row of the corpus (not of what is left of it) decides.

        Raises SourceError for a file that cannot be read and, without `rejected`, for the first bad row; and
        InvalidOptionError for a `start` outside the corpus or `batch_rows` or `cut_every` below 1.
        """
        for name, value in (("batch_rows", batch_rows), ("cut_every", cut_every)):
            if value is not None and value < 1:
                raise InvalidOptionError(f"{name} is {value}; it must be at least 1")
        if not 0 <= start[0] <= len(self.files) or start[1] < 0:
            raise InvalidOptionError(f"the corpus of {len(self.files)} files cannot be started at {start}")
        if k is None and start != (0, 0):
            k = self._width(batch_rows)
        # Checked here and not in the thread that reads: most of checking is Python, which two threads cannot run at
        # once, and most of reading is not. A build of Parquet takes a tenth less time for it, on two cores.
        raw = read_ahead(self._raw(start, batch_rows))
        return self._reported(self._checked(raw, k), cut_every or sys.maxsize)

    def locate(self, wanted: Collection[str]) -> dict[str, list[str]]:
        """For each wanted id, every place in the corpus where it stands ("docs.jsonl line 12"), in order.

        Reads the ids of the whole corpus and nothing else: for the message about an id that was found twice. Rows that
        are rejected for their Gaussians count too. Raises SourceError for a file that cannot be read.
        """
        places: dict[str, list[str]] = {identifier: [] for identifier in wanted}
        values = pa.array(list(places), pa.string())
        for file in self.files:
            for raw in read(file, self.columns, start=0, batch_rows=DEFAULT_BATCH_ROWS, ids_only=True):
                ids = id_column(file, raw.table, self.columns.id).cast(pa.string())
                for row in np.flatnonzero(pc.is_in(ids, values).to_numpy(zero_copy_only=False)):
                    found = ids[int(row)].as_py()
                    if found is not None:
                        places[found].append(place(file, int(raw.rows[row])))
        return places

    def _raw(self, start: tuple[int, int], batch_rows: int) -> Generator[tuple[int, RawBatch]]:
        """The batches of the files from `start` on, unchecked, each with its file's index."""
        for index in range(start[0], len(self.files)):
            first = start[1] if index == start[0] else 0
            for raw in read(self.files[index], self.columns, start=first, batch_rows=batch_rows):
                yield index, raw

    def _checked(
        self, batches: Iterable[tuple[int, RawBatch]], k: int | None
    ) -> Iterator[tuple[Path, SourceBatch | None, list[RowDefect]]]:
        checker = RowChecker(self.columns, self.variance_as, k)
        for index, raw in batches:
            yield self.files[index], *checker.check(self.files[index], index, raw)

    def _reported(
        self, checked: Iterable[tuple[Path, SourceBatch | None, list[RowDefect]]], cut_every: int
    ) -> Iterator[SourceBatch]:
        """The batches, cut, each after the defects that lie before its end have been reported."""
        wanted = cut_every
        for file, rest, defects in checked:
            while rest is not None:
                batch, rest = rest.split(wanted)
                before = len(defects) if rest is None else bisect_left(defects, rest.rows[0], key=lambda it: it.row)
                self._report(file, defects[:before])
                defects = defects[before:]
                wanted = wanted - len(batch) or cut_every
                yield batch
            self._report(file, defects)

    def _report(self, file: Path, defects: list[RowDefect]) -> None:
        for defect in defects:
            if self._rejected is None:
                raise SourceError(
                    f"{defect.describe(file)}. "
                    "Correct the row, or leave out the rows that cannot be used (--on-error skip)"
                )
            self._rejected.add(file, defect)

    def _width(self, batch_rows: int) -> int | None:
        # Defects before the start were reported when they were read; here they are only passed over again.
        checked = self._checked(self._raw((0, 0), batch_rows), None)
        batches = (batch for _, batch, _ in checked if batch is not None)
        first = next(batches, None)
        return None if first is None else first.gaussians.k


def _resolve(sources: Sequence[str | Path], apart_from: Path | None) -> tuple[Path, ...]:
    files: dict[Path, Path] = {}
    for source in sources:
        for file in _expand(source):
            if apart_from is None or not file.resolve().is_relative_to(apart_from.resolve()):
                files.setdefault(file.resolve(), file)
    if not files:
        raise SourceError("no corpus was named" + (f" outside of {apart_from}" if apart_from and sources else ""))
    return tuple(files.values())


def _expand(source: str | Path) -> list[Path]:
    """The files that one source names, sorted."""
    path = Path(source)
    if path.is_dir():
        found = sorted(_inside(path))
        if not found:
            raise SourceError(f"{path}: there is no file in it whose name ends in {_SUFFIXES_IN_WORDS}")
        return found
    # A path that exists is that path, whatever brackets its name holds.
    if path.exists() or not glob.has_magic(str(source)):
        found = [path]
    else:
        # Path.glob takes no absolute pattern.
        names = glob.glob(str(source), recursive=True)  # noqa: PTH207
        found = sorted(path for path in map(Path, names) if path.is_file())
        if not found:
            raise SourceError(f"{source}: no file has such a name")
    for file in found:
        if not file.is_file():
            raise SourceError(f"{file}: there is no such file")
        if not is_known(file):
            raise SourceError(f"{file}: its format is not known; names end in {_SUFFIXES_IN_WORDS}")
    return found


def _inside(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(parent, name)
            if not name.startswith(".") and is_known(file) and file.is_file():
                yield file


_SUFFIXES_IN_WORDS: Final = f"{', '.join(SUFFIXES)} (.jsonl and .ndjson also with .gz or .zst)"
