"""A corpus in slices, each of which makes a segment: cut where the local build cuts it, and read anywhere.

The local build begins a segment after every so many good rows. Where the corpus goes on is not known to whoever reads a
slice in the middle of it, so the rows are counted first, file by file. What a reader makes of rows of lines depends on
which it reads together (a column that one of them alone has, say): so a slice begins with the batch that the local
build reads its first row in.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from index.rows import SourceBatch, base_suffix
from index.sources import CheckedBatch, Corpus

__all__ = ["Counted", "Mark", "Slice", "batches_of", "count_rows", "cut"]

OF_LINES: Final = (".jsonl", ".ndjson")


class Mark(NamedTuple):
    """A place in a corpus: behind `skipped` good rows, from a record of a file on."""

    file: int
    record: int
    skipped: int


class Slice(NamedTuple):
    """The rows of one segment: from `first` on, and up to `last`."""

    ordinal: int
    first: Mark
    last: Mark


class Counted(NamedTuple):
    """So many good rows from a record on: those of one of the reader's batches, unless any of them may be begun
    with."""

    record: int
    rows: int
    in_one_batch: bool


def count_rows(corpus: Corpus, index: int, k: int | None, *, skips: bool) -> list[Counted]:
    """The rows of a file; where bad ones are skipped, the good ones, of `k` dimensions. That reads all of it; otherwise
    the ids alone are read, and a bad row is found when its slice is. Raises SourceError."""
    if skips:
        counted = []
        for its in corpus.checked((index, 0), k):
            if its.file_index != index:
                break
            counted.append(Counted(its.begins, 0 if its.batch is None else len(its.batch), in_one_batch=True))
        return counted
    batches = list(corpus.records(index))
    if _is_of_lines(corpus, index):
        return [Counted(record, rows, in_one_batch=True) for record, rows in batches]
    return [Counted(0, sum(rows for _, rows in batches), in_one_batch=False)]


def _is_of_lines(corpus: Corpus, index: int) -> bool:
    return base_suffix(corpus.files[index]) in OF_LINES


def cut(counts: Sequence[Iterable[Counted]], segment_docs: int) -> list[Slice]:
    """The slices of a corpus of whose files these are the rows; at least one, which may have none."""
    marks, documents = [Mark(0, 0, 0)], 0
    for file, counted in enumerate(counts):
        for record, rows, in_one_batch in counted:
            # Behind the last segment that is full there are rows, or else there is no other.
            marks.extend(
                Mark(file, record, row) if in_one_batch else Mark(file, record + row, 0)
                for row in range(-documents % segment_docs, rows, segment_docs)
                if documents + row
            )
            documents += rows
    ends = [*marks[1:], Mark(len(counts), 0, 0)]
    return [Slice(ordinal, *its) for ordinal, its in enumerate(zip(marks, ends, strict=True))]


def batches_of(corpus: Corpus, part: Slice, k: int | None) -> Iterator[SourceBatch]:
    """The good rows of a slice; the others have been reported when what follows them comes. Raises SourceError."""
    first, last = part.first, part.last
    begin = _Begin(first.skipped)
    end = _End(last, of_lines=last.file < len(corpus.files) and _is_of_lines(corpus, last.file))
    for its in corpus.checked((first.file, first.record), k):
        if its.file_index > last.file or (
            its.file_index == last.file and not last.skipped and its.begins >= last.record
        ):
            return
        if its.file_index == last.file:
            its = end.cut(its)
        its = begin.cut(its)
        corpus.report(corpus.files[its.file_index], its.defects)
        if its.batch is not None:
            yield its.batch
        if end.reached:
            return


class _Begin:
    """Leaves out so many good rows that come first, and what is wrong with those before the next: it has been reported
    by whoever reads the slice before. Readers may make other batches of them than when they were counted."""

    def __init__(self, skipped: int) -> None:
        self._skipped, self._begun = skipped, not skipped

    def cut(self, its: CheckedBatch) -> CheckedBatch:
        if self._begun:
            return its
        rows = 0 if its.batch is None else len(its.batch)
        if its.batch is None or rows <= self._skipped:
            self._skipped -= rows
            return its._replace(batch=None, defects=[])
        self._begun = True
        rest = its.batch.split(self._skipped)[1] if self._skipped else its.batch
        bound = int(rest.rows[0]) if rest is not None else 0
        return its._replace(batch=rest, defects=[defect for defect in its.defects if defect.row >= bound])


class _End:
    """Leaves out what lies behind a mark, in its file."""

    def __init__(self, mark: Mark, *, of_lines: bool) -> None:
        """`of_lines` is of the mark's file."""
        self._record, self._by_record, self._left = mark.record, not mark.skipped, mark.skipped
        self._of_lines = of_lines
        self.reached = False

    def cut(self, its: CheckedBatch) -> CheckedBatch:
        before = 0 if its.batch is None else int(np.searchsorted(its.batch.ordinals, self._record))
        behind = 0 if its.batch is None else len(its.batch) - before
        if self._by_record:
            # A batch of lines ends there; where rows are records, it may go on.
            return its if self._of_lines else _first_rows(its, before, self._record)
        if its.batch is None or behind <= self._left:
            self._left -= behind
            return its
        self.reached = True
        kept = before + self._left
        return _first_rows(its, kept, int(its.batch.rows[kept]))


def _first_rows(its: CheckedBatch, rows: int, bound: int) -> CheckedBatch:
    """The first so many good rows, and what is wrong with those before row number `bound`."""
    batch = its.batch.split(rows)[0] if its.batch is not None and rows else None
    return its._replace(batch=batch, defects=[defect for defect in its.defects if defect.row < bound])
