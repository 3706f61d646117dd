"""Objects: read, listed, put on a condition, and streamed into files, whatever the network does meanwhile.

obstore repeats what fails for the moment. What it leaves is done here: a body that ends too early goes on where it
stopped, and a conditional put whose answer was lost is looked after. Everything that is not repeated, or has been often
enough, becomes an error of index.errors that names the object.
"""

import dataclasses
import datetime
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3

from index.durable import naming
from index.errors import CorruptIndexError, StorageError, StorageUnreachableError
from index.records import FileEntry
from index.remote.client import client_options, retry_config, upload_options
from index.remote.location import Location
from index.remote.refusals import failure, said_of, status_of

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import ClientConfig, ObjectStore

__all__ = ["Listed", "ObjectStorage", "Stored", "Version"]

PART_BYTES: Final = 8 << 20
"""Of a large file, sent at a time: one that is cut off is sent again."""
MOST_PARTS: Final = 9_000
"""Storage takes ten thousand."""
CHUNK_BYTES: Final = 1 << 20
"""Of a body, taken at a time."""
RESUMED: Final = 5
"""How often a body that ends too early is gone on with, each time that not even PROGRESS came."""
PROGRESS: Final = 8 << 20
MARK: Final = "gaussearchwriter"
"""The attribute by which a writer knows an object that it has put. Azure takes letters, digits and _ in such a name,
and some proxies drop headers with _."""
PARTS_TOGETHER: Final = 2
"""Of a file, sent at a time; each is in memory."""


@dataclass(frozen=True, slots=True)
class Version:
    """What an object is replaced on the condition of: that it is still this one."""

    e_tag: str | None
    version: str | None


@dataclass(frozen=True, slots=True)
class Stored:
    """A small object, and which it was."""

    data: bytes
    version: Version


@dataclass(frozen=True, slots=True)
class Listed:
    """What a listing says of an object; `name` is below the location."""

    name: str
    bytes: int
    modified: datetime.datetime
    e_tag: str | None


class ObjectStorage:
    """The objects below a location. Making one connects to nothing, and raises StorageError where the environment has
    settings that cannot be. Safe to call from several threads; not after a fork."""

    def __init__(self, location: Location) -> None:
        # A twentieth of a second, and native threads, which only an index in storage needs.
        import obstore
        import obstore.exceptions
        import obstore.store

        self.location = location
        self._obstore, self._errors = obstore, obstore.exceptions
        self._missing = FileNotFoundError, obstore.exceptions.NotFoundError
        try:
            self._store, self._uploads = (
                self._opened_store(options) for options in (client_options(), upload_options())
            )
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise StorageError(f"{location} cannot be used: {said_of(error)}") from error

    def _opened_store(self, options: "ClientConfig") -> "ObjectStore":
        store: ObjectStore = self._obstore.store.from_url(
            str(self.location), client_options=options, retry_config=retry_config()
        )
        return store

    def where(self, name: str) -> str:
        """An object, as messages call it."""
        return f"{self.location}/{name}"

    def get(self, name: str, limit: int) -> Stored | None:
        """A small object; None where there is none. Raises CorruptIndexError where it has more bytes than `limit`."""
        cause: Exception | None = None
        for _ in range(RESUMED):
            found = self._opened(name, {})
            if found is None:
                return None
            if found.meta["size"] > limit:
                raise CorruptIndexError(
                    f"{self.where(name)} has {found.meta['size']} bytes, and such an object at most {limit}"
                )
            try:
                data = bytes(found.bytes())
            except self._errors.BaseError as error:
                cause = error
                continue
            if len(data) == found.meta["size"]:
                return Stored(data, Version(found.meta["e_tag"], found.meta["version"]))
        raise StorageUnreachableError(
            f"{self.where(name)} has come cut short {RESUMED} times: see to the network"
        ) from cause

    def _opened(self, name: str, options: Any) -> "GetResult | None":
        """An object whose bytes are to come; None where there is none."""
        try:
            return self._obstore.get(self._store, name, options=options)
        except self._missing as error:
            self._require_bucket(error)
            return None
        except self._errors.BaseError as error:
            raise self._failed(name, "read", error) from error

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        try:
            self._obstore.head(self._store, name)
        except self._missing:
            return False
        except self._errors.BaseError as error:
            raise self._failed(name, "read", error) from error
        return True

    def list(self, prefix: str) -> list[Listed]:
        """All objects below a folder, in no order."""
        try:
            return [
                Listed(each["path"], each["size"], each["last_modified"], each["e_tag"])
                for batch in self._obstore.list(self._store, prefix)
                for each in batch
            ]
        except self._errors.BaseError as error:
            raise self._failed(prefix, "listed", error) from error

    def put(self, name: str, data: bytes | Path) -> None:
        """Puts an object in place of any that is there: some bytes, or a file of any size."""
        options: dict[str, Any] = {}
        if isinstance(data, Path):
            # Of one size at a time, so that a file that grows meanwhile is no other number of parts.
            size = data.stat().st_size
            options = {
                "use_multipart": size > PART_BYTES,
                "chunk_size": max(PART_BYTES, -(-size // MOST_PARTS)),
                "max_concurrency": PARTS_TOGETHER,
            }
        try:
            self._obstore.put(self._uploads, name, data, **options)
        except (FileNotFoundError, self._errors.BaseError) as error:
            raise self._failed(name, "written", error) from error

    def create(self, name: str, data: bytes, writer: str) -> Version | None:
        """Puts an object of this writer's where there is none; None where there was one. Of several that try, one
        succeeds."""
        # An answer may be lost, and the object be there: by this it is known whose it is, also of writers that put the
        # same bytes.
        mark = f"{writer}-{secrets.token_hex(8)}"
        there = (self._errors.AlreadyExistsError,)
        put = self._put_if(name, data, there, mode="create", attributes={MARK: mark})
        return put or self._marked(name, mark)

    def replace(self, name: str, data: bytes, version: Version) -> Version | None:
        """Puts an object in place of that which is this one; None where it is another meanwhile. `data` must be what
        nobody else puts there: an answer that was lost is looked after by it."""
        mode = {key: value for key, value in dataclasses.asdict(version).items() if value is not None}
        put = self._put_if(name, data, (*self._missing, self._errors.PreconditionError), mode=mode)
        if put is not None:
            return put
        there = self.get(name, max(len(data), 1 << 10))
        return there.version if there is not None and there.data == data else None

    def _put_if(self, name: str, data: bytes, no: tuple[type[Exception], ...], **condition: Any) -> Version | None:
        """Puts an object on a condition, and once more where the way there was cut; which one it is, or None where
        storage says `no` in one of these errors: also to a repetition of what it has done."""
        tries = 0
        while True:
            tries += 1
            try:
                put = self._obstore.put(self._store, name, data, use_multipart=False, **condition)
            except no:
                return None
            except (FileNotFoundError, self._errors.BaseError) as error:
                if tries < RESUMED and self._is_cut(error):
                    continue
                raise self._failed(name, "written", error) from error
            return Version(put["e_tag"], put["version"])

    def delete(self, *names: str) -> None:
        """Removes objects; those that are not there are none."""
        for name in names:
            try:
                self._obstore.delete(self._store, name)
            except self._missing:
                continue
            except self._errors.BaseError as error:
                raise self._failed(name, "removed", error) from error

    def download(self, name: str, path: Path, expected: FileEntry) -> None:
        """Streams an object into a new file, which is on disk then, and compares it with what it is to be.

        Raises CorruptIndexError where there is none, or another; what has been written then is removed.
        """
        path.unlink(missing_ok=True)
        digest = blake3()
        try:
            with naming(path), path.open("xb") as file:
                for chunk in self.stream(name, expected):
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            self._require_checksum(name, digest.hexdigest(), expected)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def verify(self, name: str, expected: FileEntry) -> None:
        """Reads an object and compares it with what it is to be; raises CorruptIndexError."""
        digest = blake3()
        for chunk in self.stream(name, expected):
            digest.update(chunk)
        self._require_checksum(name, digest.hexdigest(), expected)

    def stream(self, name: str, expected: FileEntry) -> Iterator[memoryview]:
        """The bytes of an object, as many as it is to have; what is cut off is gone on with."""
        start, attempts, e_tag = 0, RESUMED, None
        cause: Exception | None = None
        while attempts:
            before = start
            # Another object that has taken its place meanwhile must not follow the beginning of this one.
            found = self._opened(name, {"range": {"offset": start}, "if_match": e_tag} if start else {})
            if found is None:
                raise CorruptIndexError(f"{self.where(name)} is missing")
            if found.meta["size"] != expected.bytes:
                raise CorruptIndexError(f"{self.where(name)} has {found.meta['size']} bytes, not {expected.bytes}")
            e_tag = found.meta["e_tag"]
            try:
                for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
                    view = memoryview(chunk)
                    start += view.nbytes
                    yield view
            except self._errors.BaseError as error:
                cause = error
            if start == expected.bytes:
                return
            attempts = RESUMED if start - before >= PROGRESS else attempts - 1
        raise StorageUnreachableError(
            f"{self.where(name)} has ended after {start} of {expected.bytes} bytes, {RESUMED} times: see to the network"
        ) from cause

    def _require_checksum(self, name: str, found: str, expected: FileEntry) -> None:
        if found != expected.blake3:
            raise CorruptIndexError(
                f"{self.where(name)} does not match its checksum: the object is damaged; restore a backup, or "
                "build the index again"
            )

    def writer_of(self, name: str) -> str | None:
        """Who has created an object; None where nobody has."""
        found = self._opened(name, {"head": True})
        return None if found is None else str(found.attributes.get(MARK, "")).partition("-")[0]

    def _marked(self, name: str, mark: str) -> Version | None:
        """Which object is there, if it is the one that was put with this mark."""
        found = self._opened(name, {"head": True})
        if found is None or found.attributes.get(MARK) != mark:
            return None
        return Version(found.meta["e_tag"], found.meta["version"])

    def _require_bucket(self, error: Exception) -> None:
        """Raises StorageError where it is the bucket that there is not."""
        said = said_of(error)
        if "Bucket" in said or "Container" in said:
            raise StorageError(
                f"{self.location} cannot be used: storage says {said}: name a bucket that there is, or make it"
            ) from error

    def _is_cut(self, error: Exception) -> bool:
        """Whether it was the way here, and not the storage that said no."""
        errors = self._errors
        said = *self._missing, errors.PermissionDeniedError, errors.UnauthenticatedError, errors.PreconditionError
        return not isinstance(error, said) and status_of(error) is None

    def _failed(self, name: str, what: str, error: Exception) -> StorageError:
        """The error that says so; raises it where it is the bucket that there is not."""
        if isinstance(error, self._missing):
            self._require_bucket(error)
        return failure(self.where(name), what, error)
