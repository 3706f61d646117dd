"""The documents of several segments under one numbering: their Gaussians, ids and payload, fetched many at a time.

Document number i is row i - start of the segment whose range holds it; segments follow each other in manifest order.
"""

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import as_strided

from index.errors import CorruptIndexError, DocumentNotFoundError, InvalidGaussiansError
from index.gaussians import Gaussians
from index.segments import Segment

__all__ = ["Document", "DocumentStore", "GaussianStore", "Numbers", "Rows", "Stop", "require_id"]

Numbers = npt.NDArray[np.int64]
"""Document numbers, of any shape; -1 where there is no document."""
Stop = Callable[[], bool]
"""Asked now and then whether nobody waits for the results any more."""

FEW = 64
"""Documents whose ids are fetched one by one: Arrow takes as long to begin with many, in every segment."""

T = TypeVar("T")
Number = TypeVar("Number", np.float32, np.uint8)


def require_id(given: object) -> None:
    """Raises TypeError for an id that is no string."""
    if not isinstance(given, str):
        raise TypeError(f"the id of a document must be a string, not {type(given).__name__}: {given!r:.80}")


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """A document as stored; its mean and variance are (1, k) float32."""

    id: str
    gaussian: Gaussians
    payload: dict[str, Any]


class Rows(Generic[Number]):
    """Rows of several arrays (n_i, c) of one width, memory-mapped or not, at least one, under one numbering; safe to
    read from any number of threads.

    All of them lie in one address space, at distances that are multiples of some bytes. So one array over all of it,
    in steps of as many, has every row of every array as an item, among much that must not be touched, and NumPy gathers
    from it in one call: array by array, 500 rows of forty take four times as long.
    """

    def __init__(self, arrays: Sequence[npt.NDArray[Number]]) -> None:
        if len({(array.dtype, array.shape[1:]) for array in arrays}) != 1:
            raise ValueError(f"rows of {len(arrays)} arrays are not of one type and width")
        self.arrays: Sequence[npt.NDArray[Number]] = [np.ascontiguousarray(array) for array in arrays]
        self.starts = np.cumsum([0, *map(len, arrays)])
        self._dtype: np.dtype[Number] = arrays[0].dtype
        row = arrays[0].shape[1] * arrays[0].itemsize
        addresses = np.array([array.__array_interface__["data"][0] for array in self.arrays], dtype=np.int64)
        first = int(addresses.argmin())
        distances = addresses - addresses[first]
        step = math.gcd(row, *distances.tolist())
        self._rows = as_strided(
            self.arrays[first][:1].view(np.dtype((np.void, row)))[:, 0],
            shape=((int(distances.max()) + row * int(np.diff(self.starts).max())) // step,),
            strides=(step,),
            writeable=False,
        )
        self._steps_of_a_row = row // step
        self._offsets = distances // step - self.starts[:-1] * self._steps_of_a_row

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, numbers: Numbers) -> npt.NDArray[Number]:
        """The rows (m, c) of numbers (m,); where a number is -1, some row. Fastest where numbers ascend."""
        numbers = np.maximum(numbers, 0)
        if len(self.arrays) == 1:
            rows: npt.NDArray[Number] = self.arrays[0].take(numbers, axis=0)
            return rows
        if len(numbers) and int(numbers.max()) >= len(self):
            raise IndexError(f"row {int(numbers.max())} of {len(self)}")
        owners = np.searchsorted(self.starts, numbers, side="right") - 1
        items = self._rows[self._offsets[owners] + numbers * self._steps_of_a_row]
        gathered: npt.NDArray[Number] = items.view(self._dtype).reshape(len(numbers), self.arrays[0].shape[1])
        return gathered


class GaussianStore(Rows[np.float32]):
    """Gaussians, (n_i, 2k) float32 each, means | variances."""

    def __init__(self, arrays: Sequence[npt.NDArray[np.float32]]) -> None:
        super().__init__(arrays)
        self.k = int(arrays[0].shape[1]) // 2

    def gaussians(self, numbers: Numbers) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Means and variances (..., k); where a number is -1, those of some document. Fastest where numbers ascend."""
        both = self.take(numbers.ravel()).reshape(*numbers.shape, 2 * self.k)
        return both[..., : self.k], both[..., self.k :]

    def batch(self, numbers: Numbers) -> Gaussians:
        """These documents (m,) as a batch."""
        means, variances = self.gaussians(numbers)
        return Gaussians.unchecked(torch.from_numpy(means), torch.from_numpy(variances))

    def batches(self, rows: int) -> Iterator[Gaussians]:
        """All documents in order, at most `rows` at a time."""
        for _, means, variances in self.blocks(rows):
            # Copied, for torch takes no memory that it must not write to.
            yield Gaussians.unchecked(torch.from_numpy(means.copy()), torch.from_numpy(variances.copy()))

    def blocks(self, rows: int) -> Iterator[tuple[Numbers, npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """All documents in order, at most `rows` at a time: numbers (m,), means (m, k), variances (m, k)."""
        for start, array in zip(self.starts, self.arrays, strict=False):
            for first in range(0, len(array), rows):
                block = array[first : first + rows]
                numbers = np.arange(start + first, start + first + len(block), dtype=np.int64)
                yield numbers, block[:, : self.k], block[:, self.k :]

    def _by_array(self, numbers: Numbers) -> list[tuple[int, Numbers, Numbers]]:
        """Splits document numbers (m,) by array: (array, places in `numbers`, rows in the array)."""
        if len(self.arrays) == 1:
            return [(0, np.arange(len(numbers)), numbers)]
        owner = np.searchsorted(self.starts, numbers, side="right") - 1
        parts = []
        for number in np.unique(owner).tolist():
            places = np.flatnonzero(owner == number)
            parts.append((number, places, numbers[places] - self.starts[number]))
        return parts


def _holds(rows: Numbers, row: int) -> bool:
    place = int(np.searchsorted(rows, row))
    return place < len(rows) and int(rows[place]) == row


_NO_ROWS: Numbers = np.empty(0, dtype=np.int64)


class DocumentStore(GaussianStore):
    """Memory-mapped documents of the segments of an index."""

    def __init__(self, segments: Sequence[Segment], deleted: Sequence[Numbers] | None = None) -> None:
        """`deleted` are the rows (any,) of each segment, ascending, that are no documents any more."""
        super().__init__([segment.gaussians for segment in segments])
        self.segments = segments
        self.deleted = deleted if deleted is not None else [_NO_ROWS] * len(segments)
        self._starts: list[int] = self.starts.tolist()

    def ids(self, numbers: Numbers) -> list[str]:
        """The ids of these documents (m,), in their order."""
        if len(numbers) > FEW:
            return self._collect(numbers, Segment.ids_at)
        ids = []
        for number in numbers.tolist():
            place = bisect.bisect_right(self._starts, number) - 1
            ids.append(self.segments[place].ids[number - self._starts[place]].as_py())
        return ids

    def payloads(self, numbers: Numbers) -> list[dict[str, Any]]:
        """The payload of these documents (m,), in their order; empty where the index has none."""
        return self._collect(numbers, Segment.payload_at)

    def find(self, document_id: str) -> Document:
        """The document with this id; raises DocumentNotFoundError, and TypeError for an id that is no string."""
        require_id(document_id)
        for segment, start, deleted in zip(self.segments, self._starts, self.deleted, strict=False):
            row = segment.find(document_id)
            if row is not None and not _holds(deleted, row):
                return self.at(start + row)
        raise DocumentNotFoundError(f"no document has the id {document_id!r}")

    def at(self, number: int) -> Document:
        """The document with this number."""
        place = bisect.bisect_right(self._starts, number) - 1
        segment, row = self.segments[place], number - self._starts[place]
        both = torch.from_numpy(np.array(segment.gaussians[row : row + 1]))
        payload = segment.payload_at(np.array([row]))[0]
        try:
            return Document(segment.ids[row].as_py(), Gaussians(both[:, : self.k], both[:, self.k :]), payload)
        except InvalidGaussiansError as error:
            raise CorruptIndexError(f"{segment.folder / 'gaussians.npy'}, row {row}: {error}") from error

    def _collect(self, numbers: Numbers, fetch: Callable[[Segment, Numbers], list[T]]) -> list[T]:
        """What `fetch(segment, rows)` lists for each document, in their order, in one call per segment."""
        parts = self._by_array(numbers)
        if len(parts) == 1:
            return fetch(self.segments[parts[0][0]], parts[0][2])
        collected: dict[int, T] = {}
        for part, places, rows in parts:
            collected |= zip(places.tolist(), fetch(self.segments[part], rows), strict=True)
        return [collected[place] for place in range(len(numbers))]
