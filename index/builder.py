"""The batch build: a corpus in, a published index out, in memory bounded but for 8 bytes a document, and its code or
what else its kind is searched by, which must fit into memory once it is served, too.

The corpus is hashed, so that a resumed build knows it again, and then read once (index.build_reading). Reading cuts it
into segments, checks it and fits the standardisation; then the segments are encoded, on the GPU where there is one,
into FAISS indexes (index.build_encoding); then the index is published in one step (index.publication). Every segment
that has been read is listed in `staging/`, so that the same command goes on where a killed build stopped. What is
written is synced behind the build's back, and all of it before the index is published.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.build_choice import check_options
from index.build_fit import read_queries, require_recall
from index.build_options import BuildOptions
from index.build_reading import corpus_of
from index.build_run import BuildRun
from index.build_work import BuildPlace
from index.errors import IndexDirectoryError
from index.manifest import IndexKind, Manifest
from index.progress import Progress, SilentProgress
from index.sources import Corpus, RejectedRows
from index.staging import BuildPlan
from index.storage import IndexDirectory
from index.text.checking import check_texts
from index.text.protocol import TextEncoder
from index.vectors import resolve_device

__all__ = ["BuildOptions", "BuildSummary", "Progress", "build_index"]


@dataclass(frozen=True, slots=True)
class BuildSummary:
    """What a build did. `resumed_documents` were read by an earlier run; `up_to_date` means there was nothing to do.
    `replaced` is the generation that was live before, if there was one that could be read and it is not up to date."""

    manifest: Manifest
    path: Path
    seconds: float
    bytes: int
    resumed_documents: int
    up_to_date: bool
    replaced: Manifest | None = None


def build_index(
    sources: Sequence[str | Path],
    directory: IndexDirectory | str | Path,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
    encoder: TextEncoder | None = None,
    place: BuildPlace | None = None,
) -> BuildSummary:
    """Builds and publishes an index of the documents in `sources`, or finishes a build that was interrupted.

    The live index, if there is one, is served unchanged until the moment of publication. Where it already is the index
    of this very corpus and these options, and intact, nothing is done.

    With `encoder`, or with a model in the options, the sources hold texts, of which it makes the Gaussians. `place` is
    where the segments are made, if not in this process (index.distributed.ray_place); the index is the same.

    Raises ModelError, SourceError or DuplicateIdError for a corpus that cannot be indexed, of texts before any is
    encoded; BuildError for an unfinished build of something else, IndexLockedError while another process writes,
    DeviceUnavailableError. OSError where the disk fails.
    """
    options, progress, started = options or BuildOptions(), progress or SilentProgress(), time.monotonic()
    directory = IndexDirectory.of(directory)
    of_texts = encoder is not None or options.model is not None
    device = place.require(options, of_texts=of_texts) if place else resolve_device(options.device)
    with directory.lock(options.wait):
        # Beside what the build has read, so that they go on and end together; handed over when it ends.
        rejected = RejectedRows(directory.staging / "rejected.jsonl")
        rejected_to = options.rejected_to or directory.path / "rejected.jsonl"
        corpus = corpus_of(sources, directory, options, rejected, rejected_to, encoder)
        progress.phase("checking the corpus for changes", None)
        stamps = corpus.stamps()
        check_options(options)
        approximate = options.kind is not IndexKind.FLAT
        queries = read_queries(options.queries, corpus) if options.queries and approximate else None
        digest = place.digest(corpus, options) if place else corpus.digest()
        plan = _plan(corpus, digest, options, queries.digest if queries else None)
        before = _live_manifest(directory)
        live = _intact_manifest(directory, before, plan)
        if live is not None:
            require_recall(live.measured_recall, options.min_recall)
            return _summary(directory, live, started, resumed=0, up_to_date=True)
        if corpus.of_texts:
            check_texts(corpus, progress, skips=options.on_error == "skip")
        build = BuildRun(
            directory,
            plan,
            corpus,
            stamps,
            queries,
            rejected,
            rejected_to,
            min_recall=options.min_recall,
            retention=options.retention,
            device=device,
            progress=progress,
            work=place.work(corpus, options, stamps, rejected, rejected_to, progress) if place else None,
        )
        manifest = build.run(restart=options.restart)
        return _summary(directory, manifest, started, resumed=build.resumed, up_to_date=False, replaced=before)


def _plan(corpus: Corpus, digest: str, options: BuildOptions, queries: str | None) -> BuildPlan:
    """What decides the index that these options make of a corpus of this digest; `queries` is that of their file."""
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
        corpus=digest,
        encoding=options.encoding,
        kind=options.kind,
        segment_docs=options.segment_docs,
        on_error=options.on_error,
        model=corpus.model(),
        model_precision=options.model_precision if corpus.of_texts else None,
        **of_codes,
    )


def _live_manifest(directory: IndexDirectory) -> Manifest | None:
    """The live manifest; None where there is none, or it cannot be read: what is damaged is built anew."""
    try:
        return directory.manifest()
    except IndexDirectoryError:
        return None


def _intact_manifest(directory: IndexDirectory, live: Manifest | None, plan: BuildPlan) -> Manifest | None:
    """The live manifest, where it is what the plan would build and every byte of it is in order."""
    if live is None or live.source.plan != plan.id or live.changes:
        return None
    try:
        return directory.verify()
    except IndexDirectoryError:
        return None


def _summary(
    directory: IndexDirectory,
    manifest: Manifest,
    started: float,
    *,
    resumed: int,
    up_to_date: bool,
    replaced: Manifest | None = None,
) -> BuildSummary:
    return BuildSummary(
        manifest=manifest,
        path=directory.path,
        seconds=time.monotonic() - started,
        bytes=sum(segment.bytes for segment in manifest.segments),
        resumed_documents=resumed,
        up_to_date=up_to_date,
        replaced=replaced,
    )
