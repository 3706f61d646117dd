"""One segment of an index: the unit of building, adding and searching. Its files, written and read.

segments/<id>/
  vectors.faiss     the encoded documents, as FAISS writes an IndexFlatIP, or their codes
  gaussians.npy     float32 (n, 2k): means | variances, memory-mapped, for exact scores
  projected.npy     uint8 (n, any): projected vectors of 8 or 16 bits a number, memory-mapped, where codes are scanned
  ids.arrow         id (string) and order (uint32: row numbers in ascending order of id)
  payload.arrow     the source's other columns; absent where there are none
  segment.json      index.manifest.SegmentManifest: counts, sizes and BLAKE3 checksums of the files above
"""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from index.durable import checksum, checksummed, measure, write_atomically
from index.errors import CorruptIndexError
from index.gaussians import Gaussians
from index.manifest import FileEntry, SegmentEntry, SegmentManifest
from index.payload import payload_rows

__all__ = [
    "GaussiansWriter",
    "Segment",
    "complete_segment",
    "find_segment",
    "map_array",
    "open_segment",
    "verify_segment",
    "write_array",
    "write_ids",
    "write_payload",
]

WRITTEN_BYTES = 1 << 20
"""Gaussians put side by side, hashed and written at a time: as much as stays in a core's cache."""
RESERVED_BYTES = 1 << 25
"""How much room a file takes on the disk at a time, before it is written to, which then takes half the time: no more,
because a corpus may end long before a segment is full."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """An open segment; all of it but the vectors is memory-mapped.

    gaussians: (n, 2k) float32, means | variances. ids: (n,) strings. order: (n,) uint32, rows by ascending id.
    payload: n rows, or None.
    """

    folder: Path
    manifest: SegmentManifest
    gaussians: npt.NDArray[np.float32]
    ids: pa.ChunkedArray
    order: npt.NDArray[np.uint32]
    payload: pa.Table | None

    def __len__(self) -> int:
        return self.manifest.documents

    @property
    def vectors_file(self) -> Path:
        """Where the encoded documents lie."""
        return self.folder / "vectors.faiss"

    def ids_at(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """The ids of the documents at these rows."""
        return list(self.ids.take(pa.array(rows)).to_pylist())

    def payload_at(self, rows: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
        """The payload of the documents at these rows, a dictionary each, empty where the segment has none."""
        if self.payload is None:
            return [{} for _ in rows]
        return payload_rows(self.payload.take(pa.array(rows)))

    def find(self, document_id: str) -> int | None:
        """The row that has this id, or None: a binary search over the memory-mapped order."""
        key = document_id.encode(errors="surrogatepass")
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            found = self.ids[int(self.order[middle])].as_py().encode()
            if found == key:
                return int(self.order[middle])
            low, high = (middle + 1, high) if found < key else (low, middle)
        return None


class GaussiansWriter:
    """Writes gaussians.npy, float32 (n, 2k), means | variances, in batches of any size.

    Its first bytes say how many there are: `expected`, which `finish` corrects where there were fewer or more.
    """

    def __init__(self, path: Path, expected: int, k: int) -> None:
        self._path, self._expected, self._written = path, expected, 0
        self._side_by_side = np.empty((max(1, WRITTEN_BYTES // (8 * k)), 2 * k), dtype="<f4")
        self._open = contextlib.ExitStack()
        self._file = self._open.enter_context(checksummed(path))
        header = self._header(expected)
        self._reserved, self._expected_bytes = 0, len(header) + expected * self._side_by_side[0].nbytes
        self._file.write(header)

    def write(self, gaussians: Gaussians) -> None:
        """Appends a batch of the same k."""
        k = gaussians.k
        self._reserve(len(gaussians))
        for part in gaussians.chunks(len(self._side_by_side)):
            block = self._side_by_side[: len(part)]
            block[:, :k], block[:, k:] = part.means.cpu().numpy(), part.variances.cpu().numpy()
            self._file.write(block.data)
        self._written += len(gaussians)

    def finish(self) -> FileEntry:
        """Closes the file and returns its entry."""
        self.close()
        if self._written == self._expected:
            return self._file.entry
        with self._path.open("r+b") as file:
            file.write(self._header(self._written))
            file.truncate(self._file.entry.bytes)
        return measure(self._path)

    def close(self) -> None:
        """Closes the file, whole or not."""
        self._open.close()

    def _reserve(self, rows: int) -> None:
        """Takes room for so many more rows and some after them, up to the file's expected size."""
        wanted = self._file.entry.bytes + rows * self._side_by_side[0].nbytes
        if wanted > self._reserved:
            self._reserved = min(wanted + RESERVED_BYTES, self._expected_bytes)
            self._file.reserve(self._reserved)

    def _header(self, rows: int) -> bytes:
        # Of one length whatever `rows` is: NumPy leaves room for an array to grow.
        header = io.BytesIO()
        shape = (rows, self._side_by_side.shape[1])
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        return header.getvalue()


def write_ids(path: Path, ids: pa.Array) -> FileEntry:
    """Writes ids and their ascending order (by UTF-8 bytes, which is the order of Python's strings)."""
    order = pc.sort_indices(ids).cast(pa.uint32())
    return write_payload(path, pa.table({"id": ids, "order": order}))


def write_payload(path: Path, table: pa.Table) -> FileEntry:
    """Writes a table as an Arrow IPC file of as few record batches as possible, so that rows are found fast."""
    table = pa.table([_compact(column) for column in table.combine_chunks().columns], schema=table.schema)
    with checksummed(path) as file, pa.ipc.new_file(pa.PythonFile(file, mode="w"), table.schema) as writer:
        writer.write_table(table)
    return file.entry


def _compact(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A copy whose bytes depend on its values alone, and not on the batches that they were read in: a build that was
    resumed reads in others, and must write the same file."""
    return pa.chunked_array([chunk.take(pa.array(np.arange(len(chunk)))) for chunk in column.chunks], column.type)


def complete_segment(folder: Path, manifest: SegmentManifest) -> SegmentEntry:
    """Writes segment.json, the last file of a segment, and returns the segment's entry for an index's manifest."""
    data = (manifest.model_dump_json(indent=2) + "\n").encode()
    write_atomically(folder / "segment.json", data, synced=False)
    return _entry(manifest, data)


def find_segment(folder: Path, documents: int, codebook: str | None) -> SegmentEntry | None:
    """The entry of a segment that an interrupted build completed, with the codebook of that checksum if any: None where
    it is not there, not whole or another."""
    try:
        data = (folder / "segment.json").read_bytes()
        manifest = SegmentManifest.model_validate_json(data)
        entry = _entry(manifest, data)
        verify_segment(folder, entry)
    except (FileNotFoundError, ValidationError, CorruptIndexError):
        return None
    is_it = (manifest.id, manifest.documents, manifest.codebook) == (folder.name, documents, codebook)
    return entry if is_it else None


def _entry(manifest: SegmentManifest, data: bytes) -> SegmentEntry:
    size = sum(file.bytes for file in manifest.files.values())
    return SegmentEntry(id=manifest.id, documents=manifest.documents, bytes=size, blake3=checksum(data))


def verify_segment(folder: Path, entry: SegmentEntry) -> SegmentManifest:
    """Checks the size and checksum of every file of a segment; raises CorruptIndexError naming the first that fails."""
    manifest = _read_manifest(folder, entry)
    for name, expected in manifest.files.items():
        _check_size(folder / name, expected)
        if measure(folder / name) != expected:
            raise CorruptIndexError(f"{folder / name} does not match its checksum in {folder / 'segment.json'}")
    return manifest


def open_segment(folder: Path, entry: SegmentEntry, *, verify: bool) -> Segment:
    """Opens a segment, after reading all of it if `verify`; raises CorruptIndexError naming the file that is wrong."""
    manifest = verify_segment(folder, entry) if verify else _read_manifest(folder, entry)
    for name, expected in manifest.files.items():
        _check_size(folder / name, expected)
    gaussians = map_array(folder / "gaussians.npy", np.dtype("<f4"), manifest.documents, 2 * manifest.k)
    ids = _map_table(folder / "ids.arrow", manifest.documents)
    if ids.schema.names != ["id", "order"]:
        raise CorruptIndexError(f"{folder / 'ids.arrow'} has columns {ids.schema.names}, not id and order")
    payload = None
    if "payload.arrow" in manifest.files:
        payload = _map_table(folder / "payload.arrow", manifest.documents)
    order = ids["order"].combine_chunks().to_numpy()
    return Segment(folder, manifest, gaussians, ids["id"], order, payload)


def _read_manifest(folder: Path, entry: SegmentEntry) -> SegmentManifest:
    path = folder / "segment.json"
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptIndexError(f"{path} is missing") from error
    if checksum(data) != entry.blake3:
        raise CorruptIndexError(f"{path} does not match its checksum in the index's manifest")
    try:
        manifest = SegmentManifest.model_validate_json(data)
    except ValidationError as error:
        raise CorruptIndexError(f"{path}: {error.errors()[0]['msg']}") from error
    if (manifest.id, manifest.documents) != (entry.id, entry.documents):
        raise CorruptIndexError(f"{path} describes another segment than the index's manifest expects")
    return manifest


def _check_size(path: Path, expected: FileEntry) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise CorruptIndexError(f"{path} is missing") from error
    if size != expected.bytes:
        raise CorruptIndexError(f"{path} has {size} bytes, not {expected.bytes}")


def write_array(path: Path, array: npt.NDArray[Any]) -> FileEntry:
    """Writes an array as NumPy does."""
    with checksummed(path) as file:
        np.save(file, array, allow_pickle=False)
    return file.entry


def map_array(path: Path, dtype: np.dtype[Any], rows: int, columns: int) -> npt.NDArray[Any]:
    """Maps a file of NumPy's; raises CorruptIndexError where it is not an array of that kind and shape."""
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise CorruptIndexError(f"{path} is missing") from error
    except (ValueError, EOFError) as error:
        raise CorruptIndexError(f"{path} is not an array: {error}") from error
    if array.shape != (rows, columns) or array.dtype != dtype:
        raise CorruptIndexError(f"{path} holds {array.dtype} {array.shape}, not {dtype} {(rows, columns)}")
    # Without the class, which takes longer to index than what is indexed.
    return array.view(np.ndarray)


def _map_table(path: Path, rows: int) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptIndexError(f"{path} is not an Arrow file: {error}") from error
    if table.num_rows != rows:
        raise CorruptIndexError(f"{path} has {table.num_rows} rows, not {rows}")
    return table
