"""The files that a generation is made of, read and checked. None of them ever changes, and manifests share them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from index.array_files import HEADER_BYTES, read_rows, rows_to_bytes
from index.codebook import Codebook
from index.codes_record import CodesRecord, GraphRecord, ListsRecord
from index.durable import checksum, write_atomically
from index.errors import CorruptIndexError
from index.factory_codebook import FactoryCodebook
from index.layout import Folder, Layout
from index.manifest import Manifest
from index.records import FileEntry
from index.scalar_codebook import ScalarCodebook
from index.segment_records import DeletesRecord, SegmentEntry, SegmentManifest
from index.segments import Segment, open_segment, read_segment_manifest, verify_segment
from index.untrusted import IndexFile

__all__ = [
    "AnyCodebook",
    "deleted_rows",
    "files_of",
    "open_segments",
    "read_codebook",
    "segment_files",
    "shared_files",
    "structure_file",
    "verify_files",
    "write_deleted_rows",
]

AnyCodebook = Codebook | FactoryCodebook | ScalarCodebook


def open_segments(
    layout: Layout, manifest: Manifest, *, verify: bool = True, known: Mapping[str, Segment] | None = None
) -> list[Segment]:
    """Memory-maps the segments of a generation, in its order; with `verify`, reads and checks every byte first.

    `known` are segments that are open already, by the checksums of their entries. Raises CorruptIndexError naming the
    file that is missing or differs.
    """
    known = known or {}
    opened = [
        known.get(entry.blake3) or open_segment(layout.segments / entry.id, entry, verify=verify)
        for entry in manifest.segments
    ]
    for segment in opened:
        if (segment.manifest.k, segment.manifest.encoding) != (manifest.k, manifest.encoding):
            raise CorruptIndexError(f"{segment.folder} holds another k or encoding than the index's manifest")
        if segment.manifest.codebook != (manifest.codes.file.blake3 if manifest.codes else None):
            raise CorruptIndexError(f"{segment.folder} has codes of another codebook than the index's manifest names")
    return opened


def read_codebook(layout: Layout, codes: CodesRecord) -> AnyCodebook:
    """The codebook of a generation; raises CorruptIndexError naming the file that is missing or differs."""
    path = layout.codebooks / codes.codebook
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


def structure_file(layout: Layout, record: GraphRecord | ListsRecord) -> IndexFile:
    """The file of a generation's graph or lists."""
    return IndexFile(layout.structures / record.name, record.file, folders=1)


def deleted_rows(layout: Layout, entry: SegmentEntry) -> npt.NDArray[np.int64]:
    """The rows of a segment that are no documents any more, ascending; raises CorruptIndexError naming the file."""
    if entry.deletes is None:
        return np.empty(0, dtype=np.int64)
    path = layout.deletes / entry.deletes.name
    # Four bytes a row, and what stands before them.
    data = IndexFile(path, entry.deletes.file, folders=1).contents(4 * entry.documents + HEADER_BYTES)
    rows = read_rows(path, data)
    if len(rows) != entry.deletes.rows or (len(rows) and int(rows[-1]) >= entry.documents):
        raise CorruptIndexError(f"{path} lists {len(rows)} rows, not {entry.deletes.rows} of {entry.documents}")
    return rows


def write_deleted_rows(
    layout: Layout, entry: SegmentEntry, rows: npt.NDArray[np.int64], generation: int
) -> SegmentEntry:
    """The entry of a segment of which these rows, ascending, are deleted by a generation that is to be published. Hold
    the writer lock."""
    layout.deletes.mkdir(exist_ok=True)
    name = f"{entry.id}-{generation:08d}.npy"
    data = rows_to_bytes(rows)
    write_atomically(layout.deletes / name, data)
    record = DeletesRecord(name=name, file=FileEntry(bytes=len(data), blake3=checksum(data)), rows=len(rows))
    return entry.model_copy(update={"deletes": record})


def files_of(layout: Layout, manifest: Manifest) -> dict[Path, FileEntry]:
    """Every file that a generation is made of, but its manifest, relative to the directory.

    Raises CorruptIndexError where a segment.json is missing or differs.
    """
    found: dict[Path, FileEntry] = {}
    for entry in manifest.segments:
        segment = read_segment_manifest(layout.segments / entry.id, entry)
        found |= segment_files(entry, segment, (layout.segments / entry.id / "segment.json").stat().st_size)
    return found | shared_files(manifest)


def segment_files(entry: SegmentEntry, segment: SegmentManifest, size: int) -> dict[Path, FileEntry]:
    """The files of a segment whose segment.json has so many bytes, relative to the directory of the index."""
    folder = Path(Folder.SEGMENTS, entry.id)
    record = {folder / "segment.json": FileEntry(bytes=size, blake3=entry.blake3)}
    return record | {folder / name: segment.files[name] for name in sorted(segment.files)}


def shared_files(manifest: Manifest) -> dict[Path, FileEntry]:
    """The files of a generation that lie outside of its segments, but its manifest, relative to the directory."""
    deletes = [entry.deletes for entry in manifest.segments if entry.deletes is not None]
    found = {Path(Folder.DELETES, each.name): each.file for each in deletes}
    if manifest.codes is not None:
        found[Path(Folder.CODEBOOKS, manifest.codes.codebook)] = manifest.codes.file
    if manifest.structure is not None:
        found[Path(Folder.STRUCTURES, manifest.structure.name)] = manifest.structure.file
    return found


def verify_files(layout: Layout, manifest: Manifest) -> None:
    """Checks all that a manifest refers to: every checksum, size and cross-reference.

    Raises CorruptIndexError naming the first file that differs.
    """
    for entry in manifest.segments:
        verify_segment(layout.segments / entry.id, entry)
        deleted_rows(layout, entry)
    open_segments(layout, manifest, verify=False)
    if manifest.codes is not None:
        read_codebook(layout, manifest.codes)
        if manifest.structure is not None:
            structure_file(layout, manifest.structure).verify()
