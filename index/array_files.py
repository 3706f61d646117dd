"""Files of NumPy's, as an index has them: written as NumPy does, and read without believing what they say."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index.durable import checksummed
from index.errors import CorruptIndexError
from index.records import FileEntry
from index.untrusted import IndexFile

__all__ = ["HEADER_BYTES", "map_array", "read_rows", "rows_to_bytes", "write_array"]

HEADER_BYTES = 256
"""More than NumPy writes before an array of one or two dimensions."""
_ARRAY = re.compile(
    rb"\x93NUMPY\x01\x00(?P<size>..)"
    rb"\{'descr': '(?P<items>[!-&(-~]+)', 'fortran_order': False, 'shape': \((?P<shape>[0-9, ]*)\), \} *\n",
    re.DOTALL,
)


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
