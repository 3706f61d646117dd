"""The directory of an index: what lies where, how a generation is published, and how a reader gets hold of one.

    my-index/
      CURRENT                     name and checksum of the live manifest; replaced atomically
      manifests/00000007.json     one generation, immutable (index.manifest.Manifest)
      manifests/00000007.blake3   what CURRENT said while it was live, for whoever goes back to it
      deletes/<id>-00000007.npy   rows of a segment that were deleted by that generation; immutable
      pins/00000007               says that a generation is to be kept
      pins/00000007-<any>.held    held while that generation is being copied (index.holding)
      codebooks/<id>.safetensors  what the codes of a generation mean (index.codebook); immutable, like segments
      structures/<id>.*           the graph over the documents of a generation, or their lists; immutable
      segments/<id>/              immutable once a manifest names it (index.segments)
      staging/                    what an unfinished build has done (index.staging); never read by a searcher
      .lock                       held by the one process that writes

Publishing: the files and folders of the segments are synced, then the manifest is written and synced, then CURRENT is
replaced and synced. Whatever is interrupted, CURRENT names a whole generation. A reader reads CURRENT once and keeps to
that manifest. The generation before the live one is kept, so that a reader that is just opening it can finish; how many
more are is index.retention's, and the others, and those that were never made live, are removed by the next publication.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from index.array_files import read_rows, rows_to_bytes
from index.codebook import Codebook
from index.codes_record import CodesRecord, GraphRecord, ListsRecord
from index.durable import SyncError, checksum, sync, write_atomically
from index.errors import (
    BuildError,
    CorruptIndexError,
    GaussearchError,
    GenerationNotFoundError,
    IndexLockedError,
    IndexNotFoundError,
    NotSyncedError,
)
from index.factory_codebook import FactoryCodebook
from index.generations import MANIFEST_BYTES, MANIFESTS, RECORDS, parse_manifest, remove_unpublished, tidy
from index.holding import hold
from index.manifest import Manifest
from index.records import FileEntry
from index.retention import Retention
from index.scalar_codebook import ScalarCodebook
from index.segment_records import DeletesRecord, SegmentEntry
from index.segments import Segment, open_segment, read_segment_manifest, verify_segment
from index.untrusted import IndexFile, require_folder

__all__ = ["AnyCodebook", "IndexDirectory", "shared_files"]

_CURRENT = re.compile(r"(?P<name>(?P<generation>[0-9]{8})\.json) (?P<checksum>[0-9a-f]{64})\n")
_PINS = "[0-9]" * 8
CURRENT_BYTES, HEADER_BYTES = 200, 1024
"""More than CURRENT has, and than what stands before an array."""

LOCK = ".lock"

DEFAULT: Final = Retention()

AnyCodebook = Codebook | FactoryCodebook | ScalarCodebook


class IndexDirectory:
    """An index on disk. Making one touches nothing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.current_file = self.path / "CURRENT"
        self.manifests = self.path / "manifests"
        self.segments = self.path / "segments"
        self.codebooks = self.path / "codebooks"
        self.structures = self.path / "structures"
        self.deletes = self.path / "deletes"
        self.pins = self.path / "pins"
        self.staging = self.path / "staging"

    @classmethod
    def of(cls, index: "IndexDirectory | str | Path") -> "IndexDirectory":
        """The index itself, or that in the folder of this path."""
        return index if isinstance(index, IndexDirectory) else cls(index)

    @property
    def name(self) -> str:
        """The folder's own name, by which responses call the index."""
        return self.path.resolve().name

    def current_token(self) -> str:
        """The content of CURRENT, which changes exactly when a generation is published.

        Raises IndexNotFoundError where nothing has been published, CorruptIndexError where it is no such file.
        """
        if not self.path.is_dir() or not os.path.lexists(self.current_file):
            raise IndexNotFoundError(
                f"no index in {self.path}: {self.current_file} does not exist; build one with `gaussearch build`"
            )
        return IndexFile(self.current_file).contents(CURRENT_BYTES).decode("ascii", errors="replace")

    def live_generation(self) -> int | None:
        """The number of the generation that CURRENT names; None where it names none."""
        return self._live()[0]

    def _live(self) -> tuple[int | None, str]:
        """The number of the generation that CURRENT names, if it does, and what CURRENT says, read once."""
        try:
            token = self.current_token()
        except (IndexNotFoundError, CorruptIndexError):
            return None, ""
        match = _CURRENT.fullmatch(token)
        return (int(match["generation"]) if match else None), token

    def manifest(self) -> Manifest:
        """The live generation.

        Raises IndexNotFoundError, CorruptIndexError or UnsupportedFormatError, naming the file.
        """
        return self._manifest(self.current_file, self.current_token())

    def generation(self, number: int) -> Manifest:
        """A generation that has been live, or is; raises GenerationNotFoundError where it is not kept, or the errors of
        `manifest`."""
        token = self.token(number)
        if not token.startswith(f"{number:08d}.json "):
            raise CorruptIndexError(f"{self._record(number)} names another generation's manifest")
        return self._manifest(self._record(number), token)

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
            raise GenerationNotFoundError(f"{self.path} keeps no generation {number}; it keeps {numbers}{instead}")
        # In one look: another may become the live one at any moment.
        live, token = self._live()
        if number == live:
            return token
        return IndexFile(self._record(number), folders=1).contents(CURRENT_BYTES).decode("ascii", "replace")

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
        live = self.live_generation()
        numbers = {int(path.stem) for path in self.manifests.glob(RECORDS) if path.with_suffix(".json").exists()}
        return sorted(number for number in numbers | {live} if number is not None and number <= (live or number))

    def _record(self, number: int) -> Path:
        """Where it stands what CURRENT said while that generation was live."""
        return self.manifests / f"{number:08d}.blake3"

    def pinned(self) -> set[int]:
        """The numbers of the generations that are to be kept until they are unpinned."""
        return {int(path.name) for path in self.pins.glob(_PINS)}

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

    def _manifest(self, named_by: Path, token: str) -> Manifest:
        match = _CURRENT.fullmatch(token)
        if match is None:
            raise CorruptIndexError(f"{named_by} does not name a manifest and its checksum")
        path = self.manifests / match["name"]
        data = IndexFile(path, folders=1).contents(MANIFEST_BYTES)
        if checksum(data) != match["checksum"]:
            raise CorruptIndexError(f"{path} does not match the checksum in {named_by}")
        manifest = parse_manifest(path, data)
        if manifest.generation != int(match["generation"]):
            raise CorruptIndexError(f"{path} is of generation {manifest.generation}")
        return manifest

    def codebook(self, codes: CodesRecord) -> AnyCodebook:
        """The codebook of a generation; raises CorruptIndexError naming the file that is missing or differs."""
        path = self.codebooks / codes.codebook
        data = IndexFile(path, codes.file, folders=1).contents(codes.file.bytes)
        kind: type[AnyCodebook] = Codebook
        if codes.graph is not None:
            kind = ScalarCodebook
        elif codes.factory is not None:
            kind = FactoryCodebook
        try:
            return kind.from_bytes(data)
        except ValueError as error:
            raise CorruptIndexError(f"{path}: {error}") from error

    def structure(self, record: GraphRecord | ListsRecord) -> IndexFile:
        """The file of a generation's graph or lists."""
        return IndexFile(self.structures / record.name, record.file, folders=1)

    def open_segments(
        self, manifest: Manifest, *, verify: bool = True, known: Mapping[str, Segment] | None = None
    ) -> list[Segment]:
        """Memory-maps the segments of a generation, in its order; with `verify`, reads and checks every byte first.

        `known` are segments that are open already, by the checksums of their entries. Raises CorruptIndexError naming
        the file that is missing or differs.
        """
        known = known or {}
        opened = [
            known.get(entry.blake3) or open_segment(self.segments / entry.id, entry, verify=verify)
            for entry in manifest.segments
        ]
        for segment in opened:
            if (segment.manifest.k, segment.manifest.encoding) != (manifest.k, manifest.encoding):
                raise CorruptIndexError(f"{segment.folder} holds another k or encoding than the index's manifest")
            if segment.manifest.codebook != (manifest.codes.file.blake3 if manifest.codes else None):
                raise CorruptIndexError(
                    f"{segment.folder} has codes of another codebook than the index's manifest names"
                )
        return opened

    def deleted_rows(self, entry: SegmentEntry) -> npt.NDArray[np.int64]:
        """The rows of a segment that are no documents any more, ascending; raises CorruptIndexError naming the file."""
        if entry.deletes is None:
            return np.empty(0, dtype=np.int64)
        path = self.deletes / entry.deletes.name
        # Four bytes a row, and what stands before them.
        data = IndexFile(path, entry.deletes.file, folders=1).contents(4 * entry.documents + HEADER_BYTES)
        rows = read_rows(path, data)
        if len(rows) != entry.deletes.rows or (len(rows) and int(rows[-1]) >= entry.documents):
            raise CorruptIndexError(f"{path} lists {len(rows)} rows, not {entry.deletes.rows} of {entry.documents}")
        return rows

    def write_deleted_rows(self, entry: SegmentEntry, rows: npt.NDArray[np.int64], generation: int) -> SegmentEntry:
        """The entry of a segment of which these rows, ascending, are deleted by a generation that is to be published.
        Hold the writer lock."""
        self.deletes.mkdir(exist_ok=True)
        name = f"{entry.id}-{generation:08d}.npy"
        data = rows_to_bytes(rows)
        write_atomically(self.deletes / name, data)
        record = DeletesRecord(name=name, file=FileEntry(bytes=len(data), blake3=checksum(data)), rows=len(rows))
        return entry.model_copy(update={"deletes": record})

    def files(self, manifest: Manifest) -> dict[Path, FileEntry]:
        """Every file that a generation is made of, but its manifest, relative to the directory.

        Raises CorruptIndexError where a segment.json is missing or differs.
        """
        found: dict[Path, FileEntry] = {}
        for entry in manifest.segments:
            segment = read_segment_manifest(self.segments / entry.id, entry)
            folder = Path("segments", entry.id)
            size = (self.segments / entry.id / "segment.json").stat().st_size
            found[folder / "segment.json"] = FileEntry(bytes=size, blake3=entry.blake3)
            found |= {folder / name: segment.files[name] for name in sorted(segment.files)}
        return found | shared_files(manifest)

    def verify(self, number: int | None = None) -> Manifest:
        """Checks every checksum, size and cross-reference of a generation, the live one if none is given, and returns
        its manifest. Nobody removes it meanwhile.

        Raises CorruptIndexError naming the first file that differs, and the errors of `generation`.
        """
        while True:
            its = self.manifest().generation if number is None else number
            self.token(its)
            with hold(self.pins, its):
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
        for entry in manifest.segments:
            verify_segment(self.segments / entry.id, entry)
            self.deleted_rows(entry)
        self.open_segments(manifest, verify=False)
        if manifest.codes is not None:
            self.codebook(manifest.codes)
            if manifest.structure is not None:
                self.structure(manifest.structure).verify()

    def _verify_record(self, number: int) -> None:
        """Raises CorruptIndexError where nobody could go back to a generation for what its record says."""
        record, path = self._record(number), self.manifests / f"{number:08d}.json"
        digest = checksum(IndexFile(path, folders=1).contents(MANIFEST_BYTES))
        if IndexFile(record, folders=1).contents(CURRENT_BYTES) != f"{path.name} {digest}\n".encode():
            raise CorruptIndexError(f"{record} does not name {path.name} and its checksum")

    @contextlib.contextmanager
    def lock(self, wait: float = 0.0) -> Iterator[None]:
        """Makes the folder where it is missing and holds its writer lock, which a dead process does not keep.

        Where what is done under it fails, before anything has been published or staged, what there was not before is
        removed again. Raises IndexLockedError where another process, or thread, holds it for longer than `wait`
        seconds, and CorruptIndexError where one of its folders is none.
        """
        lock = FileLock(self.path / LOCK)
        while True:
            made, before = self._make()
            try:
                lock.acquire(timeout=wait)
                break
            except Timeout as error:
                waited = f" and has not finished within {wait:g} seconds" if wait else ""
                raise IndexLockedError(
                    f"another process is writing to {self.path}{waited}; wait for it to finish (--wait SECONDS does)"
                ) from error
            except FileNotFoundError:
                # Whoever held it has failed, and has removed the folder that it had made.
                if self.path.is_dir():
                    raise
        try:
            yield
        except BaseException:
            self._unmake(made, before)
            raise
        finally:
            lock.release()

    @property
    def _folders(self) -> tuple[Path, ...]:
        return (
            self.manifests,
            self.segments,
            self.codebooks,
            self.structures,
            self.deletes,
            self.pins,
            self.staging,
        )

    def _make(self) -> tuple[list[Path], set[str]]:
        """Makes the folder. Returns what of it and of the folders that it lies in was not there, from the inside out,
        and the names of what was there in it."""
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        # Through a link, a build would write and remove files elsewhere.
        for folder in self._folders:
            require_folder(folder)
        if made:
            sync(self.path.resolve().parent)
        return made, set() if made else {path.name for path in self.path.iterdir()}

    def _unmake(self, made: Sequence[Path], before: Collection[str]) -> None:
        """Removes the folders that are empty, the lock and the directory, where they were made for nothing. Hold the
        writer lock: who waits for it goes on with another, as FileLock looks whether its file has been removed."""
        if os.path.lexists(self.current_file) or LOCK in before:
            return
        for folder in self._folders:
            if folder.name not in before:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        with contextlib.suppress(OSError):
            if not any(folder.exists() for folder in self._folders):
                (self.path / LOCK).unlink()
                for folder in made:
                    folder.rmdir()

    def next_generation(self) -> int:
        """The number that the next publication gets. A manifest that cannot be read does not stop it."""
        published = [int(path.stem) for path in self.manifests.glob(MANIFESTS)]
        return max(published, default=0) + 1

    def publish(
        self, manifest: Manifest, *, retention: Retention = DEFAULT, published: Collection[str] = frozenset()
    ) -> None:
        """Makes a manifest, whose segments are in place, the live generation, and removes what none needs any more.

        `published` are the ids of segments that an earlier generation has had synced. An unfinished build that is
        overtaken by this loses its segments, and begins anew. Raises NotSyncedError where it is live and may not be
        after a power cut, BuildError where it has too many segments, and OSError.
        """
        self.manifests.mkdir(exist_ok=True)
        remove_unpublished(self)
        # Of resumed segments too: the run that made them may have been killed before it synced them.
        for folder in (self.segments / entry.id for entry in manifest.segments if entry.id not in published):
            for path in (*folder.iterdir(), folder):
                sync(path)
        sync(self.segments)
        if manifest.codes is not None:
            sync(self.codebooks)
        if manifest.structure is not None:
            sync(self.structures)
        sync(self.path)
        # Without a model it is what it was before there were any: releases of that time read it.
        left_out = {"settings": {"model"}} if manifest.model is None else None
        data = (manifest.model_dump_json(indent=2, exclude=left_out) + "\n").encode()
        if len(data) > MANIFEST_BYTES:
            raise BuildError(
                f"the manifest of {self.path} would have {len(data)} bytes, and may have {MANIFEST_BYTES}: "
                "build with a larger --segment-docs, or from fewer files"
            )
        name = f"{manifest.generation:08d}.json"
        token = f"{name} {checksum(data)}\n".encode()
        write_atomically(self.manifests / name, data)
        write_atomically(self.manifests / f"{manifest.generation:08d}.blake3", token)
        try:
            write_atomically(self.current_file, token)
        except SyncError as error:
            # The name of the folder alone: CURRENT has been replaced.
            raise NotSyncedError(
                f"generation {manifest.generation} of {self.path} is live, but has not reached the disk, so that a "
                f"power cut may undo it: {error}"
            ) from error
        with contextlib.suppress(OSError):
            # It is published, whatever comes of this; what cannot be removed now is tried again next time.
            shutil.rmtree(self.staging, ignore_errors=True)
            self.remove_unneeded(retention)

    def remove_unneeded(self, retention: Retention | None = None) -> None:
        """Removes all generations but those that are kept, which without `retention` are all that have been live, and
        what none of these names. Hold the writer lock."""
        tidy(self, retention)


def shared_files(manifest: Manifest) -> dict[Path, FileEntry]:
    """The files of a generation that lie outside of its segments, but its manifest, relative to the directory."""
    deletes = [entry.deletes for entry in manifest.segments if entry.deletes is not None]
    found = {Path("deletes", each.name): each.file for each in deletes}
    if manifest.codes is not None:
        found[Path("codebooks", manifest.codes.codebook)] = manifest.codes.file
    if manifest.structure is not None:
        found[Path("structures", manifest.structure.name)] = manifest.structure.file
    return found
