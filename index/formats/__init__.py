"""One reader for each file format of a corpus, and the table that names them.

A reader takes a file and yields RawBatches: tables of the columns as they are. It checks the form of the file; rows are
checked by index.row_checks. All but the pickle's hold no more than a batch (or one of the file's compressed blocks).
"""

import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
from pydantic import ValidationError
from safetensors import SafetensorError

from index.errors import SourceError
from index.formats.arrays import read_npz, read_safetensors
from index.formats.columnar import MODEL_KEY, ROLE_KEY, read_arrow, read_metadata, read_parquet
from index.formats.json_lines import read_json_lines
from index.formats.pickles import read_pickle
from index.formats.request import ReadRequest
from index.formats.tsv import read_tsv
from index.records import ModelRecord
from index.rows import COMPRESSIONS, Columns, RawBatch, TextColumns, base_suffix, text_columns
from index.text.protocol import Role

__all__ = ["SUFFIXES", "TEXT_SUFFIXES", "is_known", "is_of_texts", "model_of", "read", "role_of"]


def is_known(path: Path, suffixes: Collection[str] | None = None) -> bool:
    """Whether the file's name ends in one of `suffixes`, those of Gaussians if not given."""
    known = base_suffix(path) in (SUFFIXES if suffixes is None else suffixes)
    return known and (base_suffix(path) == path.suffix.lower() or path.suffix.lower() in COMPRESSIONS)


def read(
    path: Path, columns: Columns | TextColumns, *, start: int, batch_rows: int, ids_only: bool = False
) -> Iterator[RawBatch]:
    """The batches of a file from record `start` on, at most `batch_rows` rows each; with `ids_only`, of the ids alone.

    Raises SourceError naming the file where it is missing, cut short, broken, or not of the form its suffix promises.
    """
    reader, name, errors = _READERS[base_suffix(path)]
    try:
        yield from reader(ReadRequest(path, columns, start, batch_rows, ids_only))
    except errors as error:
        raise SourceError(f"{path}: cannot be read as {name}: {error}") from error


def is_of_texts(path: Path, columns: Columns, text_column: str = "text") -> bool:
    """Whether a file holds texts and no Gaussians, as far as its first row tells. False where it cannot be read."""
    if not path.is_file() or not is_known(path, TEXT_SUFFIXES):
        return False
    texts = text_columns(columns.id, text_column)
    try:
        first = next(read(path, texts, start=0, batch_rows=1), None)
    except SourceError:
        return False
    names = [] if first is None else first.table.column_names
    return text_column in names and not set(columns.vectors) & set(names)


def model_of(path: Path) -> ModelRecord | None:
    """The model that a file says to be that of its Gaussians. Raises SourceError where that cannot be read."""
    recorded = _said(path, MODEL_KEY)
    try:
        return None if recorded is None else ModelRecord.model_validate_json(recorded)
    except ValidationError as error:
        raise SourceError(
            f"{path}: what it says of the model of its Gaussians ({MODEL_KEY.decode()} in its schema's metadata) is of "
            f"no model of this release: {error.errors()[0]['msg']}"
        ) from error


def role_of(path: Path) -> Role | None:
    """What a file says that the texts were of which its Gaussians were made. Raises SourceError as model_of does."""
    recorded = _said(path, ROLE_KEY)
    try:
        return None if recorded is None else Role(recorded.decode())
    except ValueError as error:
        raise SourceError(
            f"{path}: what it says of the role of its Gaussians ({ROLE_KEY.decode()} in its schema's metadata) is of "
            "no role of this release"
        ) from error


def _said(path: Path, key: bytes) -> bytes | None:
    try:
        return read_metadata(path).get(key)
    except _ARROW_ERRORS as error:
        raise SourceError(f"{path}: its schema cannot be read: {error}") from error


_Reader = tuple[Callable[[ReadRequest], Iterator[RawBatch]], str, tuple[type[Exception], ...]]

# Names of columns that are not UTF-8 come as UnicodeDecodeError.
_ARROW_ERRORS: Final = (pa.ArrowException, OSError, UnicodeDecodeError)
# zipfile raises the last three for passwords and for compressions that this Python was built without.
_ZIP_ERRORS: Final = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)
_PARQUET: Final[_Reader] = (read_parquet, "Parquet", _ARROW_ERRORS)
_ARROW: Final[_Reader] = (read_arrow, "Arrow IPC", _ARROW_ERRORS)
_JSON_LINES: Final[_Reader] = (read_json_lines, "JSON Lines", (OSError,))
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
    ".tsv": (read_tsv, "tab-separated lines", (OSError,)),
}

SUFFIXES: Final = tuple(suffix for suffix in _READERS if suffix != ".tsv")
"""The endings of names of files of Gaussians, in any case; JSON Lines also with .gz or .zst after them."""

TEXT_SUFFIXES: Final = (".parquet", ".arrow", ".feather", ".ipc", ".jsonl", ".ndjson", ".tsv")
"""The endings of names of files of texts; those of lines also with .gz or .zst after them."""
