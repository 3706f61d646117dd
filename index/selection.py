"""Which documents a search may find: those that have not been deleted, and that a filter lets through.

Where they are few of all, the float32 scan looks at these alone. No other scan knows of it: it finds some more, and
what may not be found is dropped. So that about as many are left as were wanted, `Selection.spread` says how many more,
by the share of the documents that may be found. Where those that may are unlike the query they are rarer among what it
finds, and it is asked again, for four times as many (`widened`). Where a scan would take longer than scoring all that
may be found, that is done instead (index.scan_cost).
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from index.arrow_files import require_valid
from index.documents import Numbers, Stop
from index.durable import checksum
from index.errors import InvalidOptionError, SearchStoppedError
from index.segments import Segment

__all__ = ["DocumentFilter", "Mask", "Selection", "Selector", "packed", "require_fields"]

Mask = npt.NDArray[np.bool_]

WIDER = 4
SPARSE = 0.3
"""The share of documents up to which copying them and scanning the copies takes less time than scanning all."""
SURPLUS = 1.25
"""How many more than the share says: it holds on average, and half of the scans would find too few."""
KEPT = 64
"""Filters whose documents are remembered, of each segment and of all: a megabyte each, for a million."""


class DocumentFilter(Protocol):
    """What documents must be like: index.filters."""

    @property
    def key(self) -> str:
        """The same for filters that let the same documents through."""

    @property
    def fields(self) -> frozenset[str]:
        """The payload columns that it looks at."""

    def mask(self, payload: pa.Table | None, ids: pa.ChunkedArray) -> Mask:
        """Which of n documents it lets through, (n,); InvalidOptionError where a column has another type."""


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """allowed: (n,), by document number; count: how many are; share: of what a scan finds, how many of these are to be
    expected."""

    allowed: Mask
    count: int
    share: float
    _parts: dict[tuple[int, int], "Selection"] = field(default_factory=dict)

    @classmethod
    def of(cls, allowed: Mask) -> "Selection":
        """The selection of these documents."""
        count = int(np.count_nonzero(allowed))
        return cls(allowed, count, count / max(1, len(allowed)))

    @property
    def is_sparse(self) -> bool:
        """Whether so few are allowed that these alone are worth scanning."""
        return self.count <= SPARSE * len(self.allowed)

    def part(self, start: int, stop: int) -> "Selection":
        """The same of some of the documents, numbered from 0."""
        key = (start, stop)
        if key not in self._parts:
            part = Selection.of(self.allowed[start:stop])
            whole = self.count / max(1, len(self.allowed))
            # What a widened selection has come to, its parts have, too.
            self._parts[key] = replace(part, share=part.share * (self.share / whole if whole else 1.0))
        return self._parts[key]

    def spread(self, count: int) -> int:
        """How many documents to find so that `count` of them are likely to be allowed."""
        total = len(self.allowed)
        if self.count == 0:
            return 0
        return min(total, math.ceil(count * min(SURPLUS, 1 + 8 * (1 - self.share)) / self.share))

    def widened(self) -> "Selection":
        """The same, expected to be rarer."""
        return replace(self, share=self.share / WIDER, _parts={})

    def drop(self, numbers: Numbers) -> Numbers:
        """Numbers (b, c) without those of documents that are not allowed, as many columns as one row then has, in the
        order that they had; -1 fills a row."""
        allowed = self.allowed[np.maximum(numbers, 0)] & (numbers >= 0)
        return packed(np.where(allowed, numbers, -1))


def packed(numbers: Numbers) -> Numbers:
    """Rows (b, c) with what is -1 behind the rest, and cut to the longest rest."""
    is_none = numbers < 0
    longest = numbers.shape[1] - int(is_none.sum(axis=1).min(initial=numbers.shape[1]))
    order = np.argsort(is_none, axis=1, kind="stable")[:, :longest]
    return np.take_along_axis(numbers, order, axis=1)


class Selector:
    """Finds out which documents of a generation a filter lets through, and remembers it. Safe to call from several
    threads.

    What it finds out about a segment stays with the segment, for the generations that come.
    """

    def __init__(self, segments: Sequence[Segment], deleted: Sequence[Numbers], *, has_all_fields: bool = True) -> None:
        """`deleted` are the rows (any,) of each segment that are no documents any more. Where other segments of the
        index may have fields that these have not, not `has_all_fields`, no field is unknown."""
        self._segments = segments
        self._has_all_fields = has_all_fields
        self._turn = threading.Lock()
        self._known: OrderedDict[str, Selection] = OrderedDict()
        self.live: Selection | None = None
        """All documents; None where none has been deleted."""
        if any(len(rows) for rows in deleted):
            alive = []
            for segment, rows in zip(segments, deleted, strict=True):
                its = np.ones(len(segment), dtype=np.bool_)
                its[rows] = False
                alive.append(its)
            self.live = Selection.of(np.concatenate(alive))

    @property
    def fields(self) -> frozenset[str]:
        """The payload columns of all segments."""
        return frozenset(name for segment in self._segments if segment.payload for name in segment.payload.schema.names)

    def of(self, filter: DocumentFilter | None, stop: Stop | None = None) -> Selection | None:  # noqa: A002 (as a request calls it)
        """The documents that may be found; None for all. Raises InvalidOptionError for a field that no document has, or
        whose type does not go with the filter, and SearchStoppedError where `stop` says so before it is evaluated."""
        if filter is None:
            return self.live
        # A key may be as long as a request.
        key = checksum(filter.key.encode())
        with self._turn:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        # Nobody who knows their filter waits for this; now and then, two evaluate the same.
        found = self._found(filter, key, stop)
        with self._turn:
            self._known[key] = found
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return found

    def _found(self, filter: DocumentFilter, key: str, stop: Stop | None) -> Selection:  # noqa: A002
        if self._has_all_fields:
            require_fields(filter, self.fields)
        masks = []
        for segment in self._segments:
            if stop is not None and stop():
                raise SearchStoppedError("nobody waits for the filter any more")
            masks.append(_mask(segment, filter, key))
        allowed = np.concatenate(masks)
        return Selection.of(allowed if self.live is None else allowed & self.live.allowed)


def require_fields(filter: DocumentFilter, fields: frozenset[str]) -> None:  # noqa: A002
    """Raises InvalidOptionError where a filter looks at another field than documents have."""
    unknown = filter.fields - fields
    if unknown:
        known = f"they have {', '.join(sorted(fields))}" if fields else "they have none"
        raise InvalidOptionError(f"filter: no document has a field {min(unknown)!r}; {known}")


def _mask(segment: Segment, filter: DocumentFilter, key: str) -> Mask:  # noqa: A002
    # Other threads, and other generations, have it too: nothing is looked up twice.
    masks = segment.masks
    bits = masks.get(key)
    if bits is None:
        if segment.payload is not None and not segment.verified:
            # What is not of its type would be read from anywhere.
            names = [name for name in segment.payload.schema.names if name in filter.fields]
            require_valid(segment.folder / "payload.arrow", segment.payload.select(names))
        # In bits, since each generation has the bytes.
        bits = np.packbits(filter.mask(segment.payload, segment.ids))
        for oldest in list(masks)[: max(0, len(masks) + 1 - KEPT)]:
            masks.pop(oldest, None)
        masks[key] = bits
    found: Mask = np.unpackbits(bits, count=len(segment)).astype(np.bool_)
    return found
