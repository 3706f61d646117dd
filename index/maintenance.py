"""What is due after a write, and for which nobody waits: small segments are merged, and recall is measured.

Each publishes a generation of the same documents.
"""

import numpy as np

from index.build_options import WriteOptions
from index.compaction import due_merges, merge
from index.drift import is_worth_measuring, measure_drift
from index.errors import GaussearchError, InsufficientMemoryError
from index.manifest import Manifest
from index.progress import Progress, SilentProgress
from index.searcher import LocalSearcher
from index.storage import IndexDirectory
from index.writer import IndexWriter

__all__ = ["is_due", "maintain", "measure_due", "merge_due"]


def is_due(manifest: Manifest) -> bool:
    """Whether a generation is to be merged or measured."""
    return bool(due_merges(manifest)) or is_worth_measuring(manifest)


def maintain(directory: IndexDirectory, options: WriteOptions, progress: Progress) -> Manifest | None:
    """Does what is due after a write that has been published, and so has succeeded whatever comes of this; the
    generation that it makes, if it does. The caller holds the writer lock."""
    merged = None
    try:
        merged = _merge(directory, options, progress)
    except (GaussearchError, OSError, RuntimeError, MemoryError) as error:
        progress.phase(f"segments are not merged: {error}", None)
    try:
        if is_worth_measuring(directory.manifest()):
            progress.phase("measuring recall", None)
        return _measure(directory, options, None) or merged
    except (GaussearchError, OSError, RuntimeError, MemoryError) as error:
        progress.phase(f"recall is not measured: {error}", None)
    return merged


def merge_due(
    directory: IndexDirectory, options: WriteOptions | None = None, progress: Progress | None = None
) -> Manifest | None:
    """Merges small segments where there are many, and writes those anew that are mostly deleted; the generation that
    this makes, if it does.

    Raises the errors of IndexDirectory, SourceError where payload columns have types that do not go together, and
    OSError where the disk fails.
    """
    options = options or WriteOptions()
    if not due_merges(directory.manifest()):
        return None
    with directory.lock(options.wait):
        return _merge(directory, options, progress or SilentProgress())


def measure_due(
    directory: IndexDirectory, options: WriteOptions | None = None, known: LocalSearcher | None = None
) -> Manifest | None:
    """Measures what searches find of the newest documents, where enough have been written since that was last done;
    the generation that says so, if there is one.

    `known` is a searcher of this index. Nothing is measured where the index does not fit into memory.
    """
    options = options or WriteOptions()
    if not is_worth_measuring(directory.manifest()):
        return None
    with directory.lock(options.wait):
        return _measure(directory, options, known)


def _merge(directory: IndexDirectory, options: WriteOptions, progress: Progress) -> Manifest | None:
    if not due_merges(directory.manifest()):
        return None
    with IndexWriter(directory, progress=progress) as writer:
        merge(writer, due_merges(writer.manifest))
        return writer.publish(writer.entries(), retention=options.retention, changed=False)


def _measure(directory: IndexDirectory, options: WriteOptions, known: LocalSearcher | None) -> Manifest | None:
    if not is_worth_measuring(directory.manifest()):
        return None
    with IndexWriter(directory) as writer:
        manifest = writer.manifest
        try:
            if known is not None:
                searcher = known.beside(directory, manifest)
            else:
                searcher = LocalSearcher(directory, device="cpu", verify=False, manifest=manifest)
        except InsufficientMemoryError:
            # Where it is searched there may be more.
            return None
        newest = np.arange(sum(entry.documents for entry in manifest.segments))
        live = searcher.live_mask()
        newest = (newest if live is None else newest[live])[-manifest.written :]
        drift = measure_drift(searcher, newest)
        if drift is None:
            return None
        return writer.publish(manifest.segments, retention=options.retention, drift=drift, changed=False)
