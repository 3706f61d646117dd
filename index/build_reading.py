"""The first half of a build: the corpus is read once, checked, and cut into staged segments.

While a batch is written here, the corpus has the next one read and checked in a thread of its own. So a few batches are
in memory, whatever the sizes of the corpus and of its segments. (Writing in a third thread took as long, on two cores:
each of the many small operations on a batch waits for Python's lock.)
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from index.cores import torch_on_one_core
from index.durable import Syncer
from index.progress import Progress
from index.sources import Corpus, RejectedRows
from index.staging import DocumentWriter, ReadSegment, Staging

__all__ = ["read_segments"]


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
    start, earlier, listed = (0, 0), 0, 0
    if finished:
        start, earlier, listed = finished[-1].next_record, finished[-1].rejected, finished[-1].rejected_bytes
    if rejected is not None:
        _truncate(rejected.path, listed)

    def so_far() -> tuple[int, int]:
        """How many rows have been left out, and the length of the file that lists them."""
        return (earlier + rejected.count, rejected.path.stat().st_size) if rejected is not None else (0, 0)

    segments, segment_docs = [], staging.plan.segment_docs
    with rejected or nullcontext(), torch_on_one_core(), DocumentWriter(staging, len(finished), syncer) as writer:
        for batch in corpus.batches(start=start, cut_every=segment_docs):
            writer.add(batch)
            progress.advance(len(batch))
            if writer.documents == segment_docs:
                segments.append(writer.finish((batch.file_index, batch.next_row), so_far()))
        if writer.documents:
            segments.append(writer.finish((len(corpus.files), 0), so_far()))
    return segments


def _truncate(path: Path, length: int) -> None:
    if path.exists() and path.stat().st_size > length:
        with path.open("r+b") as file:
            file.truncate(length)
