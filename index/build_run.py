"""One run of a build: the documents of a corpus are read, checked and cut into segments, encoded in the form of their
kind of index, and published.

Every segment that has been read is listed in `staging/`, so that the same build goes on where a killed one stopped.
What is written is synced behind the build's back, and all of it before the index is published.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from index.build_approximate import build_approximate
from index.build_choice import choose_kind
from index.build_encoding import FlatForm, SegmentForm
from index.build_fit import Fitting, GivenQueries, NotReachedError, require_recall
from index.build_work import BuildWork, LocalWork
from index.durable import SyncError, write_atomically, write_where_told
from index.errors import BuildError, CorruptIndexError, InvalidGaussiansError, SourceError
from index.manifest import FORMAT_VERSION, IndexKind, Manifest, SourceRecord, StandardisationRecord
from index.progress import Progress
from index.retention import Retention
from index.scanning import SCANNED
from index.segment_records import SegmentEntry
from index.sources import DocumentSource, RejectedRows, Stamps
from index.staging import BuildPlan, ReadSegment, Staging
from index.standardisation import MomentAccumulator, Standardisation
from index.storage import IndexDirectory
from index.writer import made_now

__all__ = ["BuildRun"]


class BuildRun:
    """One run of a build, whose caller holds the writer lock."""

    def __init__(
        self,
        directory: IndexDirectory,
        plan: BuildPlan,
        corpus: DocumentSource,
        stamps: Stamps,
        queries: GivenQueries | None,
        rejected: RejectedRows,
        rejected_to: Path,
        *,
        min_recall: float | None,
        retention: Retention,
        device: torch.device,
        progress: Progress,
        before: Manifest | None = None,
        work: BuildWork | None = None,
    ) -> None:
        """`before` is the generation whose documents the corpus is, where these are built anew. `work` is done in this
        process if not set."""
        self.directory, self.plan, self.corpus, self.stamps = directory, plan, corpus, stamps
        self.queries, self.min_recall, self.retention = queries, min_recall, retention
        self.rejected, self.rejected_to = rejected, rejected_to
        self.progress, self.device, self.before = progress, device, before
        self.resumed = 0
        listed = rejected if plan.on_error == "skip" else None
        self.work = work or LocalWork(corpus, stamps, listed, rejected_to, device, progress)

    def run(self, *, restart: bool) -> Manifest:
        staging = self.work.open(self.directory, self.plan, restart=restart)
        try:
            with self.work:
                manifest = self._build(staging)
                self.work.finish()
            self.directory.publish(manifest, retention=self.retention)
        except BaseException as error:
            # The next run would find such a file as it should be, and could not learn that it is not on disk.
            if isinstance(error, SyncError) or self.work.failed:
                staging.discard()
            raise
        staging.close()
        return manifest

    def _build(self, staging: Staging) -> Manifest:
        try:
            segments, self.resumed = self.work.read(staging)
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
            generation=self.directory.free_number(staging.generation),
            **made_now(),
            k=segments[0].k,
            standardisation=StandardisationRecord.of(standardisation),
            documents=moments.count,
            source=SourceRecord(
                corpus=self.plan.corpus,
                plan=self.plan.id,
                files=self.before.source.files if self.before else [file.name for file in self.corpus.files],
                rejected=self.before.source.rejected if self.before else segments[-1].rejected,
            ),
            settings=self.plan.settings,
            applied=self.before.applied if self.before else [],
            **made,
        )

    def _make(
        self, staging: Staging, segments: Sequence[ReadSegment], standardisation: Standardisation
    ) -> dict[str, Any]:
        """Makes the segments what their kind of index scans, and says in the manifest's words what they have become."""
        encode = functools.partial(self.work.encode, staging, segments, standardisation)
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
        store = self.work.documents(staging, segments)
        try:
            fitting = Fitting.of(staging, store, standardisation, queries, encode, self.progress)
            coded = build_approximate(fitting, kind, self.device)
            require_recall(coded.recall, self.min_recall)
        except BuildError:
            # The same command would fail the same way, and must not stand in the way of another.
            staging.discard()
            raise
        except (InvalidGaussiansError, CorruptIndexError) as error:
            if not isinstance(error, InvalidGaussiansError) and not isinstance(error.__cause__, InvalidGaussiansError):
                raise
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

    def _hand_over_rejected(self) -> None:
        """Puts the list of rows that were left out where the user wants it."""
        if self.plan.on_error == "skip" and self.rejected.path.exists():
            # In the index itself nobody has named it, and a link that lies there is nobody's wish.
            ours = self.rejected_to.parent == self.directory.path
            write = write_atomically if ours else write_where_told
            write(self.rejected_to, self.rejected.path.read_bytes())
