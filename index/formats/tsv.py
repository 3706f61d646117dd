"""Reader of texts in lines of an id, a tab and a text, as MS MARCO has them, or with the names of columns before."""

import itertools
from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa

from index.errors import SourceError
from index.formats.lines import MAX_LINE_BYTES, lines_of
from index.formats.request import ReadRequest
from index.rows import RawBatch, RowDefect, place

__all__ = ["read_tsv"]

UNNAMED: Final = ("id", "text")


def read_tsv(request: ReadRequest) -> Iterator[RawBatch]:
    """Batches of a file of tab-separated lines. Nothing is quoted; blank lines are skipped, a byte order mark too.

    Where the first line has the names of the columns that are needed, it names the columns; otherwise there are two, id
    and text. A line with more or fewer fields than that, or that is no UTF-8, is a rejected record of the batch. Raises
    SourceError where the file is cut short or broken, and where there are other columns than two, and no names.
    """
    lines = lines_of(request.path)
    first = next(lines, None)
    if first is None:
        return
    names = _names(request, *first)
    if names is None:
        names, lines = list(UNNAMED), itertools.chain([first], lines)
    request.require(names)
    lines = itertools.islice(lines, request.start, None)
    ordinal = request.start
    while batch := _together(lines, request.batch_rows):
        yield _raw(request, names, batch, ordinal)
        ordinal += len(batch)


def _names(request: ReadRequest, number: int, line: bytes) -> list[str] | None:
    """The names of the columns, where the first line has them."""
    names = _fields(line)
    if names is None:
        # No UTF-8, and so rejected with the others that are none; names of columns would have had no need of more.
        return None
    if set(request.columns.needed(names)) <= set(names):
        return names
    if len(names) != len(UNNAMED):
        raise SourceError(
            f"{place(request.path, number)}: it has {len(names)} fields; without a first line that names the columns, "
            "there are two, id and text"
        )
    return None


def _together(lines: Iterator[tuple[int, bytes]], rows: int) -> list[tuple[int, bytes]]:
    batch: list[tuple[int, bytes]] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line[1])
        if len(batch) == rows or size > MAX_LINE_BYTES:
            break
    return batch


def _raw(request: ReadRequest, names: list[str], lines: list[tuple[int, bytes]], first: int) -> RawBatch:
    kept: list[list[str]] = []
    rows, ordinals, rejected = [], [], []
    for ordinal, (number, line) in enumerate(lines, start=first):
        fields = _fields(line)
        if fields is None or len(fields) != len(names):
            reason = "it is not UTF-8" if fields is None else f"it has {len(fields)} fields; the file has {len(names)}"
            rejected.append(RowDefect(number, None, line[:200].decode("utf-8", "replace").strip(), reason))
            continue
        kept.append(fields)
        rows.append(number)
        ordinals.append(ordinal)
    columns = {name: pa.array([fields[place] for fields in kept], pa.string()) for place, name in enumerate(names)}
    table = pa.table(columns).select(list(request.wanted(names)) if request.ids_only else names)
    return RawBatch(table, np.array(rows, np.int64), np.array(ordinals, np.int64), first + len(lines), rejected)


def _fields(line: bytes) -> list[str] | None:
    try:
        return line.rstrip(b"\r\n").decode().split("\t")
    except UnicodeDecodeError:
        return None
