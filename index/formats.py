"""One reader for each file format of a corpus, and the table that names them.

A reader takes a file and yields RawBatches: tables of the columns as they are. It checks the form of the file; rows are
checked by index.rows. All but the pickle's hold no more than a batch (or one of the file's own compressed blocks).
"""

import itertools
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open

from index.errors import SourceError
from index.json_lines import read_json_lines
from index.rows import COMPRESSIONS, Columns, RawBatch, base_suffix, place
from index.safe_pickle import load_arrays

__all__ = ["SUFFIXES", "is_known", "read"]

_BATCH_BYTES: Final = 256 * 2**20
"""What a batch of arrays takes at most, unless a single row takes more."""

_END_OF_STREAM: Final = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True, slots=True)
class _Request:
    path: Path
    columns: Columns
    start: int
    batch_rows: int
    ids_only: bool

    @property
    def wanted(self) -> tuple[str, ...]:
        return (self.columns.id,) if self.ids_only else (self.columns.id, self.columns.mean, self.columns.variance)

    def require(self, names: list[str]) -> None:
        """Raises SourceError unless the three columns are there, once each, and no other name is there twice."""
        for name in self.wanted:
            if name not in names:
                raise SourceError(
                    f"{self.path}: there is no column {name!r}; it has {', '.join(map(repr, names)) or 'none'}. "
                    "Say which columns hold id, mean and variance"
                )
        for name in names:
            if names.count(name) > 1:
                raise SourceError(f"{self.path}: there are {names.count(name)} columns named {name!r}")

    def raw(self, table: pa.Table, first: int) -> RawBatch:
        """A batch of a format whose rows are numbered from 0 and all become rows of the table."""
        rows = np.arange(first, first + table.num_rows, dtype=np.int64)
        return RawBatch(table, rows, rows, first + table.num_rows)


def is_known(path: Path) -> bool:
    """Whether the file's name ends in one of SUFFIXES."""
    known = base_suffix(path) in _READERS
    return known and (base_suffix(path) == path.suffix.lower() or path.suffix.lower() in COMPRESSIONS)


def read(path: Path, columns: Columns, *, start: int, batch_rows: int, ids_only: bool = False) -> Iterator[RawBatch]:
    """The batches of a file from record `start` on, at most `batch_rows` rows each; with `ids_only`, of the ids alone.

    Raises SourceError naming the file where it is missing, cut short, broken, or not of the form its suffix promises.
    """
    reader, name, errors = _READERS[base_suffix(path)]
    try:
        yield from reader(_Request(path, columns, start, batch_rows, ids_only))
    except errors as error:
        raise SourceError(f"{path}: cannot be read as {name}: {error}") from error


# Parquet and Arrow


def _read_parquet(request: _Request) -> Iterator[RawBatch]:
    # Buffered, because the default reads a whole column chunk, which may be gigabytes, at once.
    with pq.ParquetFile(request.path, buffer_size=2**20, page_checksum_verification=True) as file:
        request.require(file.schema_arrow.names)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = list(itertools.accumulate(sizes))
        groups = [group for group, end in enumerate(ends) if end > request.start]
        if not groups:
            return
        first = ends[groups[0]] - sizes[groups[0]]
        names = list(request.wanted) if request.ids_only else None
        for batch in file.iter_batches(request.batch_rows, row_groups=groups, columns=names):
            yield from _slices(request, batch, first)
            first += batch.num_rows


def _read_arrow(request: _Request) -> Iterator[RawBatch]:
    """An IPC file, with or without buffers compressed, or an IPC stream: told apart by their first bytes.

    A stream is required to end as the format says, because one whose writer was killed looks complete otherwise.
    """
    with pa.memory_map(str(request.path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        with pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source) as reader:
            request.require(reader.schema.names)
            first = 0
            for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
                yield from _slices(request, batch, first)
                first += batch.num_rows
        if not is_file:
            source.seek(max(0, source.size() - 8))
            if source.read(8) != _END_OF_STREAM:
                raise SourceError(f"{request.path}: it has no end-of-stream marker, so rows may be missing")


def _slices(request: _Request, batch: pa.RecordBatch, first: int) -> Iterator[RawBatch]:
    """The part of a record batch that starts at row `first` of the file and is asked for, in pieces of batch_rows."""
    if request.ids_only:
        batch = batch.select(list(request.wanted))
    for start in range(max(0, request.start - first), batch.num_rows, request.batch_rows):
        piece = batch.slice(start, request.batch_rows)
        # Offsets of a damaged file can point outside its buffers, and text may not be UTF-8: nothing below looks again.
        piece.validate(full=True)
        yield request.raw(pa.Table.from_batches([piece]), first + start)


# NPZ, safetensors and the pickle: arrays side by side


class _Array(Protocol):
    """An array that can be read from front to back, `rows` rows at a time."""

    name: str
    shape: tuple[int, ...]
    row_bytes: int

    def skip(self, rows: int) -> None: ...
    def read(self, rows: int) -> pa.Array: ...


def _read_arrays(request: _Request, arrays: list[_Array]) -> Iterator[RawBatch]:
    request.require([array.name for array in arrays])
    arrays = [array for array in arrays if array.name in request.wanted or not request.ids_only]
    rows = _check_shapes(request, {array.name: array.shape for array in arrays})
    step = min(request.batch_rows, max(1, _BATCH_BYTES // max(1, sum(array.row_bytes for array in arrays))))
    for array in arrays:
        array.skip(min(request.start, rows))
    for first in range(request.start, rows, step):
        count = min(step, rows - first)
        yield request.raw(pa.table({array.name: _read_piece(request, array, first, count) for array in arrays}), first)


def _read_piece(request: _Request, array: _Array, first: int, count: int) -> pa.Array:
    try:
        return array.read(count)
    except (UnicodeError, pa.ArrowInvalid) as error:
        where = f"{place(request.path, first)} to {first + count - 1}"
        raise SourceError(f"{where}, array {array.name!r}: it is not valid text: {error}") from error


def _check_shapes(request: _Request, shapes: dict[str, tuple[int, ...]]) -> int:
    """The number of rows that all the arrays have."""
    rows = shapes[request.columns.id][0] if shapes[request.columns.id] else 0
    vectors = () if request.ids_only else (request.columns.mean, request.columns.variance)
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


def _to_arrow(values: np.ndarray[Any, Any]) -> pa.Array:
    """A one-dimensional array as a column, or a two-dimensional one as a column of lists."""
    if values.dtype.kind == "S":
        return pa.array(values, pa.binary()).cast(pa.string())
    if values.dtype.kind == "f" and values.dtype.itemsize > 8:
        values = values.astype(np.float64)
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _read_npz(request: _Request) -> Iterator[RawBatch]:
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
        return _to_arrow(values)


def _read_safetensors(request: _Request) -> Iterator[RawBatch]:
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
        return _to_arrow(values.view(f"S{values.shape[1]}").reshape(-1) if self._is_text else values)


def _read_pickle(request: _Request) -> Iterator[RawBatch]:
    """(means, variances, ids), read whole: a pickle has no other way, so it needs twice its size in memory.

    means, variances: an (n, k) array of floats or integers, or a list of (k,) arrays or of lists of numbers. ids: a
    list or a one-dimensional array of strings or integers. See index.safe_pickle for what is refused, and how.
    """
    loaded = load_arrays(request.path)
    if not isinstance(loaded, tuple | list) or len(loaded) != 3:
        raise SourceError(f"{request.path}: it must be a tuple of three: means, variances and ids")
    names = (request.columns.mean, request.columns.variance, request.columns.id)
    means = _pickled_vectors(request.path, names[0], loaded[0])
    variances = _pickled_vectors(request.path, names[1], loaded[1])
    ids = _pickled_ids(request.path, names[2], loaded[2])
    if not len(means) == len(variances) == len(ids):
        raise SourceError(f"{request.path}: {len(means)} means, {len(variances)} variances and {len(ids)} ids")
    table = pa.table(dict(zip(names, (means, variances, ids), strict=True))).select(list(request.wanted))
    for first in range(request.start, table.num_rows, request.batch_rows):
        yield request.raw(table.slice(first, request.batch_rows), first)


def _pickled_vectors(path: Path, name: str, value: Any) -> pa.Array:
    if isinstance(value, np.ndarray):
        if value.ndim != 2 or value.dtype.kind not in "iuf" or value.shape[1] == 0:
            raise SourceError(
                f"{path}: {name!r} is {value.dtype} of shape {value.shape}; it must be numbers, (rows, k)"
            )
        return _to_arrow(value)
    if not isinstance(value, list | tuple):
        raise SourceError(f"{path}: {name!r} is a {type(value).__name__}; it must be an array or a list of arrays")
    vectors = [np.asarray(row) if _is_plain(row) else row for row in value]
    for row, vector in enumerate(vectors):
        if not isinstance(vector, np.ndarray) or vector.ndim != 1 or vector.dtype.kind not in "iuf":
            raise SourceError(f"{place(path, row)}, column {name!r}: it must be a one-dimensional array of numbers")
    offsets = np.cumsum([0, *map(len, vectors)])
    numbers = _to_arrow(np.concatenate(vectors)) if vectors else pa.array([], pa.float64())
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), numbers)


def _is_plain(row: Any) -> bool:
    return isinstance(row, list | tuple) and {type(item) for item in row} <= {int, float}


def _pickled_ids(path: Path, name: str, value: Any) -> pa.Array:
    if isinstance(value, np.ndarray):
        if value.ndim != 1 or value.dtype.kind not in "iuUS":
            raise SourceError(
                f"{path}: {name!r} is {value.dtype} of shape {value.shape}; it must be strings or integers"
            )
        return _to_arrow(value)
    if not isinstance(value, list | tuple):
        raise SourceError(f"{path}: {name!r} is a {type(value).__name__}; it must be an array or a list of ids")
    for row, item in enumerate(value):
        if type(item) not in (str, int, type(None)):
            raise SourceError(f"{place(path, row)}, column {name!r}: {item!r:.80} is neither a string nor an integer")
    return pa.array([item if item is None else str(item) for item in value], pa.string())


def _read_json(request: _Request) -> Iterator[RawBatch]:
    return read_json_lines(
        request.path,
        request.columns,
        start=request.start,
        batch_rows=request.batch_rows,
        ids_only=request.ids_only,
    )


_Reader = tuple[Callable[[_Request], Iterator[RawBatch]], str, tuple[type[Exception], ...]]

# Names of columns that are not UTF-8 come as UnicodeDecodeError.
_ARROW_ERRORS: Final = (pa.ArrowException, OSError, UnicodeDecodeError)
# zipfile raises the last three for passwords and for compressions that this Python was built without.
_ZIP_ERRORS: Final = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)
_PARQUET: Final[_Reader] = (_read_parquet, "Parquet", _ARROW_ERRORS)
_ARROW: Final[_Reader] = (_read_arrow, "Arrow IPC", _ARROW_ERRORS)
_JSON_LINES: Final[_Reader] = (_read_json, "JSON Lines", (OSError,))
_PICKLE: Final[_Reader] = (_read_pickle, "a pickle of arrays", (pa.ArrowException, ValueError))

_READERS: Final[dict[str, _Reader]] = {
    ".parquet": _PARQUET,
    ".arrow": _ARROW,
    ".feather": _ARROW,
    ".ipc": _ARROW,
    ".npz": (_read_npz, "NPZ", _ZIP_ERRORS),
    ".safetensors": (_read_safetensors, "safetensors", (SafetensorError, OSError)),
    ".jsonl": _JSON_LINES,
    ".ndjson": _JSON_LINES,
    ".pkl": _PICKLE,
    ".pickle": _PICKLE,
}

SUFFIXES: Final = tuple(_READERS)
"""The endings of names that are read, in any case; JSON Lines also with .gz or .zst after them."""
