"""An unfinished build of an index in object storage: what it has made lies there, and not in the folder of any machine.

staging/plan.json        what is built
staging/00000.json       put last of what was read into a segment: it stands for the whole
segments/<id>/...        segment.json is put last, and removed before anything else of a segment is replaced
"""

import contextlib
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from index.durable import Syncer, checksum, write_atomically
from index.errors import GaussearchError
from index.layout import Folder
from index.records import FileEntry
from index.remote.fetching import in_parallel
from index.remote.objects import ObjectStorage
from index.remote.remote_index import RemoteIndex
from index.segment_records import OPTIONAL_FILES, SegmentEntry, SegmentManifest
from index.segments import SEGMENT_RECORD_BYTES
from index.staging import BuildPlan, ReadSegment, Staging

__all__ = ["StoredSegments", "StoredStaging"]

PLAN: Final = f"{Folder.STAGING}/plan.json"
RECORD_BYTES: Final = 1 << 22
"""More than a plan, or a record with the moments of any k."""


class StoredStaging(Staging):
    """The build, as the driver sees it: its working copy holds the plan alone."""

    directory: RemoteIndex

    @classmethod
    def begin(cls, directory: RemoteIndex, plan: BuildPlan, *, by: Literal["ray"], restart: bool) -> "StoredStaging":
        """As Staging.open, of what storage has; raises StorageError, too."""
        there = directory.storage.get(PLAN, RECORD_BYTES)
        directory.staging.mkdir(exist_ok=True)
        local = directory.staging / "plan.json"
        if there is None:
            local.unlink(missing_ok=True)
        else:
            write_atomically(local, there.data)
        staging = cls(directory, plan, cls.open(directory, plan, by=by, restart=restart).generation)
        directory.storage.put(PLAN, local.read_bytes())
        return staging

    def discard(self) -> None:
        """As Staging, in storage, too."""
        prefix = f"{Folder.SEGMENTS}/{self.plan.id}-{self.generation:08d}-"
        published = set[str]()
        with contextlib.suppress(GaussearchError):
            published = {f"{Folder.SEGMENTS}/{entry.id}/" for entry in self.directory.manifest().segments}
        storage = self.directory.storage
        made = [each.name for each in storage.list(Folder.SEGMENTS) if each.name.startswith(prefix)]
        storage.delete(*(name for name in made if name[: name.rindex("/") + 1] not in published))
        self.close()
        super().discard()

    def close(self) -> None:
        """As Staging, in storage, too."""
        # The plan last: as long as it is there, somebody may go on.
        names = sorted((each.name for each in self.directory.storage.list(Folder.STAGING)), key=lambda it: it == PLAN)
        self.directory.storage.delete(*names)
        super().close()


class StoredSegments:
    """A task's folder, and the storage that what it makes there is put into: index.distributed.sites.Workspace."""

    def __init__(self, staging: Staging, storage: ObjectStorage, syncer: Syncer) -> None:
        for folder in (staging.path, staging.directory.segments):
            folder.mkdir()
        self.staging, self.syncer, self._storage = staging, syncer, storage

    def finished(self, ordinal: int) -> ReadSegment | None:
        """As Workspace."""
        stored = self._storage.get(self._record(ordinal), RECORD_BYTES)
        if stored is None:
            return None
        try:
            segment = ReadSegment.model_validate_json(stored.data)
        except ValidationError:
            return None
        if not self._has(ordinal, segment.files):
            return None
        if segment.rejected_file is not None:
            listed = self.staging.rejected_of(ordinal)
            self._storage.download(f"{Folder.STAGING}/{listed.name}", listed, segment.rejected_file)
        return segment

    def bring(self, ordinal: int, read: ReadSegment, names: Collection[str]) -> Path:
        """As Workspace."""
        folder = self.staging.folder(ordinal)
        folder.mkdir(exist_ok=True)
        for name in names:
            self._storage.download(self._name(ordinal, name), folder / name, read.files[name])
        return folder

    def completed(self, ordinal: int, documents: int, codebook: str | None) -> SegmentEntry | None:
        """As Workspace."""
        stored = self._storage.get(self._name(ordinal, "segment.json"), SEGMENT_RECORD_BYTES)
        if stored is None:
            return None
        try:
            manifest = SegmentManifest.model_validate_json(stored.data)
        except ValidationError:
            return None
        folder = self.staging.folder(ordinal)
        wanted = (folder.name, documents, codebook)
        if (manifest.id, manifest.documents, manifest.codebook) != wanted or not self._has(ordinal, manifest.files):
            return None
        folder.mkdir(exist_ok=True)
        (folder / "segment.json").write_bytes(stored.data)
        return manifest.entry(checksum(stored.data))

    def keep_read(self, ordinal: int, segment: ReadSegment) -> None:
        """As Workspace."""
        # Of another run, whose record is not there: what is complete is complete of these very files.
        self._storage.delete(self._name(ordinal, "segment.json"))
        self._put(ordinal, segment.files)
        listed = self.staging.rejected_of(ordinal)
        if listed.exists():
            self._storage.put(f"{Folder.STAGING}/{listed.name}", listed)
        self._storage.put(self._record(ordinal), segment.model_dump_json().encode())

    def keep_complete(self, ordinal: int, read: ReadSegment) -> None:
        """As Workspace."""
        folder = self.staging.folder(ordinal)
        record = (folder / "segment.json").read_bytes()
        made = set(SegmentManifest.model_validate_json(record).files) - set(read.files)
        others = OPTIONAL_FILES - set(read.files) - made
        self._storage.delete(*(self._name(ordinal, name) for name in ("segment.json", *sorted(others))))
        self._put(ordinal, made)
        self._storage.put(self._name(ordinal, "segment.json"), record)

    def _put(self, ordinal: int, names: Collection[str]) -> None:
        folder = self.staging.folder(ordinal)
        in_parallel([partial(self._storage.put, self._name(ordinal, name), folder / name) for name in names])

    def _has(self, ordinal: int, files: dict[str, FileEntry]) -> bool:
        """Whether all of these are there, by their sizes; whoever reads one compares it with its checksum."""
        there = {each.name: each.bytes for each in self._storage.list(self._name(ordinal, ""))}
        return all(there.get(self._name(ordinal, name)) == entry.bytes for name, entry in files.items())

    def _name(self, ordinal: int, name: str) -> str:
        return f"{Folder.SEGMENTS}/{self.staging.segment_id(ordinal)}/{name}"

    def _record(self, ordinal: int) -> str:
        return f"{Folder.STAGING}/{self.staging.record(ordinal).name}"
