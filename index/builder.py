"""The batch build: a corpus in, a published index out, in memory bounded but for 8 bytes a document, and its code or
what else its kind is searched by, which must fit into memory once it is served, too.

The corpus is hashed, so that a resumed build knows it again, and then read once (index.build_reading). Reading cuts it
into segments, checks it and fits the standardisation; then the segments are encoded, on the GPU where there is one,
into FAISS indexes (index.build_encoding); then the index is published in one step (index.storage). Every segment that
has been read is listed in `staging/`, so that the same command goes on where a killed build stopped. What is written is
synced behind the build's back, and all of it before the index is published.
"""

import datetime
import functools
import importlib.metadata
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from index.build_approximate import build_approximate
from index.build_choice import check_options, choose_kind
from index.build_encoding import FlatForm, NotEncodableError, SegmentForm, encode_segments
from index.build_fit import Fitting, GivenQueries, NotReachedError, read_queries, require_recall
from index.build_options import BuildOptions
from index.build_reading import read_segments
from index.documents import GaussianStore
from index.duplicates import read_ids, require_unique_ids
from index.durable import Syncer, SyncError, write_atomically
from index.encoding import MomentAccumulator, Standardisation
from index.errors import BuildError, IndexDirectoryError, IndexNotFoundError, InvalidGaussiansError, SourceError
from index.manifest import FORMAT_VERSION, IndexKind, Manifest, SegmentEntry, SourceRecord, StandardisationRecord
from index.progress import Progress, SilentProgress
from index.scanning import SCANNED
from index.sources import Columns, Corpus, RejectedRows, Stamps
from index.staging import BuildPlan, ReadSegment, Staging
from index.storage import IndexDirectory
from index.vectors import resolve_device

__all__ = ["BuildOptions", "BuildSummary", "Progress", "build_index"]


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
            apart_from=directory.path,
            rejected=rejected if options.on_error == "skip" else None,
        )
        rejected_to = options.rejected_to or directory.path / "rejected.jsonl"
        if rejected_to.resolve() in {file.resolve() for file in corpus.files}:
            raise BuildError(f"{rejected_to} is one of the sources; name another file for rejected rows")
        progress.phase("checking the corpus for changes", None)
        stamps = corpus.stamps()
        check_options(options)
        approximate = options.kind is not IndexKind.FLAT
        queries = read_queries(options.queries, corpus) if options.queries and approximate else None
        plan = _plan(corpus, options, queries.digest if queries else None)
        live = _intact_manifest(directory, plan)
        if live is not None:
            require_recall(live.measured_recall, options.min_recall)
            return _summary(directory, live, started, resumed=0, up_to_date=True)
        build = _Build(
            directory, plan, corpus, stamps, queries, options.min_recall, rejected, rejected_to, progress, device
        )
        return _summary(directory, build.run(restart=options.restart), started, resumed=build.resumed, up_to_date=False)


class _Build:
    """One run of a build under the writer lock."""

    def __init__(
        self,
        directory: IndexDirectory,
        plan: BuildPlan,
        corpus: Corpus,
        stamps: Stamps,
        queries: GivenQueries | None,
        min_recall: float | None,
        rejected: RejectedRows,
        rejected_to: Path,
        progress: Progress,
        device: torch.device,
    ) -> None:
        self.directory, self.plan, self.corpus, self.stamps = directory, plan, corpus, stamps
        self.queries, self.min_recall = queries, min_recall
        self.rejected, self.rejected_to = rejected, rejected_to
        self.progress, self.device = progress, device
        self.resumed = 0
        self.syncer = Syncer()

    def run(self, *, restart: bool) -> Manifest:
        staging = Staging.open(self.directory, self.plan, restart=restart)
        try:
            with self.syncer:
                manifest = self._build(staging)
                self.syncer.finish()
            self.directory.publish(manifest)
        except BaseException as error:
            # The next run would find such a file as it should be, and could not learn that it is not on disk.
            if isinstance(error, SyncError) or self.syncer.failed:
                staging.discard()
            raise
        staging.discard()
        return manifest

    def _build(self, staging: Staging) -> Manifest:
        try:
            segments = self._read(staging)
            moments = MomentAccumulator(segments[0].k)
            for segment in segments:
                moments.merge(segment.moments())
            standardisation = moments.standardisation()
            made = self._make(staging, segments, standardisation)
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
            standardisation=StandardisationRecord.of(standardisation),
            documents=moments.count,
            source=SourceRecord(
                corpus=self.plan.corpus,
                plan=self.plan.id,
                files=[file.name for file in self.corpus.files],
                rejected=segments[-1].rejected,
            ),
            **made,
        )

    def _make(
        self, staging: Staging, segments: Sequence[ReadSegment], standardisation: Standardisation
    ) -> dict[str, Any]:
        """Makes the segments what their kind of index scans, and says in the manifest's words what they have become."""
        encode = functools.partial(self._encode, staging, segments, standardisation)
        kind, reason = self.plan.kind, None
        if kind is IndexKind.AUTO:
            documents = sum(segment.documents for segment in segments)
            kind, reason = choose_kind(documents, segments[0].k, self.plan.target_recall or 0.0)
        if kind is not IndexKind.FLAT:
            try:
                made = self._make_approximate(kind, staging, segments, standardisation, encode)
                return {"kind": kind, "reason": reason, **made}
            except NotReachedError as error:
                reason = f"asked for {self.plan.kind}, but {error}: flat instead, which is exact"
                self.progress.phase(reason, None)
        flat = FlatForm(self.plan.encoding)
        return {"kind": IndexKind.FLAT, "encoding": flat.encoding, "segments": encode(flat), "reason": reason}

    def _make_approximate(
        self,
        kind: IndexKind,
        staging: Staging,
        segments: Sequence[ReadSegment],
        standardisation: Standardisation,
        encode: Callable[[SegmentForm], list[SegmentEntry]],
    ) -> dict[str, Any]:
        queries = self.queries.gaussians if self.queries else None
        if self.queries and self.queries.gaussians.k != segments[0].k:
            raise SourceError(
                f"{self.queries.file} has queries of {self.queries.gaussians.k} dimensions, and the corpus's documents "
                f"have {segments[0].k}"
            )
        folders = [staging.folder(ordinal) for ordinal in range(len(segments))]
        store = GaussianStore([np.load(it / "gaussians.npy", mmap_mode="r", allow_pickle=False) for it in folders])
        try:
            fitting = Fitting.of(staging, store, standardisation, queries, encode, self.progress)
            coded = build_approximate(fitting, kind, self.device)
            require_recall(coded.recall, self.min_recall)
        except BuildError:
            # The same command would fail the same way, and must not stand in the way of another.
            staging.discard()
            raise
        except InvalidGaussiansError as error:
            # A document that no vector holds is found, and named, by encoding all of them.
            encode(FlatForm(SCANNED))
            where = self.queries.file if self.queries else "the corpus"
            raise SourceError(f"{where}: a query cannot be encoded: {error}. Leave it out") from error
        return {
            "encoding": SCANNED,
            "segments": coded.segments,
            "codes": coded.codes,
            "measured_recall": coded.recall,
        }

    def _read(self, staging: Staging) -> list[ReadSegment]:
        """Reads the corpus into staged segments, going on after those that are there."""
        segments = staging.finished_segments()
        self.resumed = sum(segment.documents for segment in segments)
        self.progress.phase("reading", None)
        self.progress.advance(self.resumed)
        rejected = self.rejected if self.plan.on_error == "skip" else None
        segments += read_segments(self.corpus, staging, segments, rejected, self.progress, self.syncer)
        if self.corpus.stamps() != self.stamps:
            raise SourceError("the corpus was changed while it was read; build it again when it no longer changes")
        if not segments:
            raise SourceError(f"there are no documents in {', '.join(map(str, self.corpus.files))}")
        return segments

    def _encode(
        self, staging: Staging, segments: Sequence[ReadSegment], standardisation: Standardisation, form: SegmentForm
    ) -> list[SegmentEntry]:
        """Makes the segments complete, and meanwhile looks whether their ids are all different."""
        self.progress.phase("encoding", sum(segment.documents for segment in segments))
        with ThreadPoolExecutor(1, thread_name_prefix="gaussearch-ids") as beside:
            id_files = [staging.folder(ordinal) / "ids.arrow" for ordinal in range(len(segments))]
            unique = beside.submit(require_unique_ids, self.corpus, id_files)

            def stop_at_duplicates() -> None:
                if unique.done():
                    unique.result()

            try:
                entries = encode_segments(
                    staging,
                    segments,
                    form,
                    standardisation,
                    self.device,
                    self.progress,
                    self.syncer,
                    stop_at_duplicates,
                )
            except NotEncodableError as error:
                raise self._where(error) from error
            unique.result()
            return entries

    def _where(self, error: NotEncodableError) -> SourceError:
        """The error about a document whose vector does not fit float32, which only the whole corpus can tell."""
        document_id = read_ids(error.folder / "ids.arrow")[error.row].as_py()
        (places,) = self.corpus.locate([document_id]).values()
        _, _, reason = str(error).partition(": ")
        where = " or ".join(places) or "the corpus"
        return SourceError(f"{where}, document {document_id!r}: {reason}. Correct the row, or leave it out")

    def _hand_over_rejected(self) -> None:
        """Puts the list of rows that were left out where the user wants it."""
        if self.plan.on_error == "skip" and self.rejected.path.exists():
            write_atomically(self.rejected_to, self.rejected.path.read_bytes())


def _plan(corpus: Corpus, options: BuildOptions, queries: str | None) -> BuildPlan:
    """What decides the index that these options make of a corpus; `queries` is the digest of their file."""
    of_codes: dict[str, Any] = {}
    if options.kind is not IndexKind.FLAT:
        names = ["target_recall", "recall_at", "code_bytes", "candidates"]
        if options.kind is IndexKind.HNSW:
            names += ["hnsw_m", "hnsw_ef_construction"]
        if options.kind in (IndexKind.IVF_FASTSCAN, IndexKind.AUTO):
            names += ["lists", "nprobe"]
        if options.kind is IndexKind.FAISS:
            names += ["factory"]
        of_codes = {"queries": queries, **{name: getattr(options, name) for name in names}}
    return BuildPlan(
        corpus=corpus.digest(),
        encoding=options.encoding,
        kind=options.kind,
        segment_docs=options.segment_docs,
        on_error=options.on_error,
        **of_codes,
    )


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
