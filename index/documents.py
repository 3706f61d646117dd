"""The documents of several segments under one numbering: their Gaussians, ids and payload, fetched many at a time.

Document number i is row i - start of the segment whose range holds it; segments follow each other in manifest order.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from index.errors import DocumentNotFoundError
from index.gaussians import Gaussians
from index.segments import Segment

__all__ = ["Document", "DocumentStore", "Numbers"]

Numbers = npt.NDArray[np.int64]
"""Document numbers, of any shape; -1 where there is no document."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """A document as stored; its mean and variance are (1, k) float32."""

    id: str
    gaussian: Gaussians
    payload: dict[str, Any]


class DocumentStore:
    """Memory-mapped documents; safe to read from any number of threads."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self.starts = np.cumsum([0, *map(len, segments)])
        self.k = segments[0].manifest.k

    def __len__(self) -> int:
        return int(self.starts[-1])

    def gaussians(self, numbers: Numbers) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Means and variances (..., k), one gather per segment; where a number is -1, those of some document."""
        flat = np.maximum(numbers.ravel(), 0)
        gathered = np.empty((len(flat), 2 * self.k), dtype=np.float32)
        for segment, places, rows in self._by_segment(flat):
            gathered[places] = segment.gaussians[rows]
        both = gathered.reshape(*numbers.shape, 2 * self.k)
        return both[..., : self.k], both[..., self.k :]

    def blocks(self, rows: int) -> Iterator[tuple[Numbers, npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """All documents in order, at most `rows` at a time: numbers (m,), means (m, k), variances (m, k)."""
        for start, segment in zip(self.starts, self.segments, strict=False):
            for first in range(0, len(segment), rows):
                block = segment.gaussians[first : first + rows]
                numbers = np.arange(start + first, start + first + len(block), dtype=np.int64)
                yield numbers, block[:, : self.k], block[:, self.k :]

    def ids(self, numbers: Numbers) -> list[str]:
        """The ids of these documents (m,), in their order."""
        return self._collect(numbers, Segment.ids_at)

    def payloads(self, numbers: Numbers) -> list[dict[str, Any]]:
        """The payload of these documents (m,), in their order; empty where the index has none."""
        return self._collect(numbers, Segment.payload_at)

    def find(self, document_id: str) -> Document:
        """The document with this id; raises DocumentNotFoundError."""
        for segment in self.segments:
            row = segment.find(document_id)
            if row is not None:
                both = torch.from_numpy(np.array(segment.gaussians[row : row + 1]))
                payload = segment.payload_at(np.array([row]))[0]
                return Document(document_id, Gaussians(both[:, : self.k], both[:, self.k :]), payload)
        raise DocumentNotFoundError(f"no document has the id {document_id!r}")

    def _collect(self, numbers: Numbers, fetch: Callable[[Segment, Numbers], list[T]]) -> list[T]:
        """What `fetch(segment, rows)` lists for each document, in their order, in one call per segment."""
        parts = self._by_segment(numbers)
        if len(parts) == 1:
            return fetch(parts[0][0], parts[0][2])
        collected: dict[int, T] = {}
        for segment, places, rows in parts:
            collected |= zip(places.tolist(), fetch(segment, rows), strict=True)
        return [collected[place] for place in range(len(numbers))]

    def _by_segment(self, numbers: Numbers) -> list[tuple[Segment, Numbers, Numbers]]:
        """Splits document numbers (m,) by segment: (segment, places in `numbers`, rows in the segment)."""
        if len(self.segments) == 1:
            return [(self.segments[0], np.arange(len(numbers)), numbers)]
        owner = np.searchsorted(self.starts, numbers, side="right") - 1
        parts = []
        for number in np.unique(owner):
            places = np.flatnonzero(owner == number)
            parts.append((self.segments[number], places, numbers[places] - self.starts[number]))
        return parts
