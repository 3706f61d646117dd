"""The fields of a file of FAISS's, read without FAISS, which believes the sizes that stand in it.

FAISS takes memory for as many numbers as a file says there are, and its searches follow what the file says where they
lie. So the files of an index are read here: all of those whose codes or vectors are all that is wanted of them, and of
the others whether FAISS can read them (index.faiss_forms, index.graph). Numbers are little-endian; a vector is a count
of eight bytes and as many items. The form has been the same since FAISS 1.5 and is tested against the one installed.
"""

import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["HEADER", "INNER_PRODUCT", "L2", "Fields", "Header"]

INNER_PRODUCT, L2 = 0, 1
"""FAISS's numbers for these metrics; others have one more field."""

_HEADER = struct.Struct("<iqqqBi")
HEADER = 4 + _HEADER.size
"""Bytes of the name of an index's form and of its header."""


class Header(NamedTuple):
    """What every index begins with."""

    dimensions: int
    documents: int
    is_trained: bool
    metric: int


class Fields:
    """Reads the fields of a file one after the other; ValueError for those that are not there."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data, self._place = memoryview(data), 0

    def __len__(self) -> int:
        return len(self._data)

    def take(self, size: int) -> memoryview:
        """So many bytes."""
        if not 0 <= size <= len(self._data) - self._place:
            raise ValueError(f"it ends after {len(self._data)} bytes, in the middle")
        self._place += size
        return self._data[self._place - size : self._place]

    def read(self, form: str) -> tuple[Any, ...]:
        """Numbers, by the letters of struct."""
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def name(self) -> str:
        """Four letters that say what follows."""
        return bytes(self.take(4)).decode("latin-1")

    def header(self) -> Header:
        """The header of an index."""
        dimensions, documents, _, _, is_trained, metric = _HEADER.unpack(self.take(_HEADER.size))
        if is_trained not in (0, 1) or metric not in (INNER_PRODUCT, L2):
            raise ValueError(f"its header says that is_trained is {is_trained} and metric {metric}")
        return Header(dimensions, documents, bool(is_trained), metric)

    def flag(self) -> bool:
        """A truth value."""
        (value,) = self.read("B")
        if value not in (0, 1):
            raise ValueError(f"a truth value is {value}")
        return bool(value)

    def vector(self, dtype: npt.DTypeLike, count: int | None = None) -> npt.NDArray[Any]:
        """The items of a vector, of which there must be `count` if that is given."""
        item = np.dtype(dtype).newbyteorder("<")
        (found,) = self.read("Q")
        if count is not None and found != count:
            raise ValueError(f"a part of it has {found} items, not {count}")
        return np.frombuffer(self.take(found * item.itemsize), item)

    def end(self) -> None:
        """ValueError where something is left."""
        if self._place != len(self._data):
            raise ValueError(f"it has {len(self._data) - self._place} bytes more than it needs")
