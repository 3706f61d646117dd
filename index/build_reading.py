"""The first half of a build: the corpus is read once, checked, and cut into staged segments.

Three threads share the work: one reads the next batch while this one checks the last and a third writes the one before.
So a few batches are in memory, whatever the sizes of the corpus and of its segments.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from index.background import in_order
from index.durable import Syncer
from index.encoding import MomentAccumulator
from index.progress import Progress
from index.sources import Corpus, RejectedRows
from index.staging import DocumentWriter, ReadSegment, Staging

__all__ = ["read_segments"]

BATCHES_AHEAD = 2
"""Batches that have been checked and wait to be written, at most."""


def read_segments(
    corpus: Corpus,
    staging: Staging,
    finished: Sequence[ReadSegment],
    rejected: RejectedRows | None,
    progress: Progress,
    syncer: Syncer,
) -> list[ReadSegment]:
    """Reads the rest of a corpus, after the segments that are `finished`, into segments, and returns those.

    `rejected` is where the corpus lists the rows that it leaves out; what an interrupted run listed there after its
    last finished segment is cut off first. Raises SourceError and OSError.
    """
    if rejected is not None:
        _truncate(rejected.path, finished[-1].rejected_bytes if finished else 0)
    with (
        rejected or nullcontext(),
        DocumentWriter(staging, len(finished), syncer) as writer,
        ThreadPoolExecutor(1, thread_name_prefix="gaussearch-stage") as thread,
    ):
        steps = _Steps(corpus, writer, staging.plan.segment_docs, rejected)
        done = in_order(thread, steps.take, steps.after(finished, progress), ahead=BATCHES_AHEAD)
        return [segment for segment in done if segment is not None]


class _Steps:
    """What has to be done, one thing after the other, to write a corpus into segments."""

    def __init__(
        self, corpus: Corpus, writer: DocumentWriter, segment_docs: int, rejected: RejectedRows | None
    ) -> None:
        self._corpus, self._writer, self._segment_docs, self._rejected = corpus, writer, segment_docs, rejected
        self._failed = False

    def take(self, step: Callable[[], ReadSegment | None]) -> ReadSegment | None:
        """Takes a step, unless one before it failed: then the segment is not what it would go on with."""
        if self._failed:
            return None
        try:
            return step()
        except BaseException:
            self._failed = True
            raise

    def after(self, finished: Sequence[ReadSegment], progress: Progress) -> Iterator[Callable[[], ReadSegment | None]]:
        """The steps after these segments; every last one of a segment gives the segment."""
        start, earlier = (finished[-1].next_record, finished[-1].rejected) if finished else ((0, 0), 0)
        moments = None
        for batch in self._corpus.batches(start=start, cut_every=self._segment_docs):
            moments = moments or MomentAccumulator(batch.gaussians.k)
            moments.update(batch.gaussians)
            yield partial(self._writer.add, batch)
            progress.advance(len(batch))
            if moments.count == self._segment_docs:
                yield self._finish(moments, (batch.file_index, batch.next_row), earlier)
                moments = None
        if moments:
            yield self._finish(moments, (len(self._corpus.files), 0), earlier)

    def _finish(
        self, moments: MomentAccumulator, next_record: tuple[int, int], earlier: int
    ) -> Callable[[], ReadSegment]:
        # Counted now: by the time the segment is written, rows of the next one may have been left out.
        rejected = (0, 0)
        if self._rejected is not None:
            rejected = earlier + self._rejected.count, self._rejected.path.stat().st_size
        return partial(self._writer.finish, moments, next_record, rejected)


def _truncate(path: Path, length: int) -> None:
    if path.exists() and path.stat().st_size > length:
        with path.open("r+b") as file:
            file.truncate(length)
