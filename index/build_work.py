"""The work of a build on its segments, and where it is done: in this process, if not elsewhere."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch

from index.build_encoding import NotEncodableError, SegmentForm, encode_segments
from index.build_options import BuildOptions
from index.build_reading import read_segments
from index.duplicates import require_unique_ids
from index.durable import Syncer
from index.errors import SourceError
from index.progress import Progress
from index.rejected_rows import no_documents
from index.segment_records import SegmentEntry
from index.sources import Corpus, DocumentSource, RejectedRows, Stamps
from index.staged_documents import LocalDocuments, StagedDocuments
from index.staging import BuildPlan, ReadSegment, Staging
from index.standardisation import Standardisation
from index.storage import IndexDirectory

__all__ = ["BuildPlace", "BuildWork", "LocalWork", "require_unchanged"]


class BuildWork(Protocol):
    """What makes segments of a corpus, and completes them. A context manager; leaving it ends what is under way."""

    @property
    def failed(self) -> bool:
        """Whether something did not reach the disk, so far."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def open(self, directory: IndexDirectory, plan: BuildPlan, *, restart: bool) -> Staging:
        """Staging.open, for segments that are made here."""

    def read(self, staging: Staging) -> tuple[list[ReadSegment], int]:
        """Reads the corpus into staged segments, going on after those that are there; these had so many documents.

        Raises SourceError, also for a corpus without documents, and OSError.
        """

    def encode(
        self, staging: Staging, segments: Sequence[ReadSegment], standardisation: Standardisation, form: SegmentForm
    ) -> list[SegmentEntry]:
        """Makes the segments complete, and meanwhile looks whether their ids are all different.

        Raises SourceError for a document that float32 cannot hold, DuplicateIdError and OSError.
        """

    def documents(self, staging: Staging, segments: Sequence[ReadSegment]) -> StagedDocuments:
        """The documents of the segments that have been read."""

    def finish(self) -> None:
        """Waits until all that has been written is on disk; raises SyncError where that failed."""


class BuildPlace(Protocol):
    """Where builds are made, other than in this process."""

    def require(self, options: BuildOptions, *, of_texts: bool) -> torch.device:
        """The device that this process fits on; raises BuildError for options with which nothing is built there, and
        the errors of resolve_device."""

    def digest(self, corpus: Corpus, options: BuildOptions) -> str:
        """As Corpus.digest."""

    def work(
        self,
        corpus: Corpus,
        options: BuildOptions,
        stamps: Stamps,
        rejected: RejectedRows,
        rejected_to: Path,
        progress: Progress,
    ) -> BuildWork:
        """The work of one build. Rows are listed as LocalWork lists them."""


class LocalWork:
    """Work in threads of this process."""

    def __init__(
        self,
        corpus: DocumentSource,
        stamps: Stamps,
        rejected: RejectedRows | None,
        rejected_to: Path,
        device: torch.device,
        progress: Progress,
    ) -> None:
        """`rejected` is where the corpus lists rows that it leaves out, and `rejected_to` where the user finds them."""
        self._corpus, self._stamps, self._device, self._progress = corpus, stamps, device, progress
        self._rejected, self._rejected_to = rejected, rejected_to
        self._syncer = Syncer()

    @property
    def failed(self) -> bool:
        """As BuildWork."""
        return self._syncer.failed

    def __enter__(self) -> Self:
        self._syncer.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._syncer.__exit__()

    def finish(self) -> None:
        """As BuildWork."""
        self._syncer.finish()

    def open(self, directory: IndexDirectory, plan: BuildPlan, *, restart: bool) -> Staging:
        """As BuildWork."""
        return Staging.open(directory, plan, restart=restart)

    def read(self, staging: Staging) -> tuple[list[ReadSegment], int]:
        """As BuildWork."""
        segments = staging.finished_segments()
        resumed = sum(segment.documents for segment in segments)
        self._progress.phase("reading", None)
        self._progress.advance(resumed)
        segments += read_segments(self._corpus, staging, segments, self._rejected, self._progress, self._syncer)
        require_unchanged(self._corpus, self._stamps)
        if not segments:
            raise no_documents(self._corpus.files, self._rejected, self._rejected_to)
        return segments, resumed

    def encode(
        self, staging: Staging, segments: Sequence[ReadSegment], standardisation: Standardisation, form: SegmentForm
    ) -> list[SegmentEntry]:
        """As BuildWork."""
        self._progress.phase("encoding", sum(segment.documents for segment in segments))
        folders = [staging.folder(ordinal) for ordinal in range(len(segments))]
        with ThreadPoolExecutor(1, thread_name_prefix="gaussearch-ids") as beside:
            unique = beside.submit(require_unique_ids, self._corpus, [folder / "ids.arrow" for folder in folders])

            def stop_at_duplicates() -> None:
                if unique.done():
                    unique.result()

            try:
                entries = encode_segments(
                    folders,
                    segments,
                    form,
                    standardisation,
                    self._device,
                    self._progress,
                    self._syncer,
                    stop_at_duplicates,
                )
            except NotEncodableError as error:
                raise error.located(self._corpus) from error
            unique.result()
            return entries

    def documents(self, staging: Staging, segments: Sequence[ReadSegment]) -> StagedDocuments:
        """As BuildWork."""
        folders = [staging.folder(ordinal) for ordinal in range(len(segments))]
        return LocalDocuments([np.load(it / "gaussians.npy", mmap_mode="r", allow_pickle=False) for it in folders])


def require_unchanged(corpus: DocumentSource, stamps: Stamps) -> None:
    """Raises SourceError where a file of the corpus is another than it was when its stamps were taken."""
    if corpus.stamps() != stamps:
        raise SourceError("the corpus was changed while it was read; build it again when it no longer changes")
