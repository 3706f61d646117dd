"""The files of a segment, written: its Gaussians and its documents as they come, and segment.json when it is whole.

vectors.faiss and projected.npy are those of the index's kind (index.build_encoding).
"""

import contextlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index.durable import checksum, checksummed, measure, naming, write_atomically
from index.gaussians import Gaussians
from index.records import FileEntry
from index.segment_records import SegmentEntry, SegmentManifest

__all__ = ["GaussiansWriter", "complete_segment", "write_ids", "write_payload"]

WRITTEN_BYTES = 1 << 20
"""Gaussians put side by side and hashed at a time: as much as stays in a core's cache."""
RESERVED_BYTES = 1 << 25
"""How much room a file takes on the disk at a time, before it is written to, which then takes half the time: no more,
because a corpus may end long before a segment is full."""


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
    return manifest.entry(checksum(data))
