"""Some of the segments of a generation, searched as if they were all of it: what one machine of a cluster has.

Scores are exact and standardisation is that of the whole index, so that what parts find is merged without calibration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from index.codes_record import GraphRecord, ListsRecord
from index.errors import InvalidOptionError
from index.manifest import IndexKind, Manifest

__all__ = ["Part"]

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Part:
    """The segments of a generation at these `places`, ascending, at least one; all of them where it is whole."""

    whole: Manifest
    places: tuple[int, ...]

    @classmethod
    def of(cls, manifest: Manifest, segments: Sequence[str] | None = None) -> "Part":
        """The part that has these segments, by their ids, all if None.

        Raises InvalidOptionError where there are none, where the generation has no such segment, and where a graph
        links them to others.
        """
        every = [entry.id for entry in manifest.segments]
        if segments is None:
            return cls(manifest, tuple(range(len(every))))
        wanted = set(segments)
        if not wanted or not wanted <= set(every):
            missing = min(wanted - set(every), default=None)
            named = "no segments are named" if missing is None else f"it has no segment {missing}"
            raise InvalidOptionError(f"generation {manifest.generation} cannot be opened in part: {named}")
        part = cls(manifest, tuple(place for place, name in enumerate(every) if name in wanted))
        if isinstance(manifest.structure, GraphRecord) and not part.is_whole:
            raise InvalidOptionError(
                f"an index of kind {manifest.kind} cannot be opened in part, since one graph links all of its "
                "documents: open it whole, or build it of another kind"
            )
        return part

    @property
    def is_whole(self) -> bool:
        """Whether it has all segments."""
        return len(self.places) == len(self.whole.segments)

    @property
    def covered(self) -> int:
        """How many of its segments, the first ones, the graph or lists are of."""
        return sum(place < self.whole.covered for place in self.places)

    @property
    def manifest(self) -> Manifest:
        """What the manifest of an index of these segments alone says."""
        if self.is_whole:
            return self.whole
        segments = [self.whole.segments[place] for place in self.places]
        changed: dict[str, object] = {"segments": segments, "documents": sum(entry.live for entry in segments)}
        lists = self.whole.structure
        if self.whole.codes is not None and isinstance(lists, ListsRecord):
            its = lists.model_copy(update={"segments": self.covered}) if self.covered else None
            changed["codes"] = self.whole.codes.model_copy(update={"lists": its})
            if its is None:
                # Written since the lists were made: their codes are scanned, all of them.
                changed["kind"] = IndexKind.FASTSCAN
        return self.whole.model_copy(update=changed)

    @property
    def covered_rows(self) -> int:
        """How many rows of the whole generation the graph or lists are of."""
        return sum(entry.documents for entry in self.whole.segments[: self.whole.covered])

    def rows_of(self, array: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """What an array (covered_rows, ...), in the order of the whole's segments, has of the segments of this part."""
        if self.is_whole:
            return array
        starts = np.cumsum([0, *(entry.documents for entry in self.whole.segments)])
        its = [array[starts[place] : starts[place + 1]] for place in self.places if place < self.whole.covered]
        return np.concatenate(its)
