"""The pickle of arrays that the upstream research code writes: (means, variances, ids)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from index.errors import SourceError
from index.formats.arrays import to_arrow
from index.formats.request import ReadRequest
from index.formats.safe_pickle import load_arrays
from index.rows import RawBatch, place

__all__ = ["read_pickle"]


def read_pickle(request: ReadRequest) -> Iterator[RawBatch]:
    """(means, variances, ids), read whole: a pickle has no other way, so it needs twice its size in memory.

    means, variances: an (n, k) array of floats or integers, or a list of (k,) arrays or of lists of numbers. ids: a
    list or a one-dimensional array of strings or integers. See index.formats.safe_pickle for what is refused, and how.
    """
    loaded = load_arrays(request.path)
    if not isinstance(loaded, tuple | list) or len(loaded) != 3:
        raise SourceError(f"{request.path}: it must be a tuple of three: means, variances and ids")
    names = (*request.columns.vectors, request.columns.id_among(()))
    means = _pickled_vectors(request.path, names[0], loaded[0])
    variances = _pickled_vectors(request.path, names[1], loaded[1])
    ids = _pickled_ids(request.path, names[2], loaded[2])
    if not len(means) == len(variances) == len(ids):
        raise SourceError(f"{request.path}: {len(means)} means, {len(variances)} variances and {len(ids)} ids")
    table = pa.table(dict(zip(names, (means, variances, ids), strict=True))).select(list(request.wanted(names)))
    for first in range(request.start, table.num_rows, request.batch_rows):
        yield request.raw(table.slice(first, request.batch_rows), first)


def _pickled_vectors(path: Path, name: str, value: Any) -> pa.Array:
    if isinstance(value, np.ndarray):
        if value.ndim != 2 or value.dtype.kind not in "iuf" or value.shape[1] == 0:
            raise SourceError(
                f"{path}: {name!r} is {value.dtype} of shape {value.shape}; it must be numbers, (rows, k)"
            )
        return to_arrow(value)
    if not isinstance(value, list | tuple):
        raise SourceError(f"{path}: {name!r} is a {type(value).__name__}; it must be an array or a list of arrays")
    vectors = [np.asarray(row) if _is_plain(row) else row for row in value]
    for row, vector in enumerate(vectors):
        if not isinstance(vector, np.ndarray) or vector.ndim != 1 or vector.dtype.kind not in "iuf":
            raise SourceError(f"{place(path, row)}, column {name!r}: it must be a one-dimensional array of numbers")
    offsets = np.cumsum([0, *map(len, vectors)])
    numbers = to_arrow(np.concatenate(vectors)) if vectors else pa.array([], pa.float64())
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), numbers)


def _is_plain(row: Any) -> bool:
    return isinstance(row, list | tuple) and {type(item) for item in row} <= {int, float}


def _pickled_ids(path: Path, name: str, value: Any) -> pa.Array:
    if isinstance(value, np.ndarray):
        if value.ndim != 1 or value.dtype.kind not in "iuUS":
            raise SourceError(
                f"{path}: {name!r} is {value.dtype} of shape {value.shape}; it must be strings or integers"
            )
        return to_arrow(value)
    if not isinstance(value, list | tuple):
        raise SourceError(f"{path}: {name!r} is a {type(value).__name__}; it must be an array or a list of ids")
    for row, item in enumerate(value):
        if type(item) not in (str, int, type(None)):
            raise SourceError(f"{place(path, row)}, column {name!r}: {item!r:.80} is neither a string nor an integer")
    return pa.array([item if item is None else str(item) for item in value], pa.string())
