"""One segment of an index, the unit of building, adding and searching: its files, opened and checked.

segments/<id>/
  vectors.faiss     the encoded documents, as FAISS writes an IndexFlatIP, or their codes
  gaussians.npy     float32 (n, 2k): means | variances, memory-mapped, for exact scores
  projected.npy     uint8 (n, any): projected vectors of 8 or 16 bits a number, memory-mapped, where codes are scanned
  ids.arrow         id (string) and order (uint32: row numbers in ascending order of id)
  payload.arrow     the source's other columns; absent where there are none
  segment.json      index.segment_records.SegmentManifest: counts, sizes and BLAKE3 checksums of the files above

index.segment_writing makes them.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import ValidationError

from index.array_files import map_array
from index.arrow_files import map_table, require_valid
from index.durable import checksum
from index.errors import CorruptIndexError
from index.gaussians import find_defects
from index.payload import payload_rows
from index.segment_records import SegmentEntry, SegmentManifest
from index.untrusted import IndexFile

__all__ = [
    "SEGMENT_RECORD_BYTES",
    "Segment",
    "find_segment",
    "open_segment",
    "parse_segment_manifest",
    "read_segment_manifest",
    "verify_segment",
]

SEGMENT_RECORD_BYTES = 1 << 16
"""More than any segment.json has."""
CHECKED_BYTES = 1 << 20
"""Gaussians checked at a time: as much as stays in a core's cache."""
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


def find_segment(folder: Path, documents: int, codebook: str | None) -> SegmentEntry | None:
    """The entry of a segment that an interrupted build completed, with the codebook of that checksum if any: None where
    it is not there, not whole or another."""
    try:
        data = IndexFile(folder / "segment.json", folders=2).contents(SEGMENT_RECORD_BYTES)
        manifest = SegmentManifest.model_validate_json(data)
        entry = manifest.entry(checksum(data))
        verify_segment(folder, entry)
    except (ValidationError, CorruptIndexError):
        return None
    is_it = (manifest.id, manifest.documents, manifest.codebook) == (folder.name, documents, codebook)
    return entry if is_it else None


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
    return parse_segment_manifest(path, IndexFile(path, folders=2).contents(SEGMENT_RECORD_BYTES), entry)


def parse_segment_manifest(path: Path | str, data: bytes, entry: SegmentEntry) -> SegmentManifest:
    """The same for the bytes of a segment.json that are said to lie there."""
    if checksum(data) != entry.blake3:
        raise CorruptIndexError(f"{path} does not match its checksum in the index's manifest")
    try:
        manifest = SegmentManifest.model_validate_json(data)
    except ValidationError as error:
        raise CorruptIndexError(f"{path}: {error.errors()[0]['msg']}") from error
    if (manifest.id, manifest.documents, manifest.size) != (entry.id, entry.documents, entry.bytes):
        raise CorruptIndexError(f"{path} describes another segment than the index's manifest expects")
    return manifest


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
    step = max(1, CHECKED_BYTES // (8 * k))
    for start in range(0, len(gaussians), step):
        # Copied, for torch takes no memory that it must not write to.
        block = torch.from_numpy(np.array(gaussians[start : start + step]))
        for defect in find_defects(block[:, :k], block[:, k:], limit=1):
            raise CorruptIndexError(f"{path}: {dataclasses.replace(defect, row=start + defect.row)}")
