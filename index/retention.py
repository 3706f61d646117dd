"""Which generations of an index are kept beside the live one: the newest, the young, and those that are pinned."""

import datetime
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["MOST_HOURS", "Retention"]

MOST_HOURS = 1_000_000
"""A hundred years and more: dates have an end."""


class Kept(Protocol):
    """What retention looks at of a generation: index.manifest.Manifest says what these are."""

    @property
    def created(self) -> datetime.datetime: ...

    @property
    def state(self) -> object: ...


@dataclass(frozen=True, slots=True)
class Retention:
    """Keeps the last `generations`, the live one among them, and whatever is younger than so many seconds.

    Two at least, so that a reader that is just opening the one before the live one can finish. Of generations with the
    same documents, which merging and measuring make, the last stands for all: or a few merges would leave nothing to go
    back to.
    """

    generations: int = 2
    seconds: float = 0.0

    def kept(self, generations: Mapping[int, Kept | None], pinned: Collection[int]) -> set[int]:
        """The numbers of those, none newer than the live one, that are to be kept; None stands for one that cannot be
        read."""
        descending = sorted(generations, reverse=True)
        documents = [each.state if each is not None else None for each in map(generations.get, descending)]
        states = [
            number
            for number, its, after in zip(descending, documents, [None, *documents], strict=False)
            if its is None or its != after
        ]
        newest = {*descending[:2], *states[: max(2, self.generations)]}
        oldest = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=self.seconds)
        young = {number for number, each in generations.items() if each is not None and each.created > oldest}
        return {*newest, *(generations.keys() & set(pinned)), *young}
