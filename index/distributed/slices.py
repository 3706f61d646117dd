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
    """A place in a corpus: behind `skipped` good rows of the batch that begins with a record of a file."""

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
    if base_suffix(corpus.files[index]) in OF_LINES:
        return [Counted(record, rows, in_one_batch=True) for record, rows in batches]
    return [Counted(0, sum(rows for _, rows in batches), in_one_batch=False)]


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
    for its in corpus.checked((first.file, first.record), k):
        place = its.file_index, its.begins
        if place > last[:2] or (place == last[:2] and not last.skipped):
            return
        if place == last[:2]:
            its = _before(its, last.skipped)
        elif its.file_index == last.file:
            its = _before_record(its, last.record)
        if place == first[:2] and first.skipped:
            its = _behind(its, first.skipped)
        corpus.report(corpus.files[its.file_index], its.defects)
        if its.batch is not None:
            yield its.batch


def _before(its: CheckedBatch, rows: int) -> CheckedBatch:
    """The first so many good rows, fewer than there are, and what is wrong with those before the next."""
    if its.batch is None:
        return its
    batch, rest = its.batch.split(rows)
    bound = np.inf if rest is None else int(rest.rows[0])
    return its._replace(batch=batch, defects=[defect for defect in its.defects if defect.row < bound])


def _behind(its: CheckedBatch, rows: int) -> CheckedBatch:
    """What `_before` leaves."""
    rest = None if its.batch is None else its.batch.split(rows)[1]
    if rest is None:
        return its._replace(batch=None, defects=[])
    return its._replace(batch=rest, defects=[defect for defect in its.defects if defect.row >= int(rest.rows[0])])


def _before_record(its: CheckedBatch, record: int) -> CheckedBatch:
    """The rows before a record of the file, of a format whose rows are its records."""
    defects = [defect for defect in its.defects if defect.row < record]
    if its.batch is None:
        return its._replace(defects=defects)
    rows = int(np.searchsorted(its.batch.ordinals, record))
    batch = None if rows == 0 else its.batch.split(rows)[0]
    return its._replace(batch=batch, defects=defects)
