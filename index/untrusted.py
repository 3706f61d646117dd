"""Files of an index directory, opened, read, hashed and mapped without believing anything that they say.

A directory may have been copied from anywhere. So nothing in it is followed to a file elsewhere, waited for, or read
into memory before its size is known to be what the index's manifest says; and what is hashed is what is read, so that
no other process can put something else there in between. That does not hold for what is memory-mapped: whoever may
write to those files while they are searched may change results, and ends the process by cutting them short.
"""

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from pydantic_core import from_json

from index.durable import MEASURED_BYTES, measure
from index.errors import CorruptIndexError
from index.records import FileEntry

__all__ = ["IndexFile", "OpenedFile", "require_few_fields", "require_folder"]

MOST_FIELDS = 100
OF_THE_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors that say nothing of the file that was to be opened or mapped."""


class OpenedFile:
    """A file that is read once, from its beginning, and hashed on the way where there is a checksum to compare."""

    def __init__(self, path: Path, descriptor: int, expected: FileEntry | None) -> None:
        self.path = path
        self.size = os.fstat(descriptor).st_size
        self._descriptor, self._expected = descriptor, expected
        self._digest, self._left = blake3(), self.size

    def fill(self, buffer: bytearray | memoryview) -> None:
        """Fills a contiguous buffer; raises CorruptIndexError where there are fewer bytes."""
        view = memoryview(buffer).cast("B")
        if len(view) > self._left:
            raise CorruptIndexError(f"{self.path} ends {len(view) - self._left} bytes too early")
        self._left -= len(view)
        while len(view):
            # A piece at a time, which is still in the core's cache when it is hashed.
            count = os.readv(self._descriptor, [view[:MEASURED_BYTES]])
            if count == 0:
                raise CorruptIndexError(f"{self.path} was cut short while it was read")
            if self._expected is not None:
                self._digest.update(view[:count])
            view = view[count:]

    def take(self, size: int) -> bytes:
        """So many bytes, or all that are left."""
        data = bytearray(min(size, self._left))
        self.fill(data)
        return bytes(data)

    def finish(self) -> None:
        """Raises CorruptIndexError where something is left, or what was read does not match its checksum."""
        if self._left:
            raise CorruptIndexError(f"{self.path} has {self._left} bytes more than it should")
        if self._expected is not None and self._digest.hexdigest() != self._expected.blake3:
            raise CorruptIndexError(f"{self.path} does not match its checksum")

    def verify(self) -> None:
        """Reads what is left and compares its checksum."""
        block = memoryview(bytearray(min(MEASURED_BYTES, self.size)))
        while self._left:
            self.fill(block[: self._left])
        self.finish()

    def map(self) -> memoryview:
        """The whole file, memory-mapped, read or not."""
        # A file of no bytes cannot be mapped.
        return memoryview(mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)) if self.size else memoryview(b"")


@dataclass(frozen=True, slots=True)
class IndexFile:
    """A file of an index directory, `folders` below it, and what the manifest that names it says it is.

    Without `expected`, which is for files that this process has just written or checked, it may be anything.
    """

    path: Path
    expected: FileEntry | None = None
    folders: int = 0

    @classmethod
    def of(cls, path: Path) -> Self:
        """A file as it is now."""
        return cls(path, measure(path))

    @contextlib.contextmanager
    def open(self) -> Iterator[OpenedFile]:
        """Opens the file for the block; raises CorruptIndexError where it is missing, no regular file, of another size
        or cannot be read, and OSError where this process may open no more files, or has no more memory."""
        try:
            descriptor = _open(self.path, self.folders)
        except FileNotFoundError as error:
            raise CorruptIndexError(f"{self.path} is missing") from error
        except OSError as error:
            raise self._unusable("opened", error) from error
        try:
            opened = OpenedFile(self.path, descriptor, self.expected)
            if self.expected is not None and opened.size != self.expected.bytes:
                raise CorruptIndexError(f"{self.path} has {opened.size} bytes, not {self.expected.bytes}")
            yield opened
        except OSError as error:
            raise self._unusable("read", error) from error
        finally:
            os.close(descriptor)

    def _unusable(self, what: str, error: OSError) -> CorruptIndexError | OSError:
        if error.errno in OF_THE_PROCESS:
            return OSError(error.errno, error.strerror, str(self.path))
        return CorruptIndexError(f"{self.path} cannot be {what}: {error.strerror}")

    def contents(self, limit: int) -> bytes:
        """All of the file; raises CorruptIndexError also where it has more than `limit` bytes."""
        with self.open() as opened:
            if opened.size > limit:
                raise CorruptIndexError(f"{self.path} has {opened.size} bytes, and such a file at most {limit}")
            data = opened.take(opened.size)
            opened.finish()
        return data

    def array(self) -> npt.NDArray[np.uint8]:
        """All of the file, in memory."""
        with self.open() as opened:
            data = np.empty(opened.size, dtype=np.uint8)
            if opened.size:
                opened.fill(data.data)
            opened.finish()
        return data

    def verify(self) -> None:
        """Reads all of the file and compares its checksum."""
        with self.open() as opened:
            opened.verify()


def require_few_fields(path: Path | str, data: bytes) -> None:
    """Raises CorruptIndexError where an object of a JSON file has more fields than anything in an index: for each that
    is unknown pydantic makes an error, a million of which take seconds and gigabytes."""
    try:
        left = [from_json(data)]
    except ValueError:
        # It is said better by whoever reads what it should be.
        return
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if len(value) > MOST_FIELDS:
                raise CorruptIndexError(f"{path} has an object of {len(value)} fields, and none has as many")
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(each for each in value if isinstance(each, dict | list))


def require_folder(path: Path) -> None:
    """Raises CorruptIndexError where something else than a folder is in the place of a folder of the index."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        raise CorruptIndexError(f"{path} is {_kind(mode)}, not a folder of the index")


def _open(path: Path, folders: int) -> int:
    """A descriptor of a regular file that lies, through no link, in the folder so many above its own."""
    parent = os.open(path.parents[folders], os.O_RDONLY | os.O_DIRECTORY)
    try:
        for place in range(folders - 1, -1, -1):
            inner = _inner_folder(path.parents[place], parent)
            os.close(parent)
            parent = inner
        # Asked before it is opened, because opening a device may do anything.
        _require_regular(path, os.stat(path.name, dir_fd=parent, follow_symlinks=False).st_mode)
        # Not blocking, for a pipe that has taken its place since then would be waited for.
        descriptor = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
    finally:
        os.close(parent)
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)
    except CorruptIndexError:
        os.close(descriptor)
        raise
    return descriptor


def _inner_folder(path: Path, parent: int) -> int:
    try:
        return os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise CorruptIndexError(f"{path} is a link or a file, not a folder of the index") from error
        raise


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise CorruptIndexError(f"{path} is {_kind(mode)}, not a file of the index")


def _kind(mode: int) -> str:
    kinds = {stat.S_ISLNK: "a symbolic link", stat.S_ISDIR: "a folder", stat.S_ISREG: "a file", stat.S_ISFIFO: "a pipe"}
    return next((name for is_it, name in kinds.items() if is_it(mode)), "a device or a socket")
