"""Backups: a generation of an index copied into a folder or a tar, of which index.restoring makes a live one again.

A backup is itself the directory of an index, of one generation: CURRENT, its manifest, and the files that this names.
So a folder can be served as it is. Every byte is compared with its checksum while it is copied.
"""

import contextlib
import io
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from blake3 import blake3

from index.archives import FolderWriter, TarWriter, is_other_archive, is_tar
from index.durable import sync
from index.errors import BackupError, CorruptIndexError, GenerationNotFoundError
from index.layout import manifest_name, record_name
from index.manifest import Manifest
from index.progress import Progress, SilentProgress
from index.records import FileEntry
from index.storage import IndexDirectory

__all__ = ["CURRENT", "back_up"]

CURRENT = PurePosixPath("CURRENT")
LAST_FILE: Final = "vectors.faiss"
"""Of a segment, in the order of their names."""


def back_up(
    directory: IndexDirectory | str | Path,
    target: str | Path,
    generation: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Copies a generation, the live one if none is named, into a new folder, or into a new tar where `target` ends in
    .tar, .tar.gz (.tgz) or .tar.zst. Writers may go on meanwhile.

    The copy gets its name when it is whole and on disk; what a killed process has left beside it is called like it,
    with a dot before and .tmp behind. Raises BackupError where there is something of that name, and for a name that
    ends like an archive of another kind, CorruptIndexError for a file that does not match its checksum,
    GenerationNotFoundError, and the errors of IndexDirectory.
    """
    directory, target, progress = IndexDirectory.of(directory), Path(target), progress or SilentProgress()
    if target.exists() or target.is_symlink():
        raise BackupError(f"{target} exists: name a new file or folder for the backup")
    if is_other_archive(target):
        raise BackupError(
            f"{target} is called like an archive of a kind that is not written: name a file that ends in "
            ".tar, .tar.gz, .tgz or .tar.zst, or a folder"
        )
    if target.resolve().is_relative_to(directory.path.resolve()):
        raise BackupError(f"{target} lies in the index itself: name a place outside of {directory.path} for the backup")
    if generation is not None:
        directory.token(generation)
    while True:
        number = directory.manifest().generation if generation is None else generation
        with directory.hold(number):
            try:
                return _copied(directory, number, target, progress)
            except (CorruptIndexError, GenerationNotFoundError, FileNotFoundError) as error:
                # One that was being removed before it was held; where it was not named, the newest is as good.
                if number in directory.generations():
                    raise
                if generation is not None:
                    raise GenerationNotFoundError(
                        f"generation {number} of {directory} was removed while it was copied: newer ones were "
                        "published. Pin a generation that is to be kept"
                    ) from error


def _copied(directory: IndexDirectory, number: int, target: Path, progress: Progress) -> Manifest:
    """Copies a generation beside the target, and gives the copy its name."""
    manifest, token = directory.generation(number), directory.token(number).encode()
    lease = directory.fetch(manifest)
    files = {PurePosixPath(path.as_posix()): entry for path, entry in directory.files(manifest).items()}
    documents = {entry.id: entry.live for entry in manifest.segments}
    progress.phase("copying", sum(documents.values()))
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with (
            TarWriter(beside, target, manifest.created.timestamp()) if is_tar(target) else FolderWriter(beside)
        ) as writer:
            record = directory.manifest_data(number)
            for name in (CURRENT, manifest_name(number), record_name(number)):
                data = record if name.suffix == ".json" else token
                writer.add(name, len(data), io.BytesIO(data))
            for name, entry in files.items():
                with _checked(directory.path / name, entry) as file:
                    writer.add(name, entry.bytes, file)
                if name.name == LAST_FILE:
                    progress.advance(documents[name.parent.name])
        if target.exists():
            raise BackupError(f"{target} exists: another process has just made it")
        beside.rename(target)
    except BaseException:
        _remove(beside)
        raise
    sync(target.resolve().parent)
    del lease
    return manifest


class _Checked:
    """A file that is hashed while it is read: index.archives.Readable."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.hash = file, blake3()

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        self.hash.update(data)
        return data


@contextlib.contextmanager
def _checked(path: Path, entry: FileEntry) -> Iterator[_Checked]:
    """Opens a file, all of which is to be read; raises CorruptIndexError where it is not what its entry says."""
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            raise CorruptIndexError(f"{path} has {size} bytes, not {entry.bytes}")
        with path.open("rb") as file:
            checked = _Checked(file)
            yield checked
    except FileNotFoundError as error:
        raise CorruptIndexError(f"{path} is missing") from error
    if checked.hash.hexdigest() != entry.blake3:
        raise CorruptIndexError(f"{path} does not match its checksum")


def _remove(path: Path) -> None:
    """Removes what has been written beside a target."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
