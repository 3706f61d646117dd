"""The directory of an index: what lies where, how a generation is published, and how a reader gets hold of one.

    my-index/
      CURRENT                     name and checksum of the live manifest; replaced atomically
      manifests/00000007.json     one generation, immutable (index.manifest.Manifest)
      codebooks/<id>.safetensors  what the codes of a generation mean (index.codebook); immutable, like segments
      structures/<id>.*           the graph over the documents of a generation, or their lists; immutable
      segments/<id>/              immutable once a manifest names it (index.segments)
      staging/                    what an unfinished build has done (index.staging); never read by a searcher
      .lock                       held by the one process that writes

Publishing: the files and folders of the segments are synced, then the manifest is written and synced, then CURRENT is
replaced and synced. Whatever is interrupted, CURRENT names a whole generation. A reader reads CURRENT once and keeps to
that manifest. The generation before the live one is kept, so that a reader that is just opening it can finish; older
ones, and those that were never made live, are removed by the next publication.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from pydantic import ValidationError

from index.codebook import Codebook
from index.durable import checksum, measure, sync, write_atomically
from index.errors import (
    CorruptIndexError,
    IndexLockedError,
    IndexNotFoundError,
    UnsupportedFormatError,
)
from index.factory_codebook import FactoryCodebook
from index.manifest import FORMAT_VERSION, CodesRecord, GraphRecord, ListsRecord, Manifest, SegmentEntry
from index.scalar_codebook import ScalarCodebook
from index.segments import Segment, open_segment, verify_segment

__all__ = ["IndexDirectory"]

_CURRENT = re.compile(r"(?P<name>(?P<generation>[0-9]{8})\.json) (?P<checksum>[0-9a-f]{64})\n")
_SEGMENT = re.compile(r"[0-9a-f]{12}-[0-9]{8}-[0-9]{5}")
# Also one that a killed build had not finished.
_CODEBOOK = re.compile(r"\.?[0-9a-f]{12}-[0-9]{8}-[0-9]{5}\.safetensors(\.tmp)?")
_STRUCTURE = re.compile(r"\.?[0-9a-f]{12}-[0-9]{8}-[0-9]{5}\.(faiss|safetensors)(\.tmp)?")
_MANIFESTS = "[0-9]" * 8 + ".json"
KEPT_GENERATIONS = 2

AnyCodebook = TypeVar("AnyCodebook", Codebook, FactoryCodebook, ScalarCodebook)


class IndexDirectory:
    """An index on disk. Making one touches nothing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.current_file = self.path / "CURRENT"
        self.manifests = self.path / "manifests"
        self.segments = self.path / "segments"
        self.codebooks = self.path / "codebooks"
        self.structures = self.path / "structures"
        self.staging = self.path / "staging"

    @property
    def name(self) -> str:
        """The folder's own name, by which responses call the index."""
        return self.path.resolve().name

    def current_token(self) -> str:
        """The content of CURRENT, which changes exactly when a generation is published.

        Raises IndexNotFoundError where nothing has been published.
        """
        try:
            return self.current_file.read_text(encoding="ascii", errors="replace")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise IndexNotFoundError(
                f"no index in {self.path}: {self.current_file} does not exist; build one with `gaussearch build`"
            ) from error

    def live_generation(self) -> int | None:
        """The number of the generation that CURRENT names; None where it names none."""
        try:
            match = _CURRENT.fullmatch(self.current_token())
        except IndexNotFoundError:
            return None
        return int(match["generation"]) if match else None

    def manifest(self) -> Manifest:
        """The live generation.

        Raises IndexNotFoundError, CorruptIndexError or UnsupportedFormatError, naming the file.
        """
        match = _CURRENT.fullmatch(self.current_token())
        if match is None:
            raise CorruptIndexError(f"{self.current_file} does not name a manifest and its checksum")
        path = self.manifests / match["name"]
        data = _read(path)
        if checksum(data) != match["checksum"]:
            raise CorruptIndexError(f"{path} does not match the checksum in {self.current_file}")
        return _parse_manifest(path, data)

    def codebook(self, codes: CodesRecord, kind: type[AnyCodebook]) -> AnyCodebook:
        """The codebook of a generation; raises CorruptIndexError naming the file that is missing or differs."""
        path = self.codebooks / codes.codebook
        data = _read(path)
        if checksum(data) != codes.file.blake3:
            raise CorruptIndexError(f"{path} does not match its checksum in the index's manifest")
        try:
            return kind.from_bytes(data)
        except ValueError as error:
            raise CorruptIndexError(f"{path}: {error}") from error

    def structure(self, record: GraphRecord | ListsRecord, *, verify: bool) -> Path:
        """Where the graph or the lists of a generation lie; raises CorruptIndexError where the file is missing or
        differs, of which without `verify` only the size is looked at."""
        path = self.structures / record.name
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise CorruptIndexError(f"{path} is missing") from error
        if size != record.file.bytes or (verify and measure(path) != record.file):
            raise CorruptIndexError(f"{path} does not match its size and checksum in the index's manifest")
        return path

    def open_segments(self, manifest: Manifest, *, verify: bool = True) -> list[Segment]:
        """Memory-maps the segments of a generation, in its order; with `verify`, reads and checks every byte first.

        Raises CorruptIndexError naming the file that is missing or differs.
        """
        opened = [self.open_segment(entry, verify=verify) for entry in manifest.segments]
        for segment in opened:
            if (segment.manifest.k, segment.manifest.encoding) != (manifest.k, manifest.encoding):
                raise CorruptIndexError(f"{segment.folder} holds another k or encoding than the index's manifest")
            if segment.manifest.codebook != (manifest.codes.file.blake3 if manifest.codes else None):
                raise CorruptIndexError(
                    f"{segment.folder} has codes of another codebook than the index's manifest names"
                )
        return opened

    def open_segment(self, entry: SegmentEntry, *, verify: bool = True) -> Segment:
        """One segment of a generation; as `open_segments`."""
        return open_segment(self.segments / entry.id, entry, verify=verify)

    def verify(self) -> Manifest:
        """Checks every checksum, size and cross-reference of the live generation and returns its manifest.

        Raises CorruptIndexError naming the first file that differs.
        """
        manifest = self.manifest()
        for entry in manifest.segments:
            verify_segment(self.segments / entry.id, entry)
        self.open_segments(manifest, verify=False)
        if manifest.codes is not None:
            if manifest.codes.graph is not None:
                self.codebook(manifest.codes, ScalarCodebook)
            elif manifest.codes.factory is not None:
                self.codebook(manifest.codes, FactoryCodebook)
            else:
                self.codebook(manifest.codes, Codebook)
            if manifest.codes.structure is not None:
                self.structure(manifest.codes.structure, verify=True)
        return manifest

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the folder where it is missing and holds its writer lock, which a dead process does not keep.

        Raises IndexLockedError at once where another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        sync(self.path.resolve().parent)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise IndexLockedError(f"another process is writing to {self.path}; wait for it to finish") from error
        try:
            yield
        finally:
            lock.release()

    def next_generation(self) -> int:
        """The number that the next publication gets. A manifest that cannot be read does not stop it."""
        published = [int(path.stem) for path in self.manifests.glob(_MANIFESTS)]
        return max(published, default=0) + 1

    def publish(self, manifest: Manifest) -> None:
        """Makes a manifest, whose segments are in place, the live generation, and removes what none needs any more."""
        self.manifests.mkdir(exist_ok=True)
        # Of resumed segments too: the run that made them may have been killed before it synced them.
        for folder in (self.segments / entry.id for entry in manifest.segments):
            for path in (*folder.iterdir(), folder):
                sync(path)
        sync(self.segments)
        if manifest.codes is not None:
            sync(self.codebooks)
            if manifest.codes.structure is not None:
                sync(self.structures)
        sync(self.path)
        data = (manifest.model_dump_json(indent=2) + "\n").encode()
        name = f"{manifest.generation:08d}.json"
        write_atomically(self.manifests / name, data)
        write_atomically(self.current_file, f"{name} {checksum(data)}\n".encode())
        self.remove_unneeded()

    def remove_unneeded(self) -> None:
        """Removes all generations but the live one and those just before it, and segments that none of these names.

        A manifest after the live one is that of a build that was killed before it could replace CURRENT.
        """
        manifests = sorted(self.manifests.glob(_MANIFESTS))
        live = self.live_generation()
        kept = [path for path in manifests if live is None or int(path.stem) <= live][-KEPT_GENERATIONS:]
        for path in manifests:
            if path not in kept:
                path.unlink()
        try:
            generations = [_parse_manifest(path, _read(path)) for path in kept]
        except (CorruptIndexError, UnsupportedFormatError):
            # What it needs is not known, and another release may be able to read it.
            return
        needed = {entry.id for generation in generations for entry in generation.segments}
        codes = [generation.codes for generation in generations if generation.codes is not None]
        _remove_others(self.codebooks, _CODEBOOK, {each.codebook for each in codes})
        _remove_others(self.structures, _STRUCTURE, {each.structure.name for each in codes if each.structure})
        for folder in self.segments.glob("*"):
            # What is not called like a segment is not ours; what cannot be removed now is tried again next time.
            if folder.name not in needed and _SEGMENT.fullmatch(folder.name):
                shutil.rmtree(folder, ignore_errors=True)


def _remove_others(folder: Path, ours: re.Pattern[str], needed: set[str]) -> None:
    """Removes the files of a folder that are called like ours and are not needed."""
    for file in folder.iterdir() if folder.exists() else ():
        if file.name not in needed and ours.fullmatch(file.name):
            file.unlink()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptIndexError(f"{path} is missing") from error


def _parse_manifest(path: Path, data: bytes) -> Manifest:
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if field == "format_version":
            raise UnsupportedFormatError(
                f"{path} has format version {first['input']!r}; this release reads version {FORMAT_VERSION}: "
                "upgrade gaussearch, or build the index again"
            ) from error
        raise CorruptIndexError(f"{path}: {field}: {first['msg']}") from error
