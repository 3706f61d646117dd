"""Documents written into segments as they come: their Gaussians at once, their ids and payload when a segment is full.

What makes a segment complete, its vectors and segment.json, comes later (index.build_encoding).
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import pyarrow as pa
import torch

from index.durable import Syncer
from index.errors import SourceError
from index.gaussians import Gaussians
from index.payload import conformed, unified
from index.records import FileEntry
from index.segment_writing import GaussiansWriter, write_ids, write_payload
from index.sources import SourceBatch
from index.standardisation import MomentAccumulator

__all__ = ["DocumentBatch", "DocumentWriter", "WrittenSegment"]


class WrittenSegment(NamedTuple):
    """The documents of a segment as they have been written, and the moments of their Gaussians."""

    files: dict[str, FileEntry]
    moments: MomentAccumulator


class DocumentBatch(NamedTuple):
    """n documents: where they come from, ids (n,), Gaussians (n, k) and payload of n rows, if any."""

    file: Path
    ids: pa.Array
    gaussians: Gaussians
    payload: pa.Table | None

    def take(self, rows: Sequence[int]) -> "DocumentBatch":
        """These of the documents."""
        if len(rows) == len(self.ids):
            return self
        payload = None if self.payload is None else self.payload.take(pa.array(rows))
        return DocumentBatch(self.file, self.ids.take(pa.array(rows)), self.gaussians[torch.tensor(rows)], payload)


class _Rest(NamedTuple):
    """What a batch has beside its Gaussians."""

    file: Path
    ids: pa.Array
    payload: pa.Table | None


class DocumentWriter:
    """Writes documents into segments, one after the other, as they come: it holds their ids and payload, and of their
    Gaussians nothing.

    They are synced by the time they are published. A context manager, which closes what is open.
    """

    def __init__(self, folder: Callable[[int], Path], expected: int, ordinal: int, syncer: Syncer) -> None:
        """`folder` says where segment number `ordinal` and those after it lie; each may have about `expected`
        documents."""
        self._folder, self._expected, self._ordinal, self._syncer = folder, expected, ordinal, syncer
        self._gaussians: GaussiansWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._gaussians is not None:
            self._gaussians.close()

    @property
    def documents(self) -> int:
        """How many there are in the segment that is being written."""
        return 0 if self._gaussians is None else self._moments.documents

    def add(self, batch: SourceBatch | DocumentBatch) -> None:
        """Appends a batch to the segment, which it begins where there is none."""
        if self._gaussians is None:
            folder, k = self._folder(self._ordinal), batch.gaussians.k
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            self._gaussians = GaussiansWriter(folder / "gaussians.npy", self._expected, k)
            self._moments = _SegmentMoments(k)
            self._rest: list[_Rest] = []
        self._gaussians.write(batch.gaussians)
        self._moments.update(batch.gaussians)
        self._rest.append(_Rest(batch.file, batch.ids, batch.payload))

    def finish(self) -> WrittenSegment:
        """Writes the rest of the segment; raises ValueError where nothing has been added."""
        if self._gaussians is None:
            raise ValueError("a segment has at least one document")
        folder = self._folder(self._ordinal)
        files = {
            "gaussians.npy": self._gaussians.finish(),
            "ids.arrow": write_ids(folder / "ids.arrow", pa.concat_arrays([part.ids for part in self._rest])),
        }
        payload = _payload(self._rest)
        if payload is not None:
            try:
                files["payload.arrow"] = write_payload(folder / "payload.arrow", payload)
            except pa.ArrowException as error:
                # Lists within lists, too many deep.
                raise SourceError(f"{self._rest[0].file}: the payload cannot be stored: {error}") from error
        for name in files:
            self._syncer.sync(folder / name)
        self._gaussians = None
        self._ordinal += 1
        return WrittenSegment(files, self._moments.finish())


class _SegmentMoments:
    """The moments of a segment's Gaussians, the same to the last bit whatever batches they come in."""

    def __init__(self, k: int) -> None:
        self.documents = 0
        self._moments, self._waiting = MomentAccumulator(k), [Gaussians.unchecked(torch.empty(0, k), torch.empty(0, k))]

    def update(self, gaussians: Gaussians) -> None:
        """Adds a batch of any size."""
        self.documents += len(gaussians)
        chunk, waiting = self._moments.chunk, sum(map(len, self._waiting))
        first = min(len(gaussians), chunk - waiting)
        self._waiting.append(gaussians[:first])
        if waiting + first < chunk:
            return
        self._moments.update(Gaussians.concatenate(self._waiting))
        last = first + (len(gaussians) - first) // chunk * chunk
        if first < last:
            self._moments.update(gaussians[first:last])
        # Copied, or all of the batch would stay in memory with them.
        rest = gaussians[last:]
        self._waiting = [Gaussians.unchecked(rest.means.clone(), rest.variances.clone())]

    def finish(self) -> MomentAccumulator:
        """The moments of all that were added."""
        self._moments.update(Gaussians.concatenate(self._waiting))
        return self._moments


def _payload(batches: Sequence[_Rest]) -> pa.Table | None:
    """One table of the batches' payloads, null where a file has no such column; None where there are no columns.

    A column has one type, which holds those of all batches: whole numbers beside fractions are float64.
    """
    try:
        schema = unified([batch.payload for batch in batches])
        tables = [conformed(batch.payload, schema, len(batch.ids)) for batch in batches]
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        first, last = batches[0], batches[-1]
        raise SourceError(
            f"the payload columns between {first.file} and {last.file} have types that do not go together: {error}. "
            "Give the column one type, or leave it out"
        ) from error
    return pa.concat_tables(tables) if len(schema) else None
