"""NPZ and safetensors: arrays side by side, read from front to back without holding any of them whole."""

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.lib import format as npy
from safetensors import safe_open

from index.errors import SourceError
from index.formats.request import ReadRequest
from index.rows import RawBatch, place

__all__ = ["read_npz", "read_safetensors", "to_arrow"]

_BATCH_BYTES: Final = 256 * 2**20
"""What a batch of arrays takes at most, unless a single row takes more."""


class _Array(Protocol):
    """An array that can be read from front to back, `rows` rows at a time."""

    name: str
    shape: tuple[int, ...]
    row_bytes: int

    def skip(self, rows: int) -> None: ...
    def read(self, rows: int) -> pa.Array: ...


def _read_arrays(request: ReadRequest, arrays: list[_Array]) -> Iterator[RawBatch]:
    request.require([array.name for array in arrays])
    wanted = request.wanted([array.name for array in arrays])
    arrays = [array for array in arrays if array.name in wanted or not request.ids_only]
    rows = _check_shapes(request, {array.name: array.shape for array in arrays})
    step = min(request.batch_rows, max(1, _BATCH_BYTES // max(1, sum(array.row_bytes for array in arrays))))
    for array in arrays:
        array.skip(min(request.start, rows))
    for first in range(request.start, rows, step):
        count = min(step, rows - first)
        yield request.raw(pa.table({array.name: _read_piece(request, array, first, count) for array in arrays}), first)


def _read_piece(request: ReadRequest, array: _Array, first: int, count: int) -> pa.Array:
    try:
        return array.read(count)
    except (UnicodeError, pa.ArrowInvalid) as error:
        where = f"{place(request.path, first)} to {first + count - 1}"
        raise SourceError(f"{where}, array {array.name!r}: it is not valid text: {error}") from error


def _check_shapes(request: ReadRequest, shapes: dict[str, tuple[int, ...]]) -> int:
    """The number of rows that all the arrays have."""
    ids = shapes[request.columns.id_among(shapes)]
    rows = ids[0] if ids else 0
    vectors = () if request.ids_only else request.columns.vectors
    for name, shape in shapes.items():
        if name in vectors and (len(shape) != 2 or shape[1] == 0):
            raise SourceError(f"{request.path}: array {name!r} has shape {shape}; it must be (rows, k)")
        if len(shape) not in (1, 2) or 0 in shape[1:]:
            raise SourceError(f"{request.path}: array {name!r} has shape {shape}; it must be one- or two-dimensional")
        if shape[0] != rows:
            raise SourceError(
                f"{request.path}: array {name!r} has {shape[0]} rows and {request.columns.id!r} {rows}; "
                "every array must have one row for each id"
            )
    return rows


def read_npz(request: ReadRequest) -> Iterator[RawBatch]:
    """Members `<column>.npy` of a zip file, compressed or not, streamed side by side.

    id: (n,) integers, text ('U') or UTF-8 bytes ('S'). mean, variance: (n, k) floats or integers. Any other member must
    be payload: (n,) booleans, numbers, text or UTF-8 bytes, or (n, w) booleans or numbers.
    """
    with zipfile.ZipFile(request.path) as archive, ExitStack() as members:
        arrays: list[_Array] = [
            _NpyMember(request.path, entry.filename, members.enter_context(archive.open(entry)))
            for entry in archive.infolist()
        ]
        yield from _read_arrays(request, arrays)


class _NpyMember:
    """A .npy file inside a zip, read from front to back."""

    def __init__(self, path: Path, member: str, file: IO[bytes]) -> None:
        self.name = member.removesuffix(".npy")
        self._what = f"{path}: array {self.name!r}"
        self._file = file
        try:
            version = npy.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise SourceError(f"{self._what} is in version {version} of the .npy format; 1.0 and 2.0 are read")
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            self.shape, fortran_order, self._dtype = header(file)
        except ValueError as error:
            raise SourceError(f"{self._what} is not a .npy file: {error}") from error
        kinds = "biufUS" if len(self.shape) == 1 else "biuf"
        if self._dtype.kind not in kinds:
            raise SourceError(
                f"{self._what} is {self._dtype} of shape {self.shape}; ids and payload are booleans, numbers or text, "
                "one-dimensional, or numbers, two-dimensional"
            )
        if fortran_order and len(self.shape) > 1:
            raise SourceError(
                f"{self._what} is stored column by column; write numpy.ascontiguousarray of it, so that it can be "
                "read row by row"
            )
        self._unread = self.shape[0] if self.shape else 0
        self.row_bytes = self._dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))

    def skip(self, rows: int) -> None:
        self._unread -= rows
        left = rows * self.row_bytes
        while left:
            read = len(self._file.read(min(left, 2**20)))
            if not read:
                raise EOFError(f"array {self.name!r} ends early")
            left -= read

    def read(self, rows: int) -> pa.Array:
        data = self._file.read(rows * self.row_bytes)
        if len(data) != rows * self.row_bytes:
            raise EOFError(f"array {self.name!r} ends early")
        self._unread -= rows
        # Asking beyond the last row also makes zipfile compare its checksum.
        if self._unread == 0 and self._file.read(1):
            raise EOFError(f"array {self.name!r} goes on after its last row")
        values = np.ndarray((rows, *self.shape[1:]), self._dtype, data)
        return to_arrow(values)


def read_safetensors(request: ReadRequest) -> Iterator[RawBatch]:
    """Tensors named by the columns, read slice by slice from a memory map.

    id: (n,) integers, or (n, w) uint8, each row an id in UTF-8 padded with zero bytes. mean, variance: (n, k) of any
    float (bfloat16 and float8 included) or integer type. Any other tensor must be payload, (n,) or (n, w), boolean or
    numeric; payload of types that numpy lacks becomes float32.
    """
    with safe_open(str(request.path), framework="pt") as file:
        names = list(file.keys())
        arrays: list[_Array] = [
            _Tensor(request.path, name, file.get_slice(name), name == request.columns.id) for name in names
        ]
        yield from _read_arrays(request, arrays)


class _Tensor:
    """A tensor of a safetensors file, read from front to back."""

    def __init__(self, path: Path, name: str, tensor: Any, is_id: bool) -> None:
        self._path = path
        self.name = name
        self.shape = tuple(tensor.get_shape())
        self.row_bytes = 8 * int(np.prod(self.shape[1:], dtype=np.int64))
        self._tensor = tensor
        self._next = 0
        self._is_text = is_id and len(self.shape) == 2 and tensor.get_dtype() == "U8"

    def skip(self, rows: int) -> None:
        self._next += rows

    def read(self, rows: int) -> pa.Array:
        tensor = self._tensor[self._next : self._next + rows]
        self._next += rows
        if tensor.dtype.is_complex:
            raise SourceError(f"{self._path}: tensor {self.name!r} is {tensor.dtype}; it must be boolean or numeric")
        if tensor.dtype.is_floating_point and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
            tensor = tensor.float()
        values = tensor.numpy()
        return to_arrow(values.view(f"S{values.shape[1]}").reshape(-1) if self._is_text else values)


def to_arrow(values: np.ndarray[Any, Any]) -> pa.Array:
    """A one-dimensional array as a column, or a two-dimensional one as a column of lists."""
    if values.dtype.kind == "S":
        return pa.array(values, pa.binary()).cast(pa.string())
    if values.dtype.kind == "f" and values.dtype.itemsize > 8:
        values = values.astype(np.float64)
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
