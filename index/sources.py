"""Corpora: the files that a build reads, and their rows as batches of checked Gaussians.

Formats: Parquet, Arrow IPC (file or stream, Feather), NPZ, safetensors, JSON Lines (plain, gzip, zstd), and a pickled
`(means, variances, ids)`; index.formats says what each must hold. Memory is bounded by a batch whatever the file's
size, the pickle excepted.
"""

import sys
from bisect import bisect_left
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from index.background import read_ahead
from index.durable import checksum
from index.errors import InvalidOptionError, SourceError
from index.formats import SUFFIXES, TEXT_SUFFIXES, read
from index.labels import labelled_model, require_role
from index.records import ModelRecord
from index.rejected_rows import RejectedRows
from index.row_checks import RowChecker, id_column
from index.rows import Columns, RawBatch, RowDefect, SourceBatch, TextColumns, VarianceAs, place
from index.source_files import files_of
from index.source_hashes import hash_pieces
from index.text.protocol import Role
from index.text.rows import MADE, NoEncoder, TextSource

__all__ = [
    "CheckedBatch",
    "Columns",
    "Corpus",
    "DocumentSource",
    "RejectedRows",
    "SourceBatch",
    "Stamps",
    "VarianceAs",
    "place",
]

DEFAULT_BATCH_ROWS: Final = 8192
TEXT_BATCH_ROWS: Final = 1024
"""Of texts: enough to sort by length, and few seconds of encoding, even of long ones on a CPU."""

LOOKED_AT: Final = 1024
"""Rows that are read at a time to learn the dimensions of a corpus's Gaussians."""


Stamps = list[tuple[int, int, int]]


class CheckedBatch(NamedTuple):
    """What became of a reader's batch, whose first record is `begins` of file number `file_index`: its good rows, if it
    has any, and what is wrong with the others."""

    file_index: int
    begins: int
    batch: SourceBatch | None
    defects: list[RowDefect]


class DocumentSource(Protocol):
    """Where the documents of a build come from: a Corpus, or an index itself."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What they lie in."""

    def stamps(self) -> Stamps:
        """As Corpus."""

    def batches(self, *, start: tuple[int, int] = ..., cut_every: int | None = ...) -> Iterator[SourceBatch]:
        """As Corpus."""

    def locate(self, wanted: Collection[str]) -> dict[str, list[str]]:
        """As Corpus."""


class Corpus:
    """The documents of one or many files, in a fixed order.

    sources: files, folders (every file of a known format in them, however deep, hidden ones excepted) and glob
    patterns (`**` goes down folders). What one source names is sorted; sources keep their order; a file named twice is
    read once.
    apart_from: folders and files that are no part of it, though a source may contain them: an index, say. `left_out`
    are those that one does.
    rejected: where rows that cannot be used are written and counted; without it the first of them raises SourceError.
    texts: the files hold texts, of which this makes Gaussians; `columns` and `variance_as` then say nothing.

    Raises SourceError for a source that is missing, that names nothing, or whose format is not known by its suffix.
    """

    def __init__(
        self,
        sources: Sequence[str | Path],
        *,
        columns: Columns | None = None,
        variance_as: VarianceAs = VarianceAs.VARIANCE,
        apart_from: Path | Sequence[Path] = (),
        rejected: RejectedRows | None = None,
        texts: TextSource | None = None,
    ) -> None:
        self.columns = MADE if texts else columns or Columns()
        self.variance_as = VarianceAs.VARIANCE if texts else VarianceAs(variance_as)
        self.files, self.left_out = files_of(
            [sources] if isinstance(sources, str | Path) else sources,
            [apart_from] if isinstance(apart_from, Path) else apart_from,
            TEXT_SUFFIXES if texts else SUFFIXES,
        )
        self._texts = texts
        self._read_columns: Columns | TextColumns = texts.columns if texts else self.columns
        self._rejected = rejected

    @property
    def of_texts(self) -> bool:
        """Whether a model makes its Gaussians as it is read."""
        return self._texts is not None

    def without_model(self, rejected: RejectedRows | None) -> "Corpus":
        """The same texts, each with a Gaussian that says nothing, for which no model is asked: what its rows are
        otherwise. `rejected` as in Corpus. Raises InvalidOptionError where it is no corpus of texts."""
        if self._texts is None:
            raise InvalidOptionError("a corpus of Gaussians has no model that it could be without")
        return Corpus(self.files, texts=replace(self._texts, encoder=NoEncoder()), rejected=rejected)

    def model(self) -> ModelRecord | None:
        """The model that makes its Gaussians, or that its files say to have made them; None where they do not.

        Raises SourceError where they are of several models, some say nothing, or it makes Gaussians of other dimensions
        than theirs.
        """
        if self._texts is not None:
            return self._texts.encoder.record
        record = labelled_model(self.files)
        # Not of every file, whose rows are compared with these when they are read.
        k = None if record is None else self._width(LOOKED_AT)
        if record is not None and k is not None and k != record.k:
            raise SourceError(
                f"{self.files[0]} says that its Gaussians are of {record.name!r}, which makes such of {record.k} "
                f"dimensions, and they have {k}"
            )
        return record

    def require_role(self, role: Role) -> None:
        """Raises SourceError where a file says that its Gaussians were made of texts for another role."""
        if self._texts is None:
            require_role(self.files, role)

    def of_queries(self, file: Path) -> "Corpus":
        """The queries of a file that is read as this corpus is.

        Raises SourceError, also where the file says that they are of another model than the corpus, or no queries.
        """
        texts = None if self._texts is None else replace(self._texts, role=Role.QUERY)
        queries = Corpus([file], columns=self.columns, variance_as=self.variance_as, texts=texts)
        queries.require_role(Role.QUERY)
        ours, theirs = self.model(), queries.model()
        if ours is not None and theirs is not None and ours.fingerprint != theirs.fingerprint:
            raise SourceError(f"{file} has Gaussians of {theirs.name!r}, another model than that of the corpus")
        return queries

    def digest(self, hashes: Iterable[list[str]] | None = None) -> str:
        """A checksum, in hexadecimal, of every file's content in order, the columns and `variance_as`.

        Of texts, also of the model. Two corpora with one digest give the same batches, wherever their files lie. Reads
        every file once, pieces of it on all cores, unless somebody else has: `hashes` are what `hash_pieces` says of
        each. Raises SourceError where a file cannot be read.
        """
        identity: list[object] = [*astuple(self.columns), self.variance_as]
        identity += [] if self._texts is None else [self._texts.identity]
        identity += map(hash_pieces, self.files) if hashes is None else hashes
        return checksum(orjson.dumps(identity))

    def stamps(self) -> "Stamps":
        """What changes when one of the files is written: its inode, size and time of modification."""
        return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in self.files)]

    def batches(
        self,
        *,
        start: tuple[int, int] = (0, 0),
        batch_rows: int | None = None,
        cut_every: int | None = None,
        k: int | None = None,
        ahead: bool = True,
    ) -> Iterator[SourceBatch]:
        """The corpus from `start` on, in batches of 1 to `batch_rows` rows, none of which spans two files. If it is not
        given, they are of thousands.

        start: index into `files`, and ordinal of a record in that file: `(batch.file_index, batch.next_row)` goes on
        after that batch. What lies before is skipped without being checked. cut_every: also ends a batch after every so
        many good rows, counted from `start`; rejected rows up to there have then been written, and no others. k: the
        width that every row must have, that of an index; otherwise the first good row of the corpus (not of what is
        left of it) decides. ahead: reads the next batch, and encodes its texts, in a thread while the last is used.

        Raises SourceError for a file that cannot be read and, without `rejected`, for the first bad row; and
        InvalidOptionError for a `start` outside the corpus or `batch_rows` or `cut_every` below 1.
        """
        for name, value in (("batch_rows", batch_rows), ("cut_every", cut_every)):
            if value is not None and value < 1:
                raise InvalidOptionError(f"{name} is {value}; it must be at least 1")
        if not 0 <= start[0] <= len(self.files) or start[1] < 0:
            raise InvalidOptionError(f"the corpus of {len(self.files)} files cannot be started at {start}")
        batch_rows = batch_rows or (DEFAULT_BATCH_ROWS if self._texts is None else TEXT_BATCH_ROWS)
        of_index = k is not None
        if k is None and self._texts is not None:
            k = self._texts.encoder.record.k
        if k is None and start != (0, 0):
            k = self._width(batch_rows)
        # Checked here and not in the thread that reads: most of checking is Python, which two threads cannot run at
        # once, and most of reading is not. A build of Parquet takes a tenth less time for it, on two cores.
        raw: Iterator[tuple[int, RawBatch]] = self._raw(start, batch_rows)
        if ahead:
            raw = read_ahead(self._raw(start, batch_rows))
        checker = RowChecker(self.columns, self.variance_as, k, of_index=of_index)
        return self._reported(self._checked(raw, checker), cut_every or sys.maxsize)

    def locate(self, wanted: Collection[str]) -> dict[str, list[str]]:
        """For each wanted id, every place in the corpus where it stands ("docs.jsonl line 12"), in order.

        Reads the ids of the whole corpus and nothing else: for the message about an id that was found twice. Rows that
        are rejected for their Gaussians count too. Raises SourceError for a file that cannot be read.
        """
        places: dict[str, list[str]] = {identifier: [] for identifier in wanted}
        values = pa.array(list(places), pa.string())
        for file in self.files:
            for raw in read(file, self._read_columns, start=0, batch_rows=DEFAULT_BATCH_ROWS, ids_only=True):
                name = self._read_columns.id_among(raw.table.column_names)
                ids = id_column(file, raw.table, name).cast(pa.string())
                for row in np.flatnonzero(pc.is_in(ids, values).to_numpy(zero_copy_only=False)):
                    found = ids[int(row)].as_py()
                    if found is not None:
                        places[found].append(place(file, int(raw.rows[row])))
        return places

    def checked(self, start: tuple[int, int], k: int | None) -> Iterator[CheckedBatch]:
        """The readers' batches of the corpus from `start` on, as they are, and nothing reported; `k` as the first good
        row of the corpus has it (see `width`), if it is not to be that of the first one here."""
        checker, begins = RowChecker(self.columns, self.variance_as, k), start
        for index, raw in self._raw(start, DEFAULT_BATCH_ROWS):
            first = begins[1] if index == begins[0] else 0
            yield CheckedBatch(index, first, *checker.check(self.files[index], index, raw))
            begins = index, raw.next_row

    def records(self, index: int) -> Iterator[tuple[int, int]]:
        """The first record, and how many there are, of each of the readers' batches of a file, by its ids alone."""
        begins = 0
        for raw in read(self.files[index], self._read_columns, start=0, batch_rows=DEFAULT_BATCH_ROWS, ids_only=True):
            yield begins, raw.next_row - begins
            begins = raw.next_row

    def width(self) -> int | None:
        """The k of its first good row; None where it has none."""
        return self._width(LOOKED_AT)

    def _raw(self, start: tuple[int, int], batch_rows: int) -> Generator[tuple[int, RawBatch]]:
        """The batches of the files from `start` on, unchecked, each with its file's index."""
        for index in range(start[0], len(self.files)):
            first = start[1] if index == start[0] else 0
            file = self.files[index]
            for raw in read(file, self._read_columns, start=first, batch_rows=batch_rows):
                yield index, raw if self._texts is None else self._texts.encode(file, raw)

    def _checked(
        self, batches: Iterable[tuple[int, RawBatch]], checker: RowChecker
    ) -> Iterator[tuple[Path, SourceBatch | None, list[RowDefect]]]:
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
                self.report(file, defects[:before])
                defects = defects[before:]
                wanted = wanted - len(batch) or cut_every
                yield batch
            self.report(file, defects)

    def report(self, file: Path, defects: list[RowDefect]) -> None:
        """Lists rows of a file that are left out; raises SourceError for the first where none may be."""
        for defect in defects:
            if self._rejected is None and defect.names is not None:
                raise SourceError(defect.describe(file))
            if self._rejected is None:
                remedy = "Correct the row, or leave out the rows that cannot be used (--on-error skip)"
                raise SourceError(f"{defect.describe(file)}. {defect.remedy or remedy}")
            self._rejected.add(file, defect)

    def _width(self, batch_rows: int) -> int | None:
        # Defects before the start were reported when they were read; here they are only passed over again.
        checked = self._checked(self._raw((0, 0), batch_rows), RowChecker(self.columns, self.variance_as))
        batches = (batch for _, batch, _ in checked if batch is not None)
        first = next(batches, None)
        return None if first is None else first.gaussians.k
