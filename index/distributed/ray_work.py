"""A build whose segments are made by tasks of a Ray cluster: index.build_work.BuildWork.

Here, in the driver, everything is fitted and measured, on samples, and the index is published: what is made of the
documents themselves is made by a task for each segment, and is written where the index lies by that task. A driver that
is killed has lost nothing that a task had finished.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from index.build_encoding import SegmentForm, not_encodable
from index.build_work import require_unchanged
from index.distributed.ray_documents import RayDocuments
from index.distributed.segment_tasks import (
    CorpusFiles,
    Read,
    Staged,
    Unencodable,
    complete_segment,
    count_file,
    hash_ids,
    ids_with,
    read_slice,
    repeated_of,
)
from index.distributed.sites import BuildSite
from index.distributed.slices import cut
from index.distributed.stored import StoredStaging
from index.distributed.tasks import Tasks
from index.duplicates import Hashes, random_base, require_no_duplicates
from index.durable import write_atomically
from index.progress import Progress
from index.rejected_rows import no_documents
from index.remote.remote_index import RemoteIndex
from index.segment_records import SegmentEntry
from index.sources import Corpus, RejectedRows, Stamps
from index.staging import BuildPlan, ReadSegment, Staging
from index.standardisation import Standardisation
from index.storage import IndexDirectory

__all__ = ["RayWork"]

PARTITION_IDS = 1 << 24
"""Ids whose hashes are compared in one task: 128 MiB, twice."""


class RayWork:
    """Work in tasks."""

    def __init__(
        self,
        tasks: Tasks,
        corpus: Corpus,
        files: CorpusFiles,
        stamps: Stamps,
        rejected: RejectedRows,
        rejected_to: Path,
        gpus: float,
        progress: Progress,
    ) -> None:
        """`gpus` are those of a task that encodes, where the cluster has any."""
        self._tasks, self._corpus, self._files, self._stamps = tasks, corpus, files, stamps
        self._rejected, self._rejected_to, self._gpus, self._progress = rejected, rejected_to, gpus, progress
        self._documents: RayDocuments | None = None
        self._are_unique = False

    @property
    def failed(self) -> bool:
        """As BuildWork: what a task has written is on disk when it ends, or it has failed."""
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """As BuildWork: a generator of results that is dropped cancels its tasks."""

    def finish(self) -> None:
        """As BuildWork."""

    def open(self, directory: IndexDirectory, plan: BuildPlan, *, restart: bool) -> Staging:
        """As BuildWork."""
        if isinstance(directory, RemoteIndex):
            return StoredStaging.begin(directory, plan, by="ray", restart=restart)
        return Staging.open(directory, plan, by="ray", restart=restart)

    def read(self, staging: Staging) -> tuple[list[ReadSegment], int]:
        """As BuildWork. Where bad rows are skipped, the corpus is read twice: once to know where segments begin."""
        self._progress.phase("counting rows", None)
        k = self._corpus.width()
        files = self._tasks.share(self._files)
        counts = list(self._tasks.run(count_file, [(files, index, k) for index in range(len(self._files.files))]))
        documents = sum(its.rows for counted in counts for its in counted)
        slices = cut(counts, staging.plan.segment_docs)
        site = BuildSite.of(staging)
        self._progress.phase("reading", documents)
        segments, resumed, listed = [], 0, []
        for read in self._tasks.run(read_slice, [(site, files, part, k) for part in slices]):
            self._count_rejected(read)
            listed.append(read.listed)
            if read.segment is not None:
                segments.append(read.segment)
                resumed += read.segment.documents if read.resumed else 0
                self._progress.advance(read.segment.documents)
        if self._files.skips:
            write_atomically(self._rejected.path, b"".join(listed))
        require_unchanged(self._corpus, self._stamps)
        if not segments:
            raise no_documents(self._corpus.files, self._rejected if self._files.skips else None, self._rejected_to)
        # As the local build counts them: up to there.
        segments[-1] = segments[-1].model_copy(update={"rejected": self._rejected.count})
        return segments, resumed

    def _count_rejected(self, read: Read) -> None:
        self._rejected.count += read.rejected
        self._rejected.first = self._rejected.first or read.first_rejected

    def encode(
        self, staging: Staging, segments: Sequence[ReadSegment], standardisation: Standardisation, form: SegmentForm
    ) -> list[SegmentEntry]:
        """As BuildWork; the ids are looked through first, once."""
        documents = self.documents(staging, segments)
        staged = self._staged(staging, segments)
        if not self._are_unique:
            self._require_unique_ids(staged)
            self._are_unique = True
        self._progress.phase("encoding", len(documents))
        shared, standardisation = self._tasks.share(form), self._tasks.share(standardisation)
        device = "cuda" if self._gpus else "cpu"
        calls = [(each, shared, standardisation, device) for each in staged]
        entries = []
        for each, completed in zip(staged, self._tasks.run(complete_segment, calls, gpus=self._gpus), strict=True):
            if isinstance(completed, Unencodable):
                raise not_encodable(self._corpus, completed.document_id, completed.said)
            entries.append(completed.entry)
            documents.files[completed.entry.id] = completed.files
            self._progress.advance(each.segment.documents)
        return entries

    def documents(self, staging: Staging, segments: Sequence[ReadSegment]) -> RayDocuments:
        """As BuildWork."""
        if self._documents is None:
            self._documents = RayDocuments(self._tasks, staging.directory, self._staged(staging, segments), self._gpus)
        return self._documents

    @staticmethod
    def _staged(staging: Staging, segments: Sequence[ReadSegment]) -> list[Staged]:
        site = BuildSite.of(staging)
        return [Staged(site, ordinal, segment) for ordinal, segment in enumerate(segments)]

    def _require_unique_ids(self, staged: Sequence[Staged]) -> None:
        """Raises DuplicateIdError unless all ids are different: a group-by of their hashes, of which no task sees more
        than a partition."""
        documents = sum(each.segment.documents for each in staged)
        self._progress.phase("comparing ids", None)
        base, partitions = random_base(), max(1, -(-documents // PARTITION_IDS))
        # With one partition the list of them is what a task returns; with several each is one of its returns.
        hashes = list(self._tasks.run(hash_ids, [(each, base, partitions) for each in staged], returns=partitions))
        columns: Iterator[Sequence[object]] = (
            zip(*hashes, strict=True) if partitions > 1 else iter([[its[0] for its in hashes]])
        )
        repeated = np.concatenate(list(self._tasks.run(repeated_of, columns)))
        require_no_duplicates(self._corpus, repeated, lambda wanted: self._ids_with(staged, base, wanted))

    def _ids_with(self, staged: Sequence[Staged], base: int, wanted: Hashes) -> set[str]:
        calls = [(each, base, wanted) for each in staged]
        return set().union(*self._tasks.run(ids_with, calls))
