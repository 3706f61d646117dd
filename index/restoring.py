"""A backup made the live generation of a directory again, without believing what it says.

Every byte is compared with its checksum while it is copied, and where it lies then.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from index.archives import Archive, FolderArchive, TarArchive, is_tar
from index.backup import CURRENT
from index.build_options import WriteOptions
from index.current import TOKEN_BYTES
from index.durable import checksum, measure, sync
from index.errors import BackupError, CorruptIndexError, UnsupportedFormatError
from index.generation_files import shared_files
from index.generations import MANIFEST_BYTES
from index.layout import Folder, manifest_name, record_name
from index.manifest import Manifest
from index.progress import Progress, SilentProgress
from index.records import FileEntry
from index.segment_records import SegmentEntry
from index.segments import SEGMENT_RECORD_BYTES, read_segment_manifest
from index.storage import IndexDirectory
from index.writer import made_now

__all__ = ["restore"]

LAST_GENERATION: Final = 99_000_000
"""Numbers have eight digits: a backup must not use them up."""


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
        token = _contents(archive, CURRENT, TOKEN_BYTES)
        staged.current_file.write_bytes(token)
        number = staged.live_generation()
        if number is None:
            raise CorruptIndexError(f"{archive.where(CURRENT)} does not name a manifest and its checksum")
        name = manifest_name(number)
        (staged.path / name).write_bytes(_contents(archive, name, MANIFEST_BYTES))
        try:
            manifest = staged.manifest()
        except (CorruptIndexError, UnsupportedFormatError) as error:
            here = archive.where(PurePosixPath("-")).removesuffix("-")
            raise type(error)(str(error).replace(f"{staged.path}/", here)) from error
    if _contents(archive, record_name(number), TOKEN_BYTES) != token:
        raise CorruptIndexError(f"{archive.where(record_name(number))} does not say what {archive.where(CURRENT)} says")
    _require_own_names(archive, manifest)
    return manifest


def _require_own_names(archive: Archive, manifest: Manifest) -> None:
    """Raises BackupError unless files are called after its generation or earlier ones: what is written later is called
    after later ones, and must not find its names taken."""
    names = [entry.id for entry in manifest.segments] + [path.stem for path in shared_files(manifest)]
    numbers = [int(number) for name in names for number in (name.split("-")[1], *name.split("-")[3:])]
    if max(numbers) > manifest.generation or manifest.generation > LAST_GENERATION:
        where = archive.where(record_name(manifest.generation))
        raise BackupError(
            f"{where} is of generation {manifest.generation}, but has files of generation {max(numbers)}; "
            f"or is beyond {LAST_GENERATION:,}, near which numbers end"
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
    folder = PurePosixPath(Folder.SEGMENTS, entry.id)
    name = folder / "segment.json"
    data = _contents(archive, name, SEGMENT_RECORD_BYTES)
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


def _clear_away(directory: IndexDirectory) -> None:
    with contextlib.suppress(OSError):
        directory.remove_unneeded()
