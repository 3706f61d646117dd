"""The files of a generation fetched into a working copy: each once on a machine, and none that is not what it is to be.

What is there with the size that it should have is taken as it is: it was compared with its checksum when it came.
"""

import contextlib
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

from index.durable import checksum, measure
from index.errors import CorruptIndexError
from index.generation_files import segment_files, shared_files
from index.layout import Folder, Layout
from index.manifest import Manifest
from index.records import FileEntry
from index.remote.cache import Cache, part_of
from index.remote.objects import ObjectStorage
from index.segment_records import SegmentEntry
from index.segments import SEGMENT_RECORD_BYTES, parse_segment_manifest, read_segment_manifest

__all__ = ["Fetcher", "checksums_of", "in_parallel", "items_of", "segment_key", "write_whole"]

TOGETHER: Final = 4
"""Segments that are fetched at a time."""
FILES_TOGETHER: Final = 8
"""Files of them."""

COMPARED_BYTES: Final = 1 << 20
"""Files outside of segments, of so many bytes at most, are compared with their checksums each time: in no time."""


def segment_key(entry: SegmentEntry) -> str:
    """What the cache calls a segment."""
    return f"{Folder.SEGMENTS}/{entry.id}"


def items_of(manifest: Manifest, segments: Sequence[SegmentEntry] | None = None) -> dict[str, int]:
    """What a generation is made of, or these segments of it are beside what all share, as the cache takes it: names and
    bytes."""
    entries = manifest.segments if segments is None else list(segments)
    shared = shared_files(manifest.model_copy(update={"segments": entries}))
    return {segment_key(entry): entry.bytes for entry in entries} | {
        path.as_posix(): entry.bytes for path, entry in shared.items()
    }


def checksums_of(manifest: Manifest) -> dict[str, str]:
    """What a generation is made of, and what says that one is the same as another of that name."""
    return {segment_key(entry): entry.blake3 for entry in manifest.segments} | {
        path.as_posix(): entry.blake3 for path, entry in shared_files(manifest).items()
    }


class Fetcher:
    """Fetches into one working copy. Safe for several threads and processes."""

    def __init__(self, layout: Layout, storage: ObjectStorage, cache: Cache, key: str) -> None:
        self._layout, self._storage, self._cache, self._key = layout, storage, cache, key

    def fetch(self, manifest: Manifest, segments: Sequence[SegmentEntry] | None = None) -> None:
        """Has these files there, of which the caller has a lease.

        Raises CorruptIndexError for an object that is missing or not what it is to be, StorageError, and OSError where
        the disk fails.
        """
        entries = manifest.segments if segments is None else segments
        shared = shared_files(manifest.model_copy(update={"segments": list(entries)}))
        missing = {path.as_posix(): entry for path, entry in shared.items() if not self._is_there(path, entry)}
        incomplete = [entry for entry in entries if not self._is_complete(entry)]
        if not missing and not incomplete:
            return
        with (
            ThreadPoolExecutor(FILES_TOGETHER, thread_name_prefix="gaussearch-file") as files,
            ThreadPoolExecutor(TOGETHER, thread_name_prefix="gaussearch-fetch") as items,
        ):
            _all(
                [
                    *(items.submit(self._fetch_segment, entry, files) for entry in incomplete),
                    *(items.submit(self._fetch_shared, name, entry) for name, entry in missing.items()),
                ]
            )
        came = {segment_key(entry): entry.bytes for entry in incomplete}
        self._cache.arrived(self._key, came | {name: entry.bytes for name, entry in missing.items()})

    def files_of_segments(self, entries: Sequence[SegmentEntry]) -> dict[Path, FileEntry]:
        """All files of these segments, which need not be here; nothing is written."""
        with ThreadPoolExecutor(FILES_TOGETHER, thread_name_prefix="gaussearch-fetch") as threads:
            pending = [threads.submit(self._files_of_segment, entry) for entry in entries]
            _all(pending)
        return {path: its for each in pending for path, its in each.result().items()}

    def _files_of_segment(self, entry: SegmentEntry) -> dict[Path, FileEntry]:
        path = self._layout.segments / entry.id / "segment.json"
        with contextlib.suppress(CorruptIndexError, FileNotFoundError):
            return segment_files(entry, read_segment_manifest(path.parent, entry), path.stat().st_size)
        data = self._stored_record(entry)
        where = self._storage.where(f"{segment_key(entry)}/segment.json")
        return segment_files(entry, parse_segment_manifest(where, data, entry), len(data))

    def damaged(self, manifest: Manifest) -> list[str]:
        """What is there of a generation, is the cache's own, and does not match its checksums."""
        found = [
            segment_key(entry)
            for entry in manifest.segments
            if self._cache.is_marked(self._key, segment_key(entry)) and not self._is_intact(entry)
        ]
        for path, its in shared_files(manifest).items():
            file = self._layout.path / path
            is_ours = self._cache.is_marked(self._key, path.as_posix())
            if is_ours and (not file.is_file() or measure(file) != its):
                found.append(path.as_posix())
        return found

    def _is_intact(self, entry: SegmentEntry) -> bool:
        folder = self._layout.segments / entry.id
        try:
            files = read_segment_manifest(folder, entry).files
            return all(measure(folder / name) == its for name, its in files.items())
        except (CorruptIndexError, FileNotFoundError):
            return False

    def _fetch_segment(self, entry: SegmentEntry, files: ThreadPoolExecutor) -> None:
        folder = self._layout.segments / entry.id
        with self._cache.fetch_lock(self._key, segment_key(entry)):
            self._fetch_record(entry)
            listed = read_segment_manifest(folder, entry).files
            _all(
                [
                    files.submit(self._download, f"{segment_key(entry)}/{name}", folder / name, its)
                    for name, its in listed.items()
                    if not _has_size(folder / name, its)
                ]
            )

    def _fetch_record(self, entry: SegmentEntry) -> None:
        folder = self._layout.segments / entry.id
        with contextlib.suppress(CorruptIndexError):
            read_segment_manifest(folder, entry)
            return
        # What lies beside another record, or none, is another segment's of that name: of an index that was removed and
        # built anew, say.
        shutil.rmtree(folder, ignore_errors=True)
        write_whole(folder / "segment.json", self._stored_record(entry))

    def _stored_record(self, entry: SegmentEntry) -> bytes:
        """What segment.json says in storage."""
        name = f"{segment_key(entry)}/segment.json"
        stored = self._storage.get(name, SEGMENT_RECORD_BYTES)
        if stored is None:
            raise CorruptIndexError(f"{self._storage.where(name)} is missing")
        if checksum(stored.data) != entry.blake3:
            raise CorruptIndexError(
                f"{self._storage.where(name)} does not match its checksum in the index's manifest: restore a "
                "backup, or build the index again"
            )
        return stored.data

    def _fetch_shared(self, name: str, entry: FileEntry) -> None:
        with self._cache.fetch_lock(self._key, name):
            if not self._is_there(Path(name), entry):
                self._download(name, self._layout.path / name, entry)

    def _download(self, name: str, path: Path, entry: FileEntry) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = part_of(path)
        self._storage.download(name, part, entry)
        part.replace(path)

    def _is_there(self, path: Path, entry: FileEntry) -> bool:
        file = self._layout.path / path
        # In an index that was removed and built anew, rows that are deleted can be others of that name and size.
        return _has_size(file, entry) and (entry.bytes > COMPARED_BYTES or measure(file) == entry)

    def _is_complete(self, entry: SegmentEntry) -> bool:
        folder = self._layout.segments / entry.id
        try:
            files = read_segment_manifest(folder, entry).files
        except CorruptIndexError:
            return False
        return all(_has_size(folder / name, its) for name, its in files.items())


def in_parallel(calls: Iterable[Callable[[], object]]) -> None:
    """Makes all of these calls, some at a time; raises what the first that fails raises, when none runs any more."""
    with ThreadPoolExecutor(FILES_TOGETHER, thread_name_prefix="gaussearch-storage") as threads:
        _all([threads.submit(call) for call in calls])


def write_whole(path: Path, data: bytes) -> None:
    """Writes a small file that others may be writing as well, all the same: they see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _has_size(path: Path, entry: FileEntry) -> bool:
    try:
        return path.lstat().st_size == entry.bytes
    except (FileNotFoundError, NotADirectoryError):
        return False


def _all(pending: Sequence[Future[Any]]) -> None:
    """Waits for all; once one has failed, what has not begun is not. What has is waited for: it is under a lock that
    its caller holds, and would write beside whoever takes that next."""
    try:
        for each in pending:
            each.result()
    except BaseException:
        for each in pending:
            each.cancel()
        wait(pending)
        raise
