"""The batch build: a corpus in, a published index out, in memory bounded by a few segments.

The corpus is hashed, so that a resumed build knows it again, and then read once. Reading cuts it into segments, checks
it and fits the standardisation; then each segment is encoded, on the GPU where there is one, into a FAISS index; then
the index is published in one step. Every segment that has been read is listed in `staging/`, so that the same command
goes on where a killed build stopped. While a segment is hashed and written, the next ones are read or encoded
(index.background); what is written is synced behind their backs, and all of it before the index is published.
"""

import datetime
import importlib.metadata
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from index.background import BackgroundWork
from index.build_options import BuildOptions
from index.duplicates import read_ids, require_unique_ids
from index.durable import Syncer, write_atomically
from index.encoding import MomentAccumulator, Standardisation
from index.errors import BuildError, IndexDirectoryError, IndexNotFoundError, InvalidGaussiansError, SourceError
from index.manifest import (
    FORMAT_VERSION,
    Manifest,
    SegmentEntry,
    SegmentManifest,
    SourceRecord,
    StandardisationRecord,
)
from index.segment_encoder import SegmentEncoder
from index.segments import complete_segment, find_segment
from index.sources import Columns, Corpus, RejectedRows, SourceBatch
from index.staging import BuildPlan, ReadSegment, Staging
from index.storage import IndexDirectory
from index.vectors import resolve_device

__all__ = ["BuildOptions", "BuildSummary", "Progress", "build_index"]


class Progress(Protocol):
    """Told how a build gets on; `advance` is called from several threads."""

    def phase(self, name: str, total: int | None) -> None:
        """A phase begins; `total` is its number of documents where that is known."""

    def advance(self, documents: int) -> None:
        """That many more documents are done."""


class SilentProgress:
    """Progress that nobody watches."""

    def phase(self, name: str, total: int | None) -> None:
        """Says nothing."""

    def advance(self, documents: int) -> None:
        """Says nothing."""


@dataclass(frozen=True, slots=True)
class BuildSummary:
    """What a build did. `resumed_documents` were read by an earlier run; `up_to_date` means there was nothing to do."""

    manifest: Manifest
    path: Path
    seconds: float
    bytes: int
    resumed_documents: int
    up_to_date: bool


def build_index(
    sources: Sequence[str | Path],
    directory: IndexDirectory,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> BuildSummary:
    """Builds and publishes an index of the documents in `sources`, or finishes a build that was interrupted.

    The live index, if there is one, is served unchanged until the moment of publication. Where it already is the index
    of this very corpus and these options, and intact, nothing is done.

    Raises SourceError or DuplicateIdError for a corpus that cannot be indexed, BuildError for an unfinished build of
    something else, IndexLockedError while another process writes, DeviceUnavailableError. OSError where the disk fails.
    """
    options, progress, started = options or BuildOptions(), progress or SilentProgress(), time.monotonic()
    device = resolve_device(options.device)
    with directory.lock():
        # Beside what the build has read, so that they go on and end together; handed over when it ends.
        rejected = RejectedRows(directory.staging / "rejected.jsonl")
        corpus = Corpus(
            sources,
            columns=Columns(options.id_column, options.mean_column, options.variance_column),
            variance_as=options.variance_as,
            rejected=rejected if options.on_error == "skip" else None,
        )
        rejected_to = options.rejected_to or directory.path / "rejected.jsonl"
        if rejected_to.resolve() in {file.resolve() for file in corpus.files}:
            raise BuildError(f"{rejected_to} is one of the sources; name another file for rejected rows")
        progress.phase("checking the corpus for changes", None)
        stamps = _stamps(corpus)
        plan = BuildPlan(
            corpus=corpus.digest(),
            encoding=options.encoding,
            kind=options.kind,
            segment_docs=options.segment_docs,
            on_error=options.on_error,
        )
        live = _intact_manifest(directory, plan)
        if live is not None:
            return _summary(directory, live, started, resumed=0, up_to_date=True)
        build = _Build(directory, plan, corpus, stamps, rejected, rejected_to, progress, device)
        return _summary(directory, build.run(restart=options.restart), started, resumed=build.resumed, up_to_date=False)


class _Build:
    """One run of a build under the writer lock."""

    def __init__(
        self,
        directory: IndexDirectory,
        plan: BuildPlan,
        corpus: Corpus,
        stamps: "_Stamps",
        rejected: RejectedRows,
        rejected_to: Path,
        progress: Progress,
        device: torch.device,
    ) -> None:
        self.directory, self.plan, self.corpus, self.stamps = directory, plan, corpus, stamps
        self.rejected, self.rejected_to = rejected, rejected_to
        self.progress, self.device = progress, device
        self.resumed = 0
        self.syncer = Syncer()

    def run(self, *, restart: bool) -> Manifest:
        staging = Staging.open(self.directory, self.plan, restart=restart)
        with self.syncer:
            manifest = self._build(staging)
            self.syncer.finish()
        self.directory.publish(manifest)
        staging.discard()
        return manifest

    def _build(self, staging: Staging) -> Manifest:
        try:
            segments = self._read(staging)
            moments = MomentAccumulator(segments[0].k)
            for segment in segments:
                moments.merge(segment.moments())
            standardisation = moments.standardisation()
            self.progress.phase("encoding", moments.count)
            with ThreadPoolExecutor(1) as beside:
                id_files = [staging.folder(ordinal) / "ids.arrow" for ordinal in range(len(segments))]
                unique = beside.submit(require_unique_ids, self.corpus, id_files)
                entries = self._encode(staging, segments, standardisation, unique)
            self._hand_over_rejected()
        except SourceError as error:
            # The same corpus would fail the same way: there is nothing to resume, unless it was the disk that failed.
            if not isinstance(error.__cause__, OSError):
                if self.rejected.count:
                    self._hand_over_rejected()
                staging.discard()
            raise
        return Manifest(
            format_version=FORMAT_VERSION,
            generation=staging.generation,
            created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            created_by=f"gaussearch {importlib.metadata.version('gaussearch')}",
            k=segments[0].k,
            encoding=self.plan.encoding,
            kind=self.plan.kind,
            standardisation=StandardisationRecord.of(standardisation),
            documents=moments.count,
            segments=entries,
            source=SourceRecord(
                corpus=self.plan.corpus,
                plan=self.plan.id,
                files=[file.name for file in self.corpus.files],
                rejected=segments[-1].rejected,
            ),
        )

    def _read(self, staging: Staging) -> list[ReadSegment]:
        """Reads the corpus into staged segments, going on after those that are there."""
        segments = staging.finished_segments()
        self.resumed = sum(segment.documents for segment in segments)
        earlier = segments[-1].rejected if segments else 0
        self.progress.phase("reading", None)
        self.progress.advance(self.resumed)
        skipping = self.plan.on_error == "skip"
        if skipping:
            _truncate(self.rejected.path, segments[-1].rejected_bytes if segments else 0)
        with self.rejected if skipping else nullcontext(), BackgroundWork[ReadSegment]() as work:
            start = segments[-1].next_record if segments else (0, 0)
            for ordinal, (batches, next_record) in enumerate(self._cut(start), start=len(segments)):
                so_far = (earlier + self.rejected.count, self.rejected.path.stat().st_size if skipping else 0)
                segments += work.submit(staging.add_segment, ordinal, batches, next_record, so_far, self.syncer)
            segments += work.finish()
        if _stamps(self.corpus) != self.stamps:
            raise SourceError("the corpus was changed while it was read; build it again when it no longer changes")
        if not segments:
            raise SourceError(f"there are no documents in {', '.join(map(str, self.corpus.files))}")
        return segments

    def _hand_over_rejected(self) -> None:
        """Puts the list of rows that were left out where the user wants it."""
        if self.plan.on_error == "skip" and self.rejected.path.exists():
            write_atomically(self.rejected_to, self.rejected.path.read_bytes())

    def _cut(self, start: tuple[int, int]) -> Iterator[tuple[list[SourceBatch], tuple[int, int]]]:
        """The batches of each segment in turn, and the record at which the next one starts."""
        kept: list[SourceBatch] = []
        wanted = self.plan.segment_docs
        for batch in self.corpus.batches(start=start, cut_every=wanted):
            kept.append(batch)
            wanted -= len(batch)
            self.progress.advance(len(batch))
            if wanted == 0:
                yield kept, (batch.file_index, batch.next_row)
                kept, wanted = [], self.plan.segment_docs
        if kept:
            yield kept, (len(self.corpus.files), 0)

    def _encode(
        self,
        staging: Staging,
        segments: list[ReadSegment],
        standardisation: Standardisation,
        unique: "Future[None]",
    ) -> list[SegmentEntry]:
        """Makes the segments that have been read complete, but for those that an earlier run has completed.

        `unique` ends with an error where the ids are not: that ends this, too.
        """
        entries: list[SegmentEntry] = []
        with (
            SegmentEncoder(self.plan.encoding, standardisation, self.device) as encoder,
            BackgroundWork[SegmentEntry]() as work,
        ):
            for ordinal, segment in enumerate(segments):
                if unique.done():
                    unique.result()
                folder = staging.folder(ordinal)
                # Here and not in the threads: NumPy parses the header as Python, in which CPython 3.11 fails now and
                # then when two threads do it (SystemError: AST constructor recursion depth mismatch).
                # Mapped for writing, in private, because torch takes no memory that it must not write to.
                gaussians = np.load(folder / "gaussians.npy", mmap_mode="c", allow_pickle=False)
                entries += work.submit(self._complete, folder, segment, gaussians, encoder)
            entries += work.finish()
        unique.result()
        return entries

    def _complete(
        self, folder: Path, segment: ReadSegment, gaussians: npt.NDArray[np.float32], encoder: SegmentEncoder
    ) -> SegmentEntry:
        """Writes a segment's vectors, and then the manifest that makes it whole."""
        finished = find_segment(folder, segment.documents)
        if finished is not None:
            self.progress.advance(segment.documents)
            return finished
        try:
            vectors, max_norm = encoder.write(gaussians, folder / "vectors.faiss", self.progress.advance)
        except InvalidGaussiansError as error:
            raise self._not_encodable(folder, error) from error
        self.syncer.sync(folder / "vectors.faiss")
        entry = complete_segment(
            folder,
            SegmentManifest(
                format_version=FORMAT_VERSION,
                id=folder.name,
                documents=segment.documents,
                k=segment.k,
                encoding=self.plan.encoding,
                max_norm=max_norm,
                files={**segment.files, "vectors.faiss": vectors},
            ),
        )
        self.syncer.sync(folder / "segment.json")
        return entry

    def _not_encodable(self, folder: Path, error: InvalidGaussiansError) -> SourceError:
        """The error about a document whose vector does not fit float32, which only the whole corpus can tell."""
        document_id = read_ids(folder / "ids.arrow")[error.row or 0]
        (places,) = self.corpus.locate([document_id]).values()
        _, _, reason = str(error).partition(": ")
        return SourceError(f"{places[0]}, document {document_id!r}: {reason}. Correct the row, or leave it out")


def _intact_manifest(directory: IndexDirectory, plan: BuildPlan) -> Manifest | None:
    """The live manifest, where it is what the plan would build and every byte of it is in order."""
    try:
        manifest = directory.manifest()
        return directory.verify() if manifest.source.plan == plan.id else None
    except IndexNotFoundError:
        return None
    except IndexDirectoryError:
        # What is damaged is built anew.
        return None


_Stamps = list[tuple[int, int, int]]


def _stamps(corpus: Corpus) -> _Stamps:
    """What changes when a file is written: its inode, size and time of modification."""
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in corpus.files)]


def _truncate(path: Path, length: int) -> None:
    """Cuts off what an interrupted run wrote after its last finished segment, so that no row is listed twice."""
    if path.exists() and path.stat().st_size > length:
        with path.open("r+b") as file:
            file.truncate(length)


def _summary(
    directory: IndexDirectory, manifest: Manifest, started: float, *, resumed: int, up_to_date: bool
) -> BuildSummary:
    return BuildSummary(
        manifest=manifest,
        path=directory.path,
        seconds=time.monotonic() - started,
        bytes=sum(segment.bytes for segment in manifest.segments),
        resumed_documents=resumed,
        up_to_date=up_to_date,
    )
