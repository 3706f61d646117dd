"""The directory of an index: which generations it has, and how a reader gets hold of one.

index.layout says what lies where, index.publication how a generation becomes the live one, and index.generation_files
how what it is made of is read. A reader reads CURRENT once and keeps to the manifest that it names. The generation
before the live one is kept, so that a reader that is just opening it can finish; how many more are is
index.retention's, and the others, and those that were never made live, are removed by the next publication.
"""

import contextlib
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from index.current import TOKEN_BYTES, Named, live, named_by, read_current, token_for
from index.durable import checksum, sync, write_atomically
from index.errors import CorruptIndexError, GaussearchError, GenerationNotFoundError
from index.generation_files import files_of, verify_files
from index.generations import MANIFEST_BYTES, parse_manifest, tidy
from index.holding import hold, pinned
from index.layout import MANIFESTS, RECORDS, Layout, manifest_name, record_name
from index.locking import writer_lock
from index.manifest import Manifest
from index.publication import publish
from index.records import FileEntry
from index.retention import Retention
from index.segment_records import SegmentEntry
from index.untrusted import IndexFile

if TYPE_CHECKING:
    from index.remote.cache import CacheOptions

__all__ = ["IndexDirectory"]

DEFAULT: Final = Retention()


class IndexDirectory(Layout):
    """An index on disk. Making one touches nothing."""

    is_local: bool = True
    """Whether its files lie in its folder, and not in object storage, of which they are fetched."""

    @classmethod
    def of(cls, index: "IndexDirectory | str | Path", cache: "CacheOptions | None" = None) -> "IndexDirectory":
        """The index itself, or that at this location: a path, a file:// URI, or one of object storage (s3://, gs://,
        az://), which `cache` or the environment says where to keep what is fetched of.

        Raises InvalidOptionError for another URI, and StorageError for settings of storage that cannot be.
        """
        if isinstance(index, IndexDirectory):
            return index
        # It is made of this class.
        from index.remote.location import parse_location

        location = parse_location(index)
        if isinstance(location, Path):
            return cls(location)
        from index.remote.remote_index import RemoteIndex

        return RemoteIndex(location, cache)

    @property
    def name(self) -> str:
        """The folder's own name, by which responses call the index."""
        return self.path.resolve().name

    def __str__(self) -> str:
        """Where it lies, as messages say it."""
        return str(self.path)

    def fetch(self, manifest: Manifest, segments: Sequence[SegmentEntry] | None = None) -> object:
        """Has every file of a generation lie in the folder, or those of `segments` alone and what lies outside of
        segments; keep what this returns as long as they are used. Here they always do."""
        del manifest, segments
        return None

    def repair(self, manifest: Manifest) -> bool:
        """Removes what can be fetched again of a generation and is damaged; whether there was anything."""
        del manifest
        return False

    def verify_stored(self, manifest: Manifest) -> None:
        """Reads all of a generation where it is kept for good, and compares it with its checksums: where `verify` looks
        at what has been fetched of it. Raises CorruptIndexError."""

    def hold(self, number: int) -> AbstractContextManager[None]:
        """Keeps a generation while it is read: as index.holding.hold."""
        return hold(self.pins, number)

    def may_go_on(self, number: int) -> bool:
        """Whether an unfinished build of that number can still be published. One that was killed just after it had
        published has nothing left to do, nor has one since which the index has been written to: that has removed its
        segments. Hold the writer lock."""
        return number > (self.live_generation() or 0)

    def free_number(self, number: int) -> int:
        """The number that a generation gets that was to have this one."""
        return number

    def current_token(self) -> str:
        """The content of CURRENT, which changes exactly when a generation is published.

        Raises IndexNotFoundError where nothing has been published, CorruptIndexError where it is no such file.
        """
        return read_current(self)

    def live_generation(self) -> int | None:
        """The number of the generation that CURRENT names; None where it names none."""
        return self._live()[0]

    def _live(self) -> tuple[int | None, str]:
        """The number of the generation that CURRENT names, if it does, and what it says, read once."""
        return live(self)

    def manifest(self) -> Manifest:
        """The live generation.

        Raises IndexNotFoundError, CorruptIndexError or UnsupportedFormatError, naming the file.
        """
        return self._manifest(self.current_file.name, self.current_token())

    def generation(self, number: int) -> Manifest:
        """A generation that has been live, or is; raises GenerationNotFoundError where it is not kept, or the errors of
        `manifest`."""
        token = self.token(number)
        if not token.startswith(f"{number:08d}.json "):
            raise CorruptIndexError(f"{self}/{record_name(number)} names another generation's manifest")
        return self._manifest(str(record_name(number)), token)

    def token(self, number: int) -> str:
        """What CURRENT said, or says, while that generation was live.

        Raises GenerationNotFoundError, and IndexNotFoundError where nothing has been published.
        """
        kept = self.generations()
        if not kept:
            self.current_token()
        if number not in kept:
            numbers = ", ".join(map(str, kept)) or "none"
            again = self._restoring(number, kept)
            instead = "" if again is None else f", of which {again} restores it"
            raise GenerationNotFoundError(f"{self} keeps no generation {number}; it keeps {numbers}{instead}")
        # In one look: another may become the live one at any moment.
        its, token = self._live()
        return token if number == its else self._record(number)

    def _record(self, number: int) -> str:
        """What CURRENT said while that generation was live."""
        return IndexFile(self.record_file(number), folders=1).contents(TOKEN_BYTES).decode("ascii", "replace")

    def _restoring(self, number: int, kept: Sequence[int]) -> int | None:
        """The newest generation that is a copy of that one, where one is kept."""
        for other in reversed(kept):
            with contextlib.suppress(GaussearchError, OSError):
                if self.generation(other).restores == number:
                    return other
        return None

    def generations(self) -> list[int]:
        """The numbers of all generations that are kept, ascending: those that have been live, and the live one."""
        # One that was never made live is none, though its files may be there. Where CURRENT is damaged, any may help.
        its = self.live_generation()
        numbers = {int(path.stem) for path in self.manifests.glob(RECORDS) if path.with_suffix(".json").exists()}
        return sorted(number for number in numbers | {its} if number is not None and number <= (its or number))

    def next_generation(self) -> int:
        """The number that the next publication gets. A manifest that cannot be read does not stop it."""
        published = [int(path.stem) for path in self.manifests.glob(MANIFESTS)]
        return max(published, default=0) + 1

    def _manifest(self, file: str, token: str) -> Manifest:
        """What is named by a token out of this file."""
        named = named_by(token)
        if named is None:
            raise CorruptIndexError(f"{self}/{file} does not name a manifest and its checksum")
        where, data = f"{self}/{manifest_name(named.generation)}", self._manifest_data(named)
        if checksum(data) != named.checksum:
            raise CorruptIndexError(f"{where} does not match the checksum in {self}/{file}")
        manifest = parse_manifest(where, data)
        if manifest.generation != named.generation:
            raise CorruptIndexError(f"{where} is of generation {manifest.generation}")
        return manifest

    def _manifest_data(self, named: Named) -> bytes:
        """What is in the file of a manifest."""
        return IndexFile(self.manifest_file(named.generation), folders=1).contents(MANIFEST_BYTES)

    def manifest_data(self, number: int) -> bytes:
        """The bytes of the manifest of a generation that is kept; raises as `token`."""
        named = named_by(self.token(number))
        if named is None:
            raise CorruptIndexError(f"{self}/{record_name(number)} does not name a manifest and its checksum")
        return self._manifest_data(named)

    def pinned(self) -> set[int]:
        """The numbers of the generations that are to be kept until they are unpinned."""
        return pinned(self.pins)

    def pin(self, number: int) -> None:
        """Keeps a generation, of which GenerationNotFoundError says that it is not there. Hold the writer lock."""
        self.generation(number)
        self.pins.mkdir(exist_ok=True)
        sync(self.path)
        write_atomically(self.pins / f"{number:08d}", b"")

    def unpin(self, number: int) -> None:
        """Leaves a generation to retention again. Hold the writer lock."""
        if number in self.pinned():
            (self.pins / f"{number:08d}").unlink()
            sync(self.pins)

    def files(self, manifest: Manifest) -> dict[Path, FileEntry]:
        """Every file that a generation is made of, but its manifest, relative to the directory.

        Raises CorruptIndexError where a segment.json is missing or differs.
        """
        return files_of(self, manifest)

    def verify(self, number: int | None = None) -> Manifest:
        """Checks every checksum, size and cross-reference of a generation, the live one if none is given, and returns
        its manifest. Nobody removes it meanwhile.

        Raises CorruptIndexError naming the first file that differs, and the errors of `generation`.
        """
        while True:
            its = self.manifest().generation if number is None else number
            self.token(its)
            with self.hold(its):
                try:
                    manifest = self.generation(its)
                    self.verify_contents(manifest)
                    self._verify_record(its)
                except (CorruptIndexError, GenerationNotFoundError, FileNotFoundError):
                    # The newest may have been removed before it was held. One that was named has then gone.
                    if number is None and its not in self.generations():
                        continue
                    self.token(its)
                    raise
                return manifest

    def verify_contents(self, manifest: Manifest) -> None:
        """`verify` for a manifest that need not be published: checks all that it refers to."""
        verify_files(self, manifest)

    def _verify_record(self, number: int) -> None:
        """Raises CorruptIndexError where nobody could go back to a generation for what its record says."""
        record, path = self.record_file(number), self.manifest_file(number)
        token = token_for(number, IndexFile(path, folders=1).contents(MANIFEST_BYTES))
        if IndexFile(record, folders=1).contents(TOKEN_BYTES) != token.encode():
            raise CorruptIndexError(f"{record} does not name {path.name} and its checksum")

    def lock(self, wait: float = 0.0) -> AbstractContextManager[None]:
        """Makes the folder where it is missing and holds its writer lock, which a dead process does not keep.

        Raises IndexLockedError where another process, or thread, holds it for longer than `wait` seconds, and
        CorruptIndexError where one of its folders is none.
        """
        return writer_lock(self, wait)

    def publish(
        self, manifest: Manifest, *, retention: Retention = DEFAULT, published: Collection[str] = frozenset()
    ) -> None:
        """Makes a manifest, whose segments are in place, the live generation, and removes what none needs any more:
        index.publication says how, and what it raises. Hold the writer lock."""
        publish(self, manifest, retention=retention, published=published)

    def remove_unneeded(self, retention: Retention | None = None) -> None:
        """Removes all generations but those that are kept, which without `retention` are all that have been live, and
        what none of these names. Hold the writer lock."""
        tidy(self, retention)
