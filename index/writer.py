"""Changes of an index: documents that are added and removed, published together as one new generation.

What is published does not change: what is added makes new segments, in the form that the index has, and what is removed
is listed beside its segment. So the searcher that is in use goes on as it is, and the next one takes nearly all over
from it. Whatever is interrupted, CURRENT names the generation before or the one after.
"""

import contextlib
import datetime
import importlib.metadata
import itertools
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from index.approximate import open_codebook
from index.build_encoding import FlatForm, SegmentForm, encode_segments
from index.build_fit import CodesForm
from index.document_writing import DocumentBatch, DocumentWriter, WrittenSegment
from index.documents import Numbers
from index.durable import Syncer
from index.errors import InvalidGaussiansError, SourceError
from index.generation_files import deleted_rows, open_segments, write_deleted_rows
from index.generations import remove_unpublished
from index.manifest import AppliedRequest, DriftRecord, Manifest
from index.payload import read_text, unified
from index.progress import Progress, SilentProgress
from index.records import FileEntry
from index.retention import Retention
from index.segment_records import SegmentEntry
from index.segments import Segment
from index.sources import SourceBatch
from index.storage import IndexDirectory

__all__ = ["IndexWriter", "made_now"]

FEW_IDS = 16
"""Ids that are looked up one by one, by binary search, and not all at once in every id of a segment."""
KEPT_REQUESTS = 1000
"""Requests with an Idempotency-Key that an index remembers: 250 bytes each in every manifest."""


class _Files:
    """A written segment, as index.build_encoding takes it."""

    def __init__(self, written: WrittenSegment) -> None:
        self.files: dict[str, FileEntry] = written.files
        self.documents, self.k = written.moments.count, len(written.moments.mean)


class IndexWriter:
    """Prepares one generation after the live one. The caller holds the writer lock, from before this is made.

    A context manager: what has not been published when it is left is removed again.
    """

    def __init__(
        self,
        directory: IndexDirectory,
        *,
        known: Sequence[Segment] = (),
        device: torch.device | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Opens the live generation; `known` are segments of it that are open already. Raises the errors of
        IndexDirectory."""
        self.directory, self.manifest = directory, directory.manifest()
        self.generation = directory.next_generation()
        # Until the lock is released.
        self._lease = directory.fetch(self.manifest)
        self._device, self.progress = device or torch.device("cpu"), progress or SilentProgress()
        by_folder = {segment.folder: segment for segment in known}
        opened = {
            entry.blake3: by_folder[directory.segments / entry.id]
            for entry in self.manifest.segments
            if directory.segments / entry.id in by_folder
        }
        self.segments = open_segments(directory, self.manifest, verify=False, known=opened)
        self.deleted: list[Numbers] = [deleted_rows(directory, entry) for entry in self.manifest.segments]
        self._changed: set[int] = set()
        self._rewritten: set[int] = set()
        # Of those that hold documents: types that nothing has any more bind nobody.
        pairs = zip(self.segments, self.deleted, strict=True)
        self._schema = _schema_of([segment for segment, gone in pairs if len(gone) < len(segment)])
        self._prefix = secrets.token_hex(6)
        self._syncer = Syncer()
        self._writing = DocumentWriter(self.folder, self.manifest.settings.segment_docs, 0, self._syncer)
        self._written: list[WrittenSegment] = []

    def __enter__(self) -> Self:
        self._open = contextlib.ExitStack()
        self._open.callback(self._clear_away)
        self._open.enter_context(self._syncer)
        self._open.enter_context(self._writing)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._open.close()

    def _clear_away(self) -> None:
        live = self.directory.live_generation()
        if live is None or live >= self.generation:
            # It has been published, whatever came after that; or there is no knowing.
            return
        # This writer's own, and not what else none needs: that may be an unfinished build's.
        remove_unpublished(self.directory)
        for folder in self.directory.segments.glob(f"{self._prefix}-*"):
            shutil.rmtree(folder, ignore_errors=True)
        made = (
            self.directory.structures.glob(f"*{self._prefix}-*"),
            self.directory.deletes.glob(f"*-{self.generation:08d}.npy*"),
        )
        for path in itertools.chain(*made):
            path.unlink(missing_ok=True)

    def segment_id(self, ordinal: int) -> str:
        """What the new segment number `ordinal` is called."""
        return f"{self._prefix}-{self.generation:08d}-{ordinal:05d}"

    def folder(self, ordinal: int) -> Path:
        """Where it lies."""
        return self.directory.segments / self.segment_id(ordinal)

    @property
    def has_changes(self) -> bool:
        """Whether there is anything to publish."""
        return bool(self._changed or self._rewritten or self._written or self._writing.documents)

    def find(self, ids: pa.Array) -> list[Numbers]:
        """The rows of each segment whose documents have one of these ids, ascending."""
        return [
            np.setdiff1d(_rows_of(segment, ids), deleted, assume_unique=True)
            for segment, deleted in zip(self.segments, self.deleted, strict=True)
        ]

    def remove(self, ids: pa.Array) -> list[str]:
        """Removes the documents with these ids; returns the ids that there were."""
        removed: list[str] = []
        for place, rows in enumerate(self.find(ids)):
            if len(rows):
                removed += self.segments[place].ids_at(rows)
                self.deleted[place] = np.union1d(self.deleted[place], rows)
                self._changed.add(place)
        return removed

    def add(self, batch: DocumentBatch | SourceBatch) -> None:
        """Adds documents whose ids no other document has; segments are cut where they are full.

        Raises SourceError where a payload column has another type than in the index.
        """
        batch = DocumentBatch(batch.file, batch.ids, batch.gaussians, self.check(batch))
        for part in _parts(batch, self._writing, self.manifest.settings.segment_docs):
            self._writing.add(part)
            if self._writing.documents == self.manifest.settings.segment_docs:
                self.cut()

    def check(self, batch: DocumentBatch | SourceBatch) -> pa.Table | None:
        """The payload of documents that are to be added, with text read as what the index has there: dates, for one.

        Raises SourceError where a payload column has another type than in the index, or in what has been checked
        before.
        """
        try:
            batch.gaussians.require_dimensions(self.manifest.k)
        except InvalidGaussiansError as error:
            raise SourceError(f"{batch.file}: {error}") from error
        if batch.payload is None:
            return None
        try:
            payload = read_text(batch.payload, self._schema)
        except ValueError as error:
            raise SourceError(f"{batch.file}: {error}") from error
        try:
            self._schema = unified([self._schema.empty_table(), payload])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise SourceError(
                f"{batch.file}: the payload columns have other types than in the index: {error}. Convert them"
            ) from error
        return payload

    def cut(self) -> None:
        """Ends the segment that is being written, if there is one."""
        if self._writing.documents:
            self._written.append(self._writing.finish())

    def rewrite(self, place: int, batches: Iterator[DocumentBatch]) -> None:
        """Adds the documents of a segment, `batches`, anew, and leaves the segment out."""
        for batch in batches:
            self.add(batch)
        self._rewritten.add(place)

    @property
    def written_folders(self) -> list[Path]:
        """Where the new segments lie that are complete but for their vectors."""
        return [self.folder(ordinal) for ordinal in range(len(self._written))]

    def entries(self) -> list[SegmentEntry]:
        """Makes the new segments complete, and returns the entries of the generation.

        Raises NotEncodableError for a document that float32 cannot hold.
        """
        self.cut()
        made: list[SegmentEntry] = []
        if self._written:
            self.progress.phase("encoding", sum(each.moments.count for each in self._written))
            made = encode_segments(
                self.written_folders,
                [_Files(written) for written in self._written],
                self._form(),
                self.manifest.standardisation.restore(),
                self._device,
                self.progress,
                self._syncer,
            )
            self._syncer.finish()
        kept = [
            write_deleted_rows(self.directory, entry, self.deleted[place], self.generation)
            if place in self._changed
            else entry
            for place, entry in enumerate(self.manifest.segments)
            if place not in self._rewritten
        ]
        # The documents of a structure stay in their places, unless it is to be made anew.
        covered = self.manifest.covered
        if any(place < covered for place in self._rewritten):
            covered = 0
        entries = [*kept, *made]
        alive = [entry for place, entry in enumerate(entries) if entry.live or place < covered]
        return alive or entries[:1]

    def publish(
        self,
        entries: list[SegmentEntry],
        *,
        retention: Retention | None = None,
        written: int = 0,
        applied: Sequence[AppliedRequest] = (),
        drift: DriftRecord | None = None,
        changed: bool = True,
        **others: Any,
    ) -> Manifest:
        """Publishes a generation of these segments. `written` counts the documents that came from outside, `changed`
        says whether documents are others than before, `others` are further fields of its manifest that change."""
        before = self.manifest
        changes = {
            "generation": self.generation,
            **made_now(),
            "documents": sum(entry.live for entry in entries),
            "segments": entries,
            "changes": before.changes + changed,
            "written": before.written + written,
            "applied": [*before.applied, *applied][-KEPT_REQUESTS:],
            "drift": drift or before.drift,
            "restores": None if changed else before.restores,
            **others,
        }
        manifest = before.model_copy(update=changes)
        published = {entry.id for entry in before.segments}
        self.directory.publish(manifest, retention=retention or Retention(), published=published)
        return manifest

    def _form(self) -> SegmentForm:
        codes = self.manifest.codes
        if codes is None:
            return FlatForm(self.manifest.encoding)
        return CodesForm(open_codebook(self.directory, codes, self.manifest.k), codes.file.blake3)


def made_now() -> dict[str, Any]:
    """When and by what a manifest is made."""
    return {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "created_by": f"gaussearch {importlib.metadata.version('gaussearch')}",
    }


def _schema_of(segments: Sequence[Segment]) -> pa.Schema:
    """The payload columns of these segments; of a column that has types which do not go together, the first."""
    schema = pa.schema([])
    for segment in segments:
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowTypeError):
            schema = unified([schema.empty_table(), segment.payload])
    return schema


def _rows_of(segment: Segment, ids: pa.Array) -> Numbers:
    """The rows of a segment that have one of these ids, ascending, deleted or not."""
    if len(ids) <= FEW_IDS:
        found = {segment.find(identifier) for identifier in ids.to_pylist()}
        return np.array(sorted(row for row in found if row is not None), dtype=np.int64)
    is_one = pc.is_in(segment.ids, value_set=ids)
    rows: Numbers = np.flatnonzero(is_one.to_numpy(zero_copy_only=False) if len(segment) else [])
    return rows


def _parts(batch: DocumentBatch | SourceBatch, writing: DocumentWriter, segment_docs: int) -> Iterator[DocumentBatch]:
    """A batch in parts that fill up segments."""
    start = 0
    while start < len(batch.ids):
        part = slice(start, start + segment_docs - writing.documents)
        payload = batch.payload[part] if batch.payload is not None else None
        yield DocumentBatch(batch.file, batch.ids[part], batch.gaussians[part], payload)
        start = part.stop
