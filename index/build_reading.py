"""The first half of a build: the corpus is read once, checked, and cut into staged segments.

While a batch is checked and written here, the corpus has the next one read in a thread of its own. So of the Gaussians
a few batches are in memory; of ids and payload, which are written together, those of a segment. (Writing in a third
thread took as long, on two cores: each of the many small operations on a batch waits for Python's lock.)
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from index.cores import torch_on_one_core
from index.durable import Syncer
from index.manifest import FileEntry
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
    start, earlier = (finished[-1].next_record, finished[-1].rejected) if finished else ((0, 0), 0)
    if rejected is not None:
        listed = finished[-1].rejected_file if finished else None
        _truncate(rejected.path, listed.bytes if listed else 0)

    def so_far() -> tuple[int, FileEntry | None]:
        """How many rows have been left out, and the file that lists them."""
        return (earlier + rejected.count, rejected.entry) if rejected is not None else (0, None)

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
