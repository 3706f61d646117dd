"""Documents added to an index, replaced, deleted and compacted, and generations gone back to: each publishes one new
generation.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from index.build_encoding import NotEncodableError
from index.build_options import AddOptions, CompactOptions, WriteOptions
from index.build_reading import corpus_of
from index.compaction import compact
from index.documents import require_id
from index.duplicates import read_ids, require_unique_ids
from index.errors import BuildError, SourceError
from index.maintenance import maintain
from index.manifest import Manifest
from index.progress import Progress, SilentProgress
from index.rebuilding import rebuild_index
from index.records import ModelRecord
from index.rejected_rows import no_documents
from index.segment_records import SegmentEntry
from index.sources import Corpus, RejectedRows
from index.storage import IndexDirectory
from index.text.checking import check_texts
from index.text.matching import require_model
from index.text.protocol import TextEncoder
from index.vectors import resolve_device
from index.writer import IndexWriter, made_now

__all__ = ["ChangeSummary", "add_documents", "compact_index", "delete_documents", "roll_back"]

IDS_TOGETHER = 1 << 18
"""New ids that are looked up together in every segment."""


@dataclass(frozen=True, slots=True)
class ChangeSummary:
    """The generation that is live after a change; how many documents were written, how many of these took the place of
    one with their id, how many rows of the sources were left out, how many documents were deleted, and which ids to
    delete there were not. `not_said_to_be_of`: the model of the index, where it is known, and what was written does not
    say that it is of that."""

    manifest: Manifest
    written: int = 0
    replaced: int = 0
    rejected: int = 0
    deleted: int = 0
    missing: Sequence[str] = ()
    not_said_to_be_of: ModelRecord | None = None


def add_documents(
    sources: Sequence[str | Path],
    directory: IndexDirectory | str | Path,
    options: AddOptions | None = None,
    progress: Progress | None = None,
    encoder: TextEncoder | None = None,
) -> ChangeSummary:
    """Adds the documents in `sources`, each in place of the one with its id, if there is one. With `encoder`, or with a
    model in the options, the sources hold texts.

    Nothing is published unless all are; interrupted, the same command does it all again. Raises SourceError or
    DuplicateIdError for what cannot be read, ModelError, also for another model than the index's and for texts where it
    is not known, the errors of IndexDirectory, and OSError where the disk fails.
    """
    options, progress, directory = options or AddOptions(), progress or SilentProgress(), IndexDirectory.of(directory)
    device = resolve_device(options.device)
    with _locked(directory, options):
        with contextlib.ExitStack() as stack:
            corpus, rejected = _corpus(sources, directory, options, encoder)
            of_index = directory.manifest().model
            of_corpus = corpus.model()
            require_model(of_index, of_corpus, str(directory), reads=corpus.of_texts)
            if corpus.of_texts:
                check_texts(corpus, progress, skips=options.on_error == "skip")
            if options.on_error == "skip":
                if rejected.path.parent == directory.path:
                    # In the index itself nobody has named it, and a link that lies there is nobody's wish.
                    rejected.path.unlink(missing_ok=True)
                elif rejected.path.is_file():
                    # Emptied where it lies: it may be a link, or else a device, that the user has named.
                    os.truncate(rejected.path, 0)
                stack.enter_context(rejected)
            writer = stack.enter_context(IndexWriter(directory, device=device, progress=progress))
            written = _read(corpus, writer, rejected)
            id_files = [folder / "ids.arrow" for folder in writer.written_folders]
            require_unique_ids(corpus, id_files)
            replaced = 0
            for ids in _together([chunk for path in id_files for chunk in read_ids(path).chunks]):
                replaced += len(writer.remove(ids))
            manifest = writer.publish(_entries(corpus, writer), retention=options.retention, written=written)
        manifest = maintain(directory, options, progress) or manifest
    unsaid = of_index if of_corpus is None else None
    return ChangeSummary(
        manifest, written=written, replaced=replaced, rejected=rejected.count, not_said_to_be_of=unsaid
    )


def _corpus(
    sources: Sequence[str | Path], directory: IndexDirectory, options: AddOptions, encoder: TextEncoder | None
) -> tuple[Corpus, RejectedRows]:
    """The documents that are to be added, and where rows that are left out are to be listed."""
    rejected = RejectedRows(options.rejected_to or directory.path / "rejected.jsonl")
    return corpus_of(sources, directory, options, rejected, rejected.path, encoder), rejected


def _read(corpus: Corpus, writer: IndexWriter, rejected: RejectedRows) -> int:
    """Writes the documents of a corpus into segments; how many there are."""
    writer.progress.phase("reading", None)
    stamps, written = corpus.stamps(), 0
    for batch in corpus.batches(k=writer.manifest.k):
        writer.add(batch)
        written += len(batch)
        writer.progress.advance(len(batch))
    writer.cut()
    if corpus.stamps() != stamps:
        raise SourceError("the sources were changed while they were read; add them again when they no longer change")
    if not written:
        raise no_documents(corpus.files, rejected, rejected.path)
    return written


def _entries(corpus: Corpus, writer: IndexWriter) -> list[SegmentEntry]:
    """The segments of the generation; raises SourceError for a document that float32 cannot hold."""
    try:
        return writer.entries()
    except NotEncodableError as error:
        raise error.located(corpus) from error


def delete_documents(
    ids: Sequence[str],
    directory: IndexDirectory | str | Path,
    options: WriteOptions | None = None,
    progress: Progress | None = None,
) -> ChangeSummary:
    """Deletes the documents with these ids. Where there are none of them, nothing is published.

    Raises TypeError for an id that is no string, the errors of IndexDirectory, and OSError where the disk fails.
    """
    options, progress, directory = options or WriteOptions(), progress or SilentProgress(), IndexDirectory.of(directory)
    ids = [ids] if isinstance(ids, str) else ids
    for identifier in ids:
        require_id(identifier)
    wanted = list(dict.fromkeys(ids))
    with _locked(directory, options):
        with IndexWriter(directory) as writer:
            # What is no Unicode, as an argument of a command may be, is no document's id.
            removed = set(writer.remove(pa.array(filter(_is_unicode, wanted), pa.string())))
            manifest = writer.manifest
            if removed:
                manifest = writer.publish(writer.entries(), retention=options.retention)
        if removed:
            manifest = maintain(directory, options, progress) or manifest
    missing = [identifier for identifier in wanted if identifier not in removed]
    return ChangeSummary(manifest, deleted=len(removed), missing=missing)


def _is_unicode(identifier: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in identifier)


def compact_index(
    directory: IndexDirectory | str | Path, options: CompactOptions | None = None, progress: Progress | None = None
) -> Manifest:
    """Puts documents into full segments without what was deleted, and makes a graph or lists anew; with `retrain`,
    builds the index anew of its own documents.

    The generation that is live then: the same where there was nothing to do. Raises the errors of rebuild_index.
    """
    options, progress = options or CompactOptions(), progress or SilentProgress()
    directory = IndexDirectory.of(directory)
    if options.retrain:
        return rebuild_index(directory, options, progress)
    if options.queries is not None or options.min_recall is not None or options.restart:
        raise BuildError("queries, min_recall and restart are for compacting with retrain: add --retrain")
    device = resolve_device(options.device)
    with _locked(directory, options), IndexWriter(directory, device=device, progress=progress) as writer:
        made = compact(writer, device)
        if made is None:
            return writer.manifest
        entries, codes = made
        return writer.publish(entries, retention=options.retention, changed=False, codes=codes)


def roll_back(directory: IndexDirectory | str | Path, generation: int, options: WriteOptions | None = None) -> Manifest:
    """Publishes a generation that is kept once more, under a new number, after checking every byte of it.

    Raises GenerationNotFoundError, and CorruptIndexError where it is damaged.
    """
    options, directory = options or WriteOptions(), IndexDirectory.of(directory)
    with _locked(directory, options):
        manifest = directory.verify(generation)
        again = manifest.model_copy(
            update={**made_now(), "generation": directory.next_generation(), "restores": generation}
        )
        directory.publish(again, retention=options.retention)
        return again


@contextlib.contextmanager
def _locked(directory: IndexDirectory, options: WriteOptions) -> Iterator[None]:
    """Holds the writer lock of an index. Raises IndexNotFoundError, and makes no folder, where there is none."""
    directory.current_token()
    with directory.lock(options.wait):
        yield


def _together(chunks: Sequence[pa.Array]) -> list[pa.Array]:
    """Arrays of ids joined, as long as they are to be looked up at a time."""
    joined: list[pa.Array] = []
    waiting: list[pa.Array] = []
    for chunk in chunks:
        waiting.append(chunk)
        if sum(map(len, waiting)) >= IDS_TOGETHER:
            joined.append(pa.concat_arrays(waiting))
            waiting = []
    return [*joined, pa.concat_arrays(waiting)] if waiting else joined
