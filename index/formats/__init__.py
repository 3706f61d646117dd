"""One reader for each file format of a corpus, and the table that names them.

A reader takes a file and yields RawBatches: tables of the columns as they are. It checks the form of the file; rows are
checked by index.row_checks. All but the pickle's hold no more than a batch (or one of the file's compressed blocks).
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
from safetensors import SafetensorError

from index.errors import SourceError
from index.formats.arrays import read_npz, read_safetensors
from index.formats.columnar import read_arrow, read_parquet
from index.formats.json_lines import read_json_lines
from index.formats.pickles import read_pickle
from index.formats.request import ReadRequest
from index.rows import COMPRESSIONS, Columns, RawBatch, base_suffix

__all__ = ["SUFFIXES", "is_known", "read"]


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
        yield from reader(ReadRequest(path, columns, start, batch_rows, ids_only))
    except errors as error:
        raise SourceError(f"{path}: cannot be read as {name}: {error}") from error


def _read_json(request: ReadRequest) -> Iterator[RawBatch]:
    return read_json_lines(
        request.path,
        request.columns,
        start=request.start,
        batch_rows=request.batch_rows,
        ids_only=request.ids_only,
    )


_Reader = tuple[Callable[[ReadRequest], Iterator[RawBatch]], str, tuple[type[Exception], ...]]

# Names of columns that are not UTF-8 come as UnicodeDecodeError.
_ARROW_ERRORS: Final = (pa.ArrowException, OSError, UnicodeDecodeError)
# zipfile raises the last three for passwords and for compressions that this Python was built without.
_ZIP_ERRORS: Final = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)
_PARQUET: Final[_Reader] = (read_parquet, "Parquet", _ARROW_ERRORS)
_ARROW: Final[_Reader] = (read_arrow, "Arrow IPC", _ARROW_ERRORS)
_JSON_LINES: Final[_Reader] = (_read_json, "JSON Lines", (OSError,))
_PICKLE: Final[_Reader] = (read_pickle, "a pickle of arrays", (pa.ArrowException, ValueError))

_READERS: Final[dict[str, _Reader]] = {
    ".parquet": _PARQUET,
    ".arrow": _ARROW,
    ".feather": _ARROW,
    ".ipc": _ARROW,
    ".npz": (read_npz, "NPZ", _ZIP_ERRORS),
    ".safetensors": (read_safetensors, "safetensors", (SafetensorError, OSError)),
    ".jsonl": _JSON_LINES,
    ".ndjson": _JSON_LINES,
    ".pkl": _PICKLE,
    ".pickle": _PICKLE,
}

SUFFIXES: Final = tuple(_READERS)
"""The endings of names that are read, in any case; JSON Lines also with .gz or .zst after them."""
