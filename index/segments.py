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
import dataclasses
import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import ValidationError

from index.arrow_files import map_table, require_valid
from index.durable import checksum, checksummed, measure, naming, write_atomically
from index.errors import CorruptIndexError
from index.gaussians import Gaussians, find_defects
from index.manifest import SegmentEntry, SegmentManifest
from index.payload import payload_rows
from index.records import FileEntry
from index.untrusted import IndexFile

__all__ = [
    "GaussiansWriter",
    "Segment",
    "complete_segment",
    "find_segment",
    "map_array",
    "open_segment",
    "read_rows",
    "read_segment_manifest",
    "rows_to_bytes",
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
MANIFEST_BYTES = 1 << 16
"""More than any segment.json has."""
HEADER_BYTES = 256
"""More than NumPy writes before an array of two dimensions."""
_ARRAY = re.compile(
    rb"\x93NUMPY\x01\x00(?P<size>..)"
    rb"\{'descr': '(?P<items>[!-&(-~]+)', 'fortran_order': False, 'shape': \((?P<shape>[0-9, ]*)\), \} *\n",
    re.DOTALL,
)
ORDERED_ROWS = 1 << 20
"""Ids compared at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """An open segment; all of it but the vectors is memory-mapped.

    gaussians: (n, 2k) float32, means | variances. ids: (n,) strings. order: (n,) uint32, rows by ascending id.
    payload: n rows, or None. `verified` is whether all of it but vectors.faiss has been read and checked. masks: what
    index.selection remembers of filters.
    """

    folder: Path
    manifest: SegmentManifest
    gaussians: npt.NDArray[np.float32]
    ids: pa.ChunkedArray
    order: npt.NDArray[np.uint32]
    payload: pa.Table | None
    verified: bool
    masks: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.manifest.documents

    @property
    def vectors_file(self) -> Path:
        """Where the encoded documents lie."""
        return self.folder / "vectors.faiss"

    def file(self, name: str) -> IndexFile:
        """One of its files, to be read; raises CorruptIndexError where segment.json does not list it."""
        return _file(self.folder, self.manifest, name)

    def ids_at(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """The ids of the documents at these rows."""
        return list(self.ids.take(pa.array(rows)).to_pylist())

    def payload_at(self, rows: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
        """The payload of the documents at these rows, a dictionary each, empty where the segment has none."""
        if self.payload is None or not self.payload.num_columns:
            return [{} for _ in rows]
        if not self.verified:
            # What is not of its type would be read from anywhere.
            for row in np.unique(rows).tolist():
                require_valid(self.folder / "payload.arrow", self.payload.slice(row, 1))
        try:
            return payload_rows(self.payload.take(pa.array(rows)))
        # Times of a zone that nobody knows, for one.
        except (pa.ArrowException, ValueError, KeyError, OverflowError) as error:
            raise CorruptIndexError(f"{self.folder / 'payload.arrow'} has values of no known form: {error}") from error

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
        with naming(self._path), self._path.open("r+b") as file:
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
        data = IndexFile(folder / "segment.json", folders=2).contents(MANIFEST_BYTES)
        manifest = SegmentManifest.model_validate_json(data)
        entry = _entry(manifest, data)
        verify_segment(folder, entry)
    except (ValidationError, CorruptIndexError):
        return None
    is_it = (manifest.id, manifest.documents, manifest.codebook) == (folder.name, documents, codebook)
    return entry if is_it else None


def _entry(manifest: SegmentManifest, data: bytes) -> SegmentEntry:
    return SegmentEntry(id=manifest.id, documents=manifest.documents, bytes=_size(manifest), blake3=checksum(data))


def verify_segment(folder: Path, entry: SegmentEntry) -> SegmentManifest:
    """Checks every file of a segment, its size, checksum and content; raises CorruptIndexError naming the first that
    fails."""
    segment = open_segment(folder, entry, verify=True)
    segment.file("vectors.faiss").verify()
    return segment.manifest


def open_segment(folder: Path, entry: SegmentEntry, *, verify: bool) -> Segment:
    """Opens a segment, after reading all of it if `verify`, but for vectors.faiss, which is checked by who reads it.

    Sizes, and that ids are ids, are always checked. Raises CorruptIndexError naming the file that is wrong.
    """
    manifest = read_segment_manifest(folder, entry)
    for name in manifest.files:
        with _file(folder, manifest, name).open():
            pass  # of the size that it should have
    gaussians = map_array(
        _file(folder, manifest, "gaussians.npy"), np.dtype("<f4"), manifest.documents, 2 * manifest.k, verify=verify
    )
    ids = map_table(_file(folder, manifest, "ids.arrow"), manifest.documents, verify=verify)
    order = _checked_order(folder / "ids.arrow", ids)
    payload = None
    if "payload.arrow" in manifest.files:
        payload = map_table(_file(folder, manifest, "payload.arrow"), manifest.documents, verify=verify)
    if verify:
        _require_gaussians(folder / "gaussians.npy", gaussians)
        if "projected.npy" in manifest.files:
            _file(folder, manifest, "projected.npy").verify()
    return Segment(folder, manifest, gaussians, ids["id"], order, payload, verify)


def _file(folder: Path, manifest: SegmentManifest, name: str) -> IndexFile:
    if name not in manifest.files:
        raise CorruptIndexError(f"{folder / 'segment.json'} lists no {name}")
    return IndexFile(folder / name, manifest.files[name], folders=2)


def read_segment_manifest(folder: Path, entry: SegmentEntry) -> SegmentManifest:
    """What segment.json says; raises CorruptIndexError where it is not what the index's manifest expects."""
    path = folder / "segment.json"
    data = IndexFile(path, folders=2).contents(MANIFEST_BYTES)
    if checksum(data) != entry.blake3:
        raise CorruptIndexError(f"{path} does not match its checksum in the index's manifest")
    try:
        manifest = SegmentManifest.model_validate_json(data)
    except ValidationError as error:
        raise CorruptIndexError(f"{path}: {error.errors()[0]['msg']}") from error
    if (manifest.id, manifest.documents, _size(manifest)) != (entry.id, entry.documents, entry.bytes):
        raise CorruptIndexError(f"{path} describes another segment than the index's manifest expects")
    return manifest


def _size(manifest: SegmentManifest) -> int:
    return sum(file.bytes for file in manifest.files.values())


def _checked_order(path: Path, ids: pa.Table) -> npt.NDArray[np.uint32]:
    """The column `order` of ids.arrow; raises CorruptIndexError unless it puts ids, all different, in their order."""
    if ids.schema.names != ["id", "order"] or ids.schema.types != [pa.string(), pa.uint32()]:
        raise CorruptIndexError(f"{path} has columns {_described(ids.schema)}, not id: string and order: uint32")
    require_valid(path, ids)
    if any(column.null_count for column in ids.columns):
        raise CorruptIndexError(f"{path} has rows without an id or a place in their order")
    order: npt.NDArray[np.uint32] = ids["order"].combine_chunks().to_numpy()
    if len(order) and int(order.max()) >= len(order):
        raise CorruptIndexError(f"{path} orders row {int(order.max())} of {len(order)}")
    last = None
    for start in range(0, len(order), ORDERED_ROWS):
        part = ids["id"].take(pa.array(order[start : start + ORDERED_ROWS])).combine_chunks()
        before = part if last is None else pa.concat_arrays([last, part])
        if not pc.all(pc.less(before[:-1], before[1:]), min_count=0).as_py():
            raise CorruptIndexError(f"{path} has an id twice, or its order is not that of its ids")
        last = part[-1:]
    return order


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in list(schema)[:8])


def _require_gaussians(path: Path, gaussians: npt.NDArray[np.float32]) -> None:
    """Raises CorruptIndexError naming the first row (n, 2k) that is no Gaussian."""
    k = gaussians.shape[1] // 2
    step = max(1, WRITTEN_BYTES // (8 * k))
    for start in range(0, len(gaussians), step):
        # Copied, for torch takes no memory that it must not write to.
        block = torch.from_numpy(np.array(gaussians[start : start + step]))
        for defect in find_defects(block[:, :k], block[:, k:], limit=1):
            raise CorruptIndexError(f"{path}: {dataclasses.replace(defect, row=start + defect.row)}")


def write_array(path: Path, array: npt.NDArray[Any]) -> FileEntry:
    """Writes an array as NumPy does."""
    with checksummed(path) as file:
        np.save(file, array, allow_pickle=False)
    return file.entry


def map_array(
    file: IndexFile, dtype: np.dtype[Any], rows: int, columns: int, *, verify: bool = False
) -> npt.NDArray[Any]:
    """Maps a file of NumPy's, after reading all of it if `verify`; raises CorruptIndexError where it is not an array of
    that kind and shape."""
    with file.open() as opened:
        if verify:
            opened.verify()
        mapped = opened.map()
    found, shape, start = _array_header(file.path, mapped)
    if found != dtype.str or shape != (rows, columns):
        raise CorruptIndexError(f"{file.path} holds {found} {shape}, not {dtype.str} {(rows, columns)}")
    if start % dtype.alignment or len(mapped) != start + rows * columns * dtype.itemsize:
        raise CorruptIndexError(f"{file.path} has {len(mapped)} bytes, which are not those of {dtype.str} {shape}")
    return np.frombuffer(mapped, dtype, rows * columns, start).reshape(rows, columns)


def rows_to_bytes(rows: npt.NDArray[np.int64]) -> bytes:
    """Row numbers, ascending, as a file of NumPy's: uint32."""
    file = io.BytesIO()
    np.save(file, rows.astype("<u4"), allow_pickle=False)
    return file.getvalue()


def read_rows(path: Path, data: bytes) -> npt.NDArray[np.int64]:
    """What `rows_to_bytes` made, out of a file; raises CorruptIndexError for anything else."""
    found, shape, start = _array_header(path, memoryview(data))
    if found != "<u4" or len(shape) != 1 or len(data) != start + 4 * shape[0]:
        raise CorruptIndexError(f"{path} holds {found} {shape}, not a list of row numbers")
    rows: npt.NDArray[np.int64] = np.frombuffer(data, "<u4", shape[0], start).astype(np.int64)
    if (np.diff(rows) <= 0).any():
        raise CorruptIndexError(f"{path} lists row numbers that do not ascend")
    return rows


def _array_header(path: Path, mapped: memoryview) -> tuple[str, tuple[int, ...], int]:
    """What a file of NumPy's says that it holds, row by row, and where that begins; CorruptIndexError where it is none.

    In the one form in which NumPy writes it. NumPy itself reads it as Python, which fails in more ways than one."""
    head = bytes(mapped[:HEADER_BYTES])
    match = _ARRAY.match(head)
    if match is None or match.end() != 10 + int.from_bytes(match["size"], "little"):
        raise CorruptIndexError(f"{path} is not an array, written row by row as NumPy does")
    shape = tuple(int(size) for size in match["shape"].decode().split(",") if size.strip())
    return match["items"].decode(), shape, match.end()
