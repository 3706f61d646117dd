"""Backups as files: a folder, or a tar of one (.tar, .tar.gz, .tar.zst), written in order and read in the same order.

A tar comes from anywhere. So of its format no more is read than blocks that say a name and a size: the readers of tar
files that there are take names and attributes of any length into memory, follow links and make devices. The names that
are expected come from the one who reads, in their order, and whatever else stands there is refused.
"""

import contextlib
import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, Protocol, Self

import zstandard
from blake3 import blake3

from index.durable import checksummed, sync
from index.errors import BackupError, CorruptIndexError
from index.records import FileEntry

__all__ = [
    "Archive",
    "BackupWriter",
    "FolderArchive",
    "FolderWriter",
    "Member",
    "TarArchive",
    "TarWriter",
    "is_other_archive",
    "is_tar",
]

TARS: Final = (".tar", ".tar.gz", ".tgz", ".tar.zst")
_GZIP: Final = (".gz", ".tgz")
_OTHERS: Final = (
    *TARS,
    *(".7z", ".br", ".bz2", ".cpio", ".gz", ".iso", ".lz", ".lz4", ".lzma", ".rar", ".sz", ".xz", ".z", ".zip", ".zst"),
    *(".tb2", ".tbz", ".tbz2", ".tlz", ".txz", ".tzst"),
)
COPIED_BYTES: Final = 1 << 20
_UNREADABLE: Final = (OSError, EOFError, zlib.error, zstandard.ZstdError)
"""What reading a file, whole or cut short, compressed or not, raises."""


def is_tar(path: Path) -> bool:
    """Whether a path is called like a tar."""
    return path.name.endswith(TARS)


def is_other_archive(path: Path) -> bool:
    """Whether a path is called like an archive that none is written of here: whoever names one wants no folder."""
    return not is_tar(path) and path.name.lower().endswith(_OTHERS)


class Readable(Protocol):
    """What blocks of bytes are read of; no bytes are the end."""

    def read(self, size: int, /) -> bytes:
        """As many bytes, or fewer."""


class BackupWriter(Protocol):
    """Takes the files of a backup. A context manager; what has been added is on disk when it has been left."""

    def add(self, name: PurePosixPath, size: int, file: Readable) -> None:
        """Writes so many bytes of a file under a name."""


class FolderWriter:
    """Writes files into a new folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for path in (*self._path.rglob("*"), self._path):
                sync(path)

    def add(self, name: PurePosixPath, size: int, file: Readable) -> None:
        """As BackupWriter."""
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as copy:
            for block in _blocks(file, size):
                copy.write(block)


class TarWriter:
    """Writes files into a new tar, compressed as its name says."""

    def __init__(self, path: Path, like: Path, time: float) -> None:
        """`like` is what the tar is to be called in the end; its files are of that time."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._like, self._time = path, like, int(time)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._file: BinaryIO = self._open.enter_context(self._path.open("xb"))
        if self._like.suffix in _GZIP:
            packed: Any = gzip.GzipFile("", "wb", 6, self._file, self._time)
            self._file = self._open.enter_context(packed)
        elif self._like.suffix == ".zst":
            packed = zstandard.ZstdCompressor().stream_writer(self._file, closefd=False)
            self._file = self._open.enter_context(packed)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._open.close()
        if kind is None:
            sync(self._path)

    def add(self, name: PurePosixPath, size: int, file: Readable) -> None:
        """As BackupWriter."""
        info = tarfile.TarInfo(str(name))
        info.size, info.mtime, info.mode = size, self._time, 0o644
        # Of this format a size of any length is in one block.
        self._file.write(info.tobuf(tarfile.GNU_FORMAT))
        for block in _blocks(file, size):
            self._file.write(block)
        self._file.write(bytes(-size % tarfile.BLOCKSIZE))


def _blocks(file: Readable, size: int) -> Iterator[bytes]:
    """So many bytes of a file, some at a time, or fewer where it ends."""
    while size and (block := file.read(min(size, COPIED_BYTES))):
        size -= len(block)
        yield block


class Archive(Protocol):
    """The files of a backup, to be asked for in the order in which BackupWriter got them."""

    def where(self, name: PurePosixPath) -> str:
        """What messages call a file."""

    def open(self, name: PurePosixPath) -> "contextlib.AbstractContextManager[Member]":
        """The file of that name. Raises BackupError or CorruptIndexError where it is not there, or cannot be read."""


class Member:
    """A file of a backup, `size` bytes, of which no more are read."""

    def __init__(self, file: Readable, size: int, where: str) -> None:
        self._file, self.size, self.where, self._left = file, size, where, size

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, some at a time; raises CorruptIndexError where there are fewer."""
        while self._left:
            try:
                block = self._file.read(min(self._left, COPIED_BYTES))
            except _UNREADABLE as error:
                raise CorruptIndexError(f"{self.where} cannot be read: {error}") from error
            if not block:
                raise CorruptIndexError(f"{self.where} ends {self._left} bytes early")
            self._left -= len(block)
            yield block

    def read(self, limit: int) -> bytes:
        """All of it; raises CorruptIndexError where that is more than `limit` bytes."""
        if self.size > limit:
            raise CorruptIndexError(f"{self.where} has {self.size} bytes, where no more than {limit} can be")
        return b"".join(self.blocks())

    def copy(self, entry: FileEntry, path: Path | None) -> None:
        """Writes it to a new file, or nowhere; raises CorruptIndexError unless it is what the entry says."""
        if self.size != entry.bytes:
            raise CorruptIndexError(f"{self.where} has {self.size} bytes, not {entry.bytes}")
        digest = blake3()
        with checksummed(path) if path is not None else contextlib.nullcontext() as copy:
            for block in self.blocks():
                digest.update(block)
                if copy is not None:
                    copy.write(block)
        if digest.hexdigest() != entry.blake3:
            raise CorruptIndexError(f"{self.where} does not match its checksum")
        if path is not None:
            sync(path)


class FolderArchive:
    """The files of a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def where(self, name: PurePosixPath) -> str:
        """As Archive."""
        return str(self._path / name)

    @contextlib.contextmanager
    def open(self, name: PurePosixPath) -> Iterator[Member]:
        """As Archive."""
        path = self._path / name
        if not path.is_file():
            raise CorruptIndexError(f"{path} is missing")
        with path.open("rb") as file:
            yield Member(file, path.stat().st_size, str(path))


class TarArchive:
    """The files of a tar that TarWriter has written. A context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._file: Readable = self._open.enter_context(self._path.open("rb"))
        if self._path.suffix in _GZIP:
            packed: Any = gzip.GzipFile(fileobj=self._file, mode="rb")
            self._file = self._open.enter_context(packed)
        elif self._path.suffix == ".zst":
            packed = zstandard.ZstdDecompressor().stream_reader(self._file, read_across_frames=True)
            self._file = self._open.enter_context(packed)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def where(self, name: PurePosixPath) -> str:
        """As Archive."""
        return f"{self._path}: {name}"

    @contextlib.contextmanager
    def open(self, name: PurePosixPath) -> Iterator[Member]:
        """As Archive; the file must have been read to its end when it is left."""
        info = self._header()
        if info is None:
            raise CorruptIndexError(f"{self.where(name)} is missing: the tar ends before it")
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.name != str(name) or info.size < 0:
            raise BackupError(
                f"{self._path} has {info.name[:200]!r} (type {info.type!r}) where a backup has {name}: only what "
                "gaussearch backup has written can be restored; a folder made of it can, too"
            )
        yield Member(self._file, info.size, self.where(name))
        self._read(-info.size % tarfile.BLOCKSIZE, self.where(name))

    def require_end(self) -> None:
        """Raises BackupError where there are more files."""
        info = self._header()
        if info is not None:
            raise BackupError(f"{self._path} has {info.name[:200]!r}, which is no file of its generation")

    def _header(self) -> tarfile.TarInfo | None:
        """The next block that says a name and a size; None at the end."""
        block = self._read(tarfile.BLOCKSIZE, str(self._path))
        if block.count(0) == len(block):
            return None
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise BackupError(f"{self._path} is not a tar, or damaged: {error}") from error

    def _read(self, size: int, where: str) -> bytes:
        """So many bytes, or fewer at the end of the file."""
        blocks = []
        try:
            while size and (block := self._file.read(size)):
                blocks.append(block)
                size -= len(block)
        except _UNREADABLE as error:
            raise CorruptIndexError(f"{where} cannot be read: {error}") from error
        return b"".join(blocks)
