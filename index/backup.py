"""Backups: a generation of an index copied into a folder or a tar, and made the live generation of a directory again.

A backup is itself the directory of an index, of one generation: CURRENT, its manifest, and the files that this names.
So a folder can be served as it is. Every byte is compared with its checksum while it is copied, out of the index and
back into one.
"""

import contextlib
import io
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from blake3 import blake3

from index.archives import Archive, FolderArchive, FolderWriter, TarArchive, TarWriter, is_other_archive, is_tar
from index.build_options import WriteOptions
from index.durable import checksum, measure, sync
from index.errors import BackupError, CorruptIndexError, GenerationNotFoundError, UnsupportedFormatError
from index.generation_files import shared_files
from index.generations import MANIFEST_BYTES
from index.holding import hold
from index.manifest import Manifest
from index.progress import Progress, SilentProgress
from index.records import FileEntry
from index.segment_records import SegmentEntry
from index.segments import read_segment_manifest
from index.storage import IndexDirectory
from index.writer import made_now

__all__ = ["back_up", "restore"]

CURRENT = PurePosixPath("CURRENT")
LAST_FILE: Final = "vectors.faiss"
"""Of a segment, in the order of their names."""
LAST_GENERATION: Final = 99_000_000
"""Numbers have eight digits: a backup must not use them up."""
CURRENT_BYTES: Final = 256
SEGMENT_BYTES: Final = 1 << 16
"""What is read at most of a file that nothing has said the size of: CURRENT and a segment.json."""


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
        with hold(directory.pins, number):
            try:
                return _copied(directory, number, target, progress)
            except (CorruptIndexError, GenerationNotFoundError, FileNotFoundError) as error:
                # One that was being removed before it was held; where it was not named, the newest is as good.
                if number in directory.generations():
                    raise
                if generation is not None:
                    raise GenerationNotFoundError(
                        f"generation {number} of {directory.path} was removed while it was copied: newer ones were "
                        "published. Pin a generation that is to be kept"
                    ) from error


def restore(
    source: str | Path,
    directory: IndexDirectory | str | Path,
    options: WriteOptions | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Makes a backup, a folder or a tar that `back_up` has written, the live generation of a directory.

    In a directory without an index the generation keeps its number; in one that has an index it is the next one, with
    a number above its own, and the generations that are there are kept as after any other change. Nothing is published
    before every byte of it has been compared with its checksum where it lies then, and whatever is interrupted, the
    live generation is the one before or this. Of files that are there already no copy is made.

    Raises BackupError for what is no backup, CorruptIndexError for a file of it that is missing or does not match its
    checksum, or that is there already with other content, UnsupportedFormatError, and IndexLockedError.
    """
    source, options, progress = Path(source), options or WriteOptions(), progress or SilentProgress()
    directory = IndexDirectory.of(directory)
    if source.resolve() == directory.path.resolve():
        raise BackupError(f"{source} is the index itself: gaussearch rollback goes back to one of its generations")
    with _opened(source) as archive:
        manifest = _read_manifest(archive)
        with directory.lock(options.wait), contextlib.ExitStack() as stack:
            # What an interrupted restoration has left is not taken for whole; nor is that of this one.
            directory.remove_unneeded()
            stack.callback(_clear_away, directory)
            _put_in_place(archive, manifest, directory, progress)
            if isinstance(archive, TarArchive):
                archive.require_end()
            progress.phase("checking", None)
            directory.verify_contents(manifest)
            if directory.next_generation() > 1:
                number = max(directory.next_generation(), manifest.generation + 1)
                again = {**made_now(), "generation": number, "restores": manifest.generation}
                manifest = manifest.model_copy(update=again)
            directory.publish(manifest, retention=options.retention)
            stack.pop_all()
    return manifest


def _copied(directory: IndexDirectory, number: int, target: Path, progress: Progress) -> Manifest:
    """Copies a generation beside the target, and gives the copy its name."""
    manifest, token = directory.generation(number), directory.token(number).encode()
    files = {PurePosixPath(path.as_posix()): entry for path, entry in directory.files(manifest).items()}
    documents = {entry.id: entry.live for entry in manifest.segments}
    progress.phase("copying", sum(documents.values()))
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with (
            TarWriter(beside, target, manifest.created.timestamp()) if is_tar(target) else FolderWriter(beside)
        ) as writer:
            record = directory.manifest_file(number)
            for name in (CURRENT, PurePosixPath("manifests", record.name), _record(number)):
                data = record.read_bytes() if name.suffix == ".json" else token
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


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[Archive]:
    """A backup, by what its name says."""
    if source.is_dir():
        yield FolderArchive(source)
    elif not source.exists():
        raise BackupError(f"there is no backup {source}")
    elif not is_tar(source) or not source.is_file():
        raise BackupError(f"{source} is neither a folder nor a file whose name ends in .tar, .tar.gz, .tgz or .tar.zst")
    else:
        with TarArchive(source) as archive:
            yield archive


def _read_manifest(archive: Archive) -> Manifest:
    """The manifest of a backup, which is what its CURRENT names."""
    with tempfile.TemporaryDirectory() as folder:
        staged = IndexDirectory(folder)
        staged.manifests.mkdir()
        token = _contents(archive, CURRENT, CURRENT_BYTES)
        staged.current_file.write_bytes(token)
        number = staged.live_generation()
        if number is None:
            raise CorruptIndexError(f"{archive.where(CURRENT)} does not name a manifest and its checksum")
        name = PurePosixPath("manifests", f"{number:08d}.json")
        (staged.path / name).write_bytes(_contents(archive, name, MANIFEST_BYTES))
        try:
            manifest = staged.manifest()
        except (CorruptIndexError, UnsupportedFormatError) as error:
            here = archive.where(PurePosixPath("-")).removesuffix("-")
            raise type(error)(str(error).replace(f"{staged.path}/", here)) from error
    if _contents(archive, _record(number), CURRENT_BYTES) != token:
        raise CorruptIndexError(f"{archive.where(_record(number))} does not say what {archive.where(CURRENT)} says")
    _require_own_names(archive, manifest)
    return manifest


def _require_own_names(archive: Archive, manifest: Manifest) -> None:
    """Raises BackupError unless files are called after its generation or earlier ones: what is written later is called
    after later ones, and must not find its names taken."""
    names = [entry.id for entry in manifest.segments] + [path.stem for path in shared_files(manifest)]
    numbers = [int(number) for name in names for number in (name.split("-")[1], *name.split("-")[3:])]
    if max(numbers) > manifest.generation or manifest.generation > LAST_GENERATION:
        raise BackupError(
            f"{archive.where(_record(manifest.generation))} is of generation {manifest.generation}, but has files of "
            f"generation {max(numbers)}; or is beyond {LAST_GENERATION:,}, near which numbers end"
        )


def _put_in_place(archive: Archive, manifest: Manifest, directory: IndexDirectory, progress: Progress) -> None:
    """Has every file of a generation in a directory, its manifest excepted, and compares each with its checksum."""
    progress.phase("copying", sum(entry.documents for entry in manifest.segments))
    for entry in manifest.segments:
        for name, its in _segment_files(archive, entry, directory).items():
            _take(archive, name, its, directory)
        progress.advance(entry.documents)
    for path, its in shared_files(manifest).items():
        _take(archive, PurePosixPath(path.as_posix()), its, directory)
    for folder in (directory.segments, directory.deletes, directory.codebooks, directory.structures):
        if folder.exists():
            sync(folder)


def _segment_files(archive: Archive, entry: SegmentEntry, directory: IndexDirectory) -> dict[PurePosixPath, FileEntry]:
    """The files of a segment but for segment.json, which says so and is put in place."""
    folder = PurePosixPath("segments", entry.id)
    name = folder / "segment.json"
    data = _contents(archive, name, SEGMENT_BYTES)
    if checksum(data) != entry.blake3:
        raise CorruptIndexError(f"{archive.where(name)} does not match its checksum in the manifest")
    path = directory.path / name
    if path.exists():
        _require_same(path, FileEntry(bytes=len(data), blake3=entry.blake3), archive.where(name))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        sync(path)
    try:
        files = read_segment_manifest(path.parent, entry).files
    except CorruptIndexError as error:
        raise CorruptIndexError(str(error).replace(str(path), archive.where(name))) from error
    return {folder / file: files[file] for file in sorted(files)}


def _take(archive: Archive, name: PurePosixPath, entry: FileEntry, directory: IndexDirectory) -> None:
    """Copies a file into the directory, or only looks at it where it is there already."""
    path = directory.path / name
    there = path.exists()
    if there:
        _require_same(path, entry, archive.where(name))
    else:
        path.parent.mkdir(exist_ok=True)
    with archive.open(name) as member:
        member.copy(entry, None if there else path)


def _require_same(path: Path, entry: FileEntry, where: str) -> None:
    if measure(path) != entry:
        raise CorruptIndexError(
            f"{path} is there already, with other content than {where}: restore it into another directory"
        )


def _contents(archive: Archive, name: PurePosixPath, limit: int) -> bytes:
    with archive.open(name) as member:
        return member.read(limit)


def _record(number: int) -> PurePosixPath:
    return PurePosixPath("manifests", f"{number:08d}.blake3")


def _clear_away(directory: IndexDirectory) -> None:
    with contextlib.suppress(OSError):
        directory.remove_unneeded()


def _remove(path: Path) -> None:
    """Removes what has been written beside a target."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
