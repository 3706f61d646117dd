"""Files that are either whole and on disk or not there: fsync, atomic replacement and checksums made while writing."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

from blake3 import blake3

from index.records import FileEntry

__all__ = [
    "ChecksummedFile",
    "SyncError",
    "Syncer",
    "checksum",
    "checksummed",
    "measure",
    "naming",
    "sync",
    "write_atomically",
    "write_where_told",
]


MEASURED_BYTES = 1 << 18
"""Read and hashed at a time: as much as stays in a core's cache."""

SYNCING_THREADS = 2
"""A disk is busy with one file while another is looked up and handed over to it."""


def checksum(data: bytes) -> str:
    """BLAKE3 in hexadecimal: as safe as SHA-256 and five times as fast, even where the processor has instructions for
    SHA-256. Builds, verification and the start of a service wait for it; `b3sum` computes it, too."""
    return blake3(data).hexdigest()


class SyncError(OSError):
    """A file did not reach the disk. The system says so once, and from then on reads and syncs it as if it were whole:
    it must be written anew."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Has an error inside say which file it is about: of what is done to an open file the system says only what."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


class ChecksummedFile:
    """A binary file opened for writing that hashes what passes through; `entry` holds after it is closed."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._hash = blake3()
        self._bytes = 0

    def reserve(self, size: int) -> None:
        """Takes room on the disk for `size` bytes in all: OSError where there is less, and faster writing where not."""
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            with naming(self._path):
                os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            # Not every file system knows how to; the C library makes up for that, or says so in one of these ways.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise

    def write(self, data: "bytes | bytearray | memoryview") -> int:
        """Writes all of `data` and returns its length in bytes, as file objects do."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        with naming(self._path):
            self._file.write(view)
        self._bytes += view.nbytes
        return view.nbytes

    @property
    def closed(self) -> bool:
        """Whether the file underneath is closed; pyarrow asks."""
        return self._file.closed

    def flush(self) -> None:
        """Passes buffered bytes to the operating system; pyarrow calls it."""
        with naming(self._path):
            self._file.flush()

    @property
    def entry(self) -> FileEntry:
        """Size and checksum of what has been written."""
        return FileEntry(bytes=self._bytes, blake3=self._hash.hexdigest())


@contextlib.contextmanager
def checksummed(path: Path) -> Iterator[ChecksummedFile]:
    """Opens a new file for writing, in place of what was there, and not where a link leads. What is written is not on
    disk until it has been synced."""
    with naming(path), _anew(path) as file:
        yield ChecksummedFile(file, path)


class Syncer:
    """Has files on disk without anybody waiting for each: the disk begins with one while the next is written.

    Whoever needs them there syncs them once more, which then takes no time; but what failed is told once only, here. A
    context manager; leaving it waits for what is under way and drops the rest.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(SYNCING_THREADS, thread_name_prefix="gaussearch-sync")
        self._pending: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def sync(self, path: Path) -> None:
        """Begins to have a file on disk."""
        self._pending.append(self._threads.submit(sync, path))

    def finish(self) -> None:
        """Waits until all that is on disk; raises SyncError where that failed."""
        for pending in self._pending:
            pending.result()

    @property
    def failed(self) -> bool:
        """Whether something did not reach the disk, so far."""
        done = [pending for pending in self._pending if pending.done() and not pending.cancelled()]
        return any(pending.exception() is not None for pending in done)


def measure(path: Path, start: int = 0, size: int | None = None) -> FileEntry:
    """Size and checksum of a file as it is on disk now, or of what it has from `start` on and up to `size` bytes."""
    digest, left = blake3(), sys.maxsize if size is None else size
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        block = memoryview(bytearray(min(left, MEASURED_BYTES)))
        while count := file.readinto(block[:left]):
            digest.update(block[:count])
            left -= count
    return FileEntry(bytes=(sys.maxsize if size is None else size) - left, blake3=digest.hexdigest())


def write_atomically(path: Path, data: bytes, *, synced: bool = True) -> None:
    """Replaces `path` by `data` in one step: a reader sees the old file or the new one, after a power cut too.

    Not `synced`, a power cut can also leave a file of any content, which is for whoever reads it to notice. One process
    at a time may write to `path`; what a killed one left beside it is removed.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with naming(beside), _anew(beside) as file:
            file.write(data)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if synced:
        sync(path.parent)


def write_where_told(path: Path, data: bytes) -> None:
    """As `write_atomically`, for a file that whoever runs a command has named: a device, a pipe or what a link leads to
    is written to, and not replaced."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(data)
    else:
        write_atomically(path, data)


def _anew(path: Path) -> BinaryIO:
    """A file of that name that was not there, for writing: what is there may be a link to a file elsewhere, or a pipe
    that nobody reads."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def sync(path: Path) -> None:
    """Has a file's content on disk, or the names in a folder: without the latter, a file can be gone after a power cut.

    Raises SyncError where that failed, now or since it was written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise SyncError(error.errno, error.strerror or "it could not be synced", str(path)) from error
    finally:
        os.close(descriptor)
