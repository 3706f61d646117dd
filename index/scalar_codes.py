"""FAISS behind one seam, for projected vectors of 8 or 16 bits a number: found, stored, and read for a graph to walk.

A graph visits documents in any order, so that each costs a wait for memory: the fewer bytes, the shorter. With 8 bits a
number is a place in the range that the dimension has in a sample, with 16 it is a half-precision float. FAISS widens
either to float32 as it multiplies them with a query, which is never rounded.
"""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from index.codes import Codes
from index.durable import checksummed
from index.errors import CorruptIndexError
from index.faiss_fields import HEADER, INNER_PRODUCT, Fields, Header
from index.records import FileEntry
from index.untrusted import IndexFile

__all__ = [
    "Ranges",
    "bytes_of",
    "decode",
    "find_ranges",
    "no_ranges",
    "read_scalar_codes",
    "scalar_codes",
    "write_scalar_codes",
]

LARGEST = 60_000.0
"""What 16 bits hold, rounded down: what is larger is stored as this much."""
QUANTISER = 36
"""Bytes of what stands before the ranges in the file of an IndexScalarQuantizer."""

Ranges = npt.NDArray[np.float32]
"""(2, r): the least value of each dimension, and how far above it the greatest lies; (0, r) for 16 bits."""
Points = npt.NDArray[np.float32]


def find_ranges(points: Points) -> Ranges:
    """The ranges of points (s, r), for 8 bits. Points beyond them are stored as if they lay on the edge."""
    least = points.min(axis=0)
    # A dimension in which all are equal has no range, and any will do.
    return np.stack([least, np.maximum(points.max(axis=0) - least, np.finfo(np.float32).tiny)])


def no_ranges(dimensions: int) -> Ranges:
    """What stands for 16 bits."""
    return np.empty((0, dimensions), dtype=np.float32)


def bytes_of(ranges: Ranges) -> int:
    """Bytes of a code."""
    return int(ranges.shape[1]) * (1 if len(ranges) else 2)


def scalar_codes(points: Points, ranges: Ranges) -> Codes:
    """The codes (n, r or 2r) of points (n, r)."""
    codes: Codes = scalar_index(ranges).sa_encode(np.clip(points, -LARGEST, LARGEST) if not len(ranges) else points)
    return codes


def decode(codes: Codes, ranges: Ranges) -> Points:
    """What codes (n, r or 2r) stand for: (n, r)."""
    points: Points = scalar_index(ranges).sa_decode(codes)
    return points


def write_scalar_codes(path: Path, codes: Codes, ranges: Ranges) -> FileEntry:
    """Writes codes as FAISS writes an IndexScalarQuantizer, which any program with FAISS reads."""
    index = scalar_index(ranges)
    index.add_sa_codes(codes)
    with checksummed(path) as file:
        file.write(faiss.serialize_index(index).data)
    return file.entry


def read_scalar_codes(file: IndexFile, documents: int, ranges: Ranges) -> Codes:
    """Reads what `write_scalar_codes` wrote; raises CorruptIndexError unless it is so many codes of these ranges.

    FAISS reads nothing: all that stands before the codes follows from the ranges, and what is taken from what is
    expected.
    """
    path, dimensions = file.path, ranges.shape[1]
    with file.open() as opened:
        fields = Fields(opened.take(HEADER + QUANTISER + 4 * ranges.size + 8))
        try:
            form = fields.name()
            if form != "IxSQ":
                raise CorruptIndexError(f"{path} holds no codes, but something of the form {form!r}")
            header, (kind, _, _, width, code_bytes) = fields.header(), fields.read("iifQQ")
            if header != Header(dimensions, documents, True, INNER_PRODUCT):
                raise CorruptIndexError(
                    f"{path} holds {header.documents} codes of {header.dimensions} numbers, not {documents} of the "
                    f"index's {dimensions}"
                )
            (numbers,), stored = fields.read("Q"), fields.take(4 * ranges.size)
            (size,) = fields.read("Q")
        except ValueError as error:
            raise CorruptIndexError(f"{path} is not a FAISS index of codes: {error}") from error
        expected = _kind(ranges), dimensions, bytes_of(ranges), ranges.size
        if (kind, width, code_bytes, numbers) != expected or not np.array_equal(
            np.frombuffer(stored, "<f4"), ranges.ravel()
        ):
            raise CorruptIndexError(f"{path} has codes of other ranges than the index's codebook")
        if size != documents * code_bytes or opened.size != len(fields) + size:
            raise CorruptIndexError(f"{path} has {opened.size} bytes, not those of {documents} codes")
        codes = np.empty((documents, code_bytes), dtype=np.uint8)
        opened.fill(codes.data)
        opened.finish()
    return codes


def scalar_index(ranges: Ranges) -> Any:
    """An empty IndexScalarQuantizer, by inner product, of the ranges."""
    index: Any = faiss.IndexScalarQuantizer(ranges.shape[1], _kind(ranges), faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(np.ascontiguousarray(ranges).ravel(), index.sq.trained)
    index.is_trained = True
    return index


def _kind(ranges: Ranges) -> int:
    """FAISS's number for codes of these ranges."""
    return int(faiss.ScalarQuantizer.QT_8bit if len(ranges) else faiss.ScalarQuantizer.QT_fp16)
