"""An index in object storage, as all that reads and writes an index directory sees it.

Its folder is a working copy in the cache of this machine (index.remote.cache): the directory of an index, of which
files are fetched when they are needed. Which generations there are is asked of storage each time; but for who holds the
lock, for whom the working copy says what there was when it was taken (index.remote.working_copy).
"""

import contextlib
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from index.current import TOKEN_BYTES, Named, named_by, token_for
from index.durable import checksum
from index.errors import (
    CorruptIndexError,
    GenerationNotFoundError,
    IndexDirectoryError,
    IndexNotFoundError,
    StorageError,
)
from index.generation_files import deleted_rows, open_segments, read_codebook, shared_files, structure_file
from index.generations import MANIFEST_BYTES, remove_unnamed
from index.layout import Folder, manifest_name, record_name
from index.locking import writer_lock
from index.manifest import Manifest
from index.records import FileEntry
from index.remote.cache import Cache, CacheOptions, Lease
from index.remote.fetching import Fetcher, in_parallel, items_of, segment_key, write_whole
from index.remote.location import Location
from index.remote.objects import ObjectStorage
from index.remote.remote_publication import publish, put_segment
from index.remote.working_copy import CURRENT, Published, Writing, mirror, pinned_in
from index.retention import Retention
from index.segment_records import SegmentEntry
from index.segments import SEGMENT_RECORD_BYTES, verify_segment
from index.storage import DEFAULT, IndexDirectory

__all__ = ["RemoteIndex"]

MANIFESTS_KEPT = 100
"""Manifests that are at hand, at most: those of the last generations."""


class RemoteIndex(IndexDirectory):
    """The index at a location in object storage. Making one touches nothing and asks nothing.

    Raises StorageError where the environment has settings of storage that cannot be, and InvalidOptionError where it
    has such of the cache. All methods raise StorageError, too.
    """

    is_local = False

    def __init__(self, location: Location, cache: CacheOptions | None = None) -> None:
        self.location, self._options = location, cache
        self.cache = Cache(cache)
        super().__init__(self.cache.index_folder(location.key))
        self.storage = ObjectStorage(location)
        self._fetcher = Fetcher(self, self.storage, self.cache, location.key)
        self._writing: Writing | None = None

    def __reduce__(self) -> tuple[type["RemoteIndex"], tuple[Location, CacheOptions | None]]:
        # On another machine it has another cache, unless it was told.
        return RemoteIndex, (self.location, self._options)

    @property
    def name(self) -> str:
        """The last part of the location, by which responses call the index."""
        return self.location.name

    def __str__(self) -> str:
        return str(self.location)

    # Which generations there are.

    def current_token(self) -> str:
        """As IndexDirectory."""
        token = self._writing.token if self._writing is not None else self.storage_token()
        if token is None:
            raise IndexNotFoundError(
                f"no index in {self}: {self}/{CURRENT} does not exist; build one with `gaussearch build`"
            )
        return token

    def storage_token(self) -> str | None:
        """What CURRENT says in storage, now; None where there is none."""
        stored = self.storage.get(CURRENT, TOKEN_BYTES)
        return None if stored is None else stored.data.decode("ascii", "replace")

    def _live(self) -> tuple[int | None, str]:
        try:
            token = self.current_token()
        except IndexDirectoryError:
            return None, ""
        named = named_by(token)
        return (named.generation if named else None), token

    def generations(self) -> list[int]:
        """As IndexDirectory."""
        if self._writing is not None:
            return super().generations()
        return Published.of(self.storage).kept(self.live_generation())

    def next_generation(self) -> int:
        """As IndexDirectory: above every manifest in storage, also of one who has not published it."""
        return max(Published.of(self.storage).manifests, default=0) + 1

    def may_go_on(self, number: int) -> bool:
        """As IndexDirectory: nor where another writer has taken that number, and with it the names of its segments."""
        if not super().may_go_on(number):
            return False
        return self.storage.writer_of(str(manifest_name(number))) in (None, self.writer)

    def free_number(self, number: int) -> int:
        """As IndexDirectory: another, where it has a manifest, of the same build before it was killed."""
        return self.next_generation() if number in Published.of(self.storage).manifests else number

    @property
    def writer(self) -> str:
        """By what storage knows who writes from this working copy, whose lock the caller holds."""
        path = self.path / "cached" / "writer"
        if not path.exists():
            write_whole(path, secrets.token_hex(8).encode())
        return path.read_text(encoding="ascii")

    def _record(self, number: int) -> str:
        if self._writing is not None:
            return super()._record(number)
        stored = self.storage.get(str(record_name(number)), TOKEN_BYTES)
        if stored is None:
            raise CorruptIndexError(f"{self}/{record_name(number)} is missing")
        return stored.data.decode("ascii", "replace")

    def _manifest_data(self, named: Named) -> bytes:
        kept = self._kept_manifest(named.generation, named.checksum)
        with contextlib.suppress(OSError):
            data = kept.read_bytes()
            if checksum(data) == named.checksum:
                return data
        name = str(manifest_name(named.generation))
        stored = self.storage.get(name, MANIFEST_BYTES)
        if stored is None:
            raise CorruptIndexError(f"{self}/{name} is missing")
        if checksum(stored.data) == named.checksum:
            self.keep_manifest(named.generation, named.checksum, stored.data)
        return stored.data

    def keep_manifest(self, generation: int, checksum: str, data: bytes) -> None:
        """Has a manifest at hand for whoever reads it the next time, and not one for each that there has been."""
        kept = self._kept_manifest(generation, checksum)
        self.cache.make()
        write_whole(kept, data)
        others = sorted(kept.parent.glob("*.json"))
        for path in others[:-MANIFESTS_KEPT]:
            path.unlink(missing_ok=True)

    def _kept_manifest(self, generation: int, checksum: str) -> Path:
        return self.path / "cached" / Folder.MANIFESTS / f"{generation:08d}-{checksum}.json"

    def pinned(self) -> set[int]:
        """As IndexDirectory."""
        return {int(name) for name in pinned_in(self.storage)}

    def pin(self, number: int) -> None:
        """As IndexDirectory, for writers on all machines: also for one that has the lock of its machine already."""
        super().pin(number)
        name = f"{Folder.PINS}/{number:08d}"
        self.storage.put(name, b"")
        # Whoever removes it removes its record, and then looks for this: one of the two sees the other.
        if number != self.live_generation() and not self.storage.exists(str(record_name(number))):
            self.unpin(number)
            raise GenerationNotFoundError(f"generation {number} of {self} has just been removed by another writer")

    def unpin(self, number: int) -> None:
        """As IndexDirectory."""
        self.storage.delete(f"{Folder.PINS}/{number:08d}")
        (self.pins / f"{number:08d}").unlink(missing_ok=True)

    # Files.

    def fetch(self, manifest: Manifest, segments: Sequence[SegmentEntry] | None = None) -> Lease:
        """As IndexDirectory: each is fetched once on this machine, and compared with its checksum; the cache keeps them
        as long as what this returns is kept, or the lock held.

        Raises CorruptIndexError for an object that is missing or not what it is to be, InsufficientCacheError, and
        OSError where the disk fails.
        """
        lease = self._leased(items_of(manifest, segments))
        self._fetcher.fetch(manifest, segments)
        return lease

    def _leased(self, items: Mapping[str, int], *, there: bool = False) -> Lease:
        lease = self.cache.lease(self.location.key, items, there=there)
        if self._writing is not None:
            self._writing.leases.append(lease)
        return lease

    def keep_here(self, items: Mapping[str, int]) -> None:
        """Leaves to the cache, when the lock is released, what has been made here and put in storage."""
        self._leased(items, there=True)

    def discard_here(self, keys: Collection[str]) -> None:
        """Removes from the cache what storage has no more, unless it is in use."""
        self.cache.discard(self.location.key, keys)

    def repair(self, manifest: Manifest) -> bool:
        """As IndexDirectory."""
        damaged = self._fetcher.damaged(manifest)
        for key in damaged:
            self.cache.forget(self.location.key, key)
        return bool(damaged)

    def files(self, manifest: Manifest) -> dict[Path, FileEntry]:
        """As IndexDirectory; they need not be here."""
        return self._fetcher.files_of_segments(manifest.segments) | shared_files(manifest)

    def verify_contents(self, manifest: Manifest) -> None:
        """As IndexDirectory, one segment after the other: the cache need not have room for all. What was fetched and
        has been damaged since is fetched again."""
        try:
            self._verify_contents(manifest)
        except CorruptIndexError:
            if not self.repair(manifest):
                raise
            self._verify_contents(manifest)

    def _verify_contents(self, manifest: Manifest) -> None:
        shared = self.fetch(manifest, [])
        for entry in manifest.segments:
            its = self.fetch(manifest, [entry])
            verify_segment(self.segments / entry.id, entry)
            deleted_rows(self, entry)
            open_segments(self, manifest.model_copy(update={"segments": [entry]}), verify=False)
            if self._writing is None:
                its.release()
        if manifest.codes is not None:
            read_codebook(self, manifest.codes)
            if manifest.structure is not None:
                structure_file(self, manifest.structure).verify()
        if self._writing is None:
            shared.release()

    def verify_stored(self, manifest: Manifest) -> None:
        """As IndexDirectory."""
        in_parallel(
            partial(self.storage.verify, path.as_posix(), entry) for path, entry in self.files(manifest).items()
        )

    def _verify_record(self, number: int) -> None:
        name = str(record_name(number))
        stored = self.storage.get(name, TOKEN_BYTES)
        said = stored.data.decode("ascii", "replace") if stored is not None else None
        # Who died just after it had published has left none, and the next that publishes puts it.
        is_live = said is None and number == self.live_generation()
        if not is_live and said != token_for(number, self.manifest_data(number)):
            raise CorruptIndexError(f"{self}/{name} does not name {manifest_name(number)} and its checksum")

    def hold(self, number: int) -> contextlib.AbstractContextManager[None]:
        """As IndexDirectory, for writers on this machine: to keep one from those on others, pin it."""
        self.cache.make()
        self.pins.mkdir(parents=True, exist_ok=True)
        return super().hold(number)

    # Writing.

    @contextlib.contextmanager
    def lock(self, wait: float = 0.0) -> Iterator[None]:
        """As IndexDirectory: it keeps writers on this machine apart. Those on others are kept apart by what they
        publish (index.remote.remote_publication)."""
        self.cache.make()
        with writer_lock(self, wait):
            self._writing = mirror(self, self.storage)
            try:
                yield
            finally:
                self._writing.release()
                self._writing = None

    def writing(self) -> Writing:
        """What there was when the lock was taken, which must be held."""
        if self._writing is None:
            raise StorageError(f"{self} is written to without its lock")
        return self._writing

    def publish(
        self, manifest: Manifest, *, retention: Retention = DEFAULT, published: Collection[str] = frozenset()
    ) -> None:
        """As IndexDirectory; index.remote.remote_publication says how, and what it raises."""
        del published  # which segments are there already, storage says
        publish(self, manifest, retention)

    def remove_unneeded(self, retention: Retention | None = None) -> None:
        """As IndexDirectory, of what has been made here and not published: the rest is the cache's."""
        del retention  # of generations in storage, publications alone remove some
        remove_unnamed(self, spare=lambda key: self.cache.is_marked(self.location.key, key))

    def storage_has(self, entry: SegmentEntry) -> bool:
        """Whether storage has a whole segment, this very one; it is nobody's that is dead, then."""
        name = f"{segment_key(entry)}/segment.json"
        stored = self.storage.get(name, SEGMENT_RECORD_BYTES)
        if stored is None or checksum(stored.data) != entry.blake3:
            return False
        # Younger now than what is removed for its age.
        self.storage.put(name, stored.data)
        return True

    def put_segment(self, folder: Path) -> None:
        """Puts a complete segment, which lies in a folder of its name, anywhere: a manifest may name it then, that is
        published by somebody else. Its name must be one that no other build gives, and who publishes must do so within
        index.remote.removal.DEAD_DAYS. Raises CorruptIndexError where it is not complete."""
        put_segment(self, folder)
