"""Parquet and Arrow IPC files and streams, read record batch by record batch."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from index.cores import available_cores
from index.errors import SourceError
from index.formats.request import ReadRequest
from index.payload import plain
from index.rows import RawBatch, base_suffix

__all__ = ["MODEL_KEY", "ROLE_KEY", "read_arrow", "read_metadata", "read_parquet"]

MODEL_KEY: Final = b"gaussearch.model"
"""Where the metadata of a file's schema say which model made its Gaussians: an index.records.ModelRecord as JSON."""
ROLE_KEY: Final = b"gaussearch.role"
"""Where they say in which role it read the texts: document or query."""

_END_OF_STREAM: Final = b"\xff\xff\xff\xff\0\0\0\0"


def read_parquet(request: ReadRequest) -> Iterator[RawBatch]:
    # Buffered, because the default reads a whole column chunk, which may be gigabytes, at once; and not ahead, because
    # what pre_buffer has read stays in memory until the file's end.
    with pq.ParquetFile(request.path, buffer_size=2**16, pre_buffer=False, page_checksum_verification=True) as file:
        request.require(file.schema_arrow.names)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = list(itertools.accumulate(sizes))
        groups = [group for group, end in enumerate(ends) if end > request.start]
        if not groups:
            return
        first = ends[groups[0]] - sizes[groups[0]]
        names = list(request.wanted(file.schema_arrow.names)) if request.ids_only else None
        # Columns side by side where there are cores for it: reading and writing, a build keeps two busy. (Row groups
        # side by side gained nothing there, either.)
        threads = available_cores() > 2
        for batch in file.iter_batches(request.batch_rows, row_groups=groups, columns=names, use_threads=threads):
            yield from _slices(request, batch, first)
            first += batch.num_rows


def read_arrow(request: ReadRequest) -> Iterator[RawBatch]:
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


def _slices(request: ReadRequest, batch: pa.RecordBatch, first: int) -> Iterator[RawBatch]:
    """The part of a record batch that starts at row `first` of the file and is asked for, in pieces of batch_rows."""
    if request.ids_only:
        batch = batch.select(list(request.wanted(batch.schema.names)))
    for start in range(max(0, request.start - first), batch.num_rows, request.batch_rows):
        piece = batch.slice(start, request.batch_rows)
        # Offsets of a damaged file can point outside its buffers, and text may not be UTF-8: nothing below looks again.
        piece.validate(full=True)
        yield request.raw(_without_views(pa.Table.from_batches([piece])), first + start)


def _without_views(table: pa.Table) -> pa.Table:
    """The same with strings where there are views of strings: the same texts, in a form that all that follows reads."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string_view(field.type):
            strings = plain(table.column(place))
            table = table.set_column(place, field.with_type(strings.type), strings)
    return table


def read_metadata(path: Path) -> dict[bytes, bytes]:
    """What the schema of a Parquet or Arrow file says beside its columns; of any other file, nothing.

    Raises OSError and ArrowException for one that cannot be read.
    """
    if base_suffix(path) == ".parquet":
        return pq.read_schema(path).metadata or {}
    if base_suffix(path) in (".arrow", ".feather", ".ipc"):
        with pa.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            with pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source) as reader:
                return reader.schema.metadata or {}
    return {}
