"""Which shard has which segments of a generation, and how large that makes it.

A pure function of a manifest and of how many shards there are: whoever serves a generation finds out for itself, and
all find the same. From one generation to the next, segments that both have stay where they are as far as balance
allows: each has an order of preference among shards that depends on its id alone (rendezvous hashing), and takes the
first that has room; the largest choose first, since the small ones that writes add are what comes and goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from index.durable import checksum
from index.errors import InvalidOptionError
from index.manifest import IndexKind, Manifest
from index.memory import resident_bytes
from index.part import Part

__all__ = ["Shard", "most_shards", "shards_of"]

SLACK = 1.1
"""How much more rows than their share a shard may have so that segments stay where they are."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard of one generation: its number, and its segments' places in the manifest, ascending. There are none where
    a generation has fewer segments than shards."""

    number: int
    manifest: Manifest
    places: tuple[int, ...]

    @property
    def segments(self) -> list[str]:
        """The ids of its segments."""
        return [self.manifest.segments[place].id for place in self.places]

    @property
    def rows(self) -> int:
        """Rows of its segments: documents, and what was deleted of them."""
        return sum(self.manifest.segments[place].documents for place in self.places)

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return sum(self.manifest.segments[place].live for place in self.places)

    @property
    def bytes(self) -> int:
        """Bytes of its segments on disk."""
        return sum(self.manifest.segments[place].bytes for place in self.places)

    def resident_bytes(self, *, on_gpu: bool = False) -> int:
        """Bytes in memory of one process that serves it, but for files that it maps."""
        return resident_bytes(Part(self.manifest, self.places).manifest, on_gpu=on_gpu) if self.places else 0


def most_shards(manifest: Manifest) -> int:
    """How many shards a generation can have: one where a graph links all of its documents."""
    return 1 if manifest.kind is IndexKind.HNSW else len(manifest.segments)


def shards_of(manifest: Manifest, count: int) -> list[Shard]:
    """The shards of a generation, so many; raises InvalidOptionError for more than one where a graph spans all."""
    if count > 1 and manifest.kind is IndexKind.HNSW:
        raise InvalidOptionError(
            f"shards is {count}, but an index of kind {manifest.kind} has one graph over all of its documents: serve "
            "it in 1 shard with several replicas, or build it of kind fastscan or ivf-fastscan"
        )
    rows = [entry.documents for entry in manifest.segments]
    room = max(SLACK * sum(rows) / count, _longest(rows, count))
    taken, places = [0] * count, [list[int]() for _ in range(count)]
    largest_first = sorted(range(len(rows)), key=lambda place: (-rows[place], manifest.segments[place].id))
    for left, place in zip(range(len(rows), 0, -1), largest_first, strict=True):
        preferred = _preference(manifest.segments[place].id, count)
        empty = [shard for shard in preferred if not places[shard]]
        # None is left without a segment where there are as many.
        among = empty if left <= len(empty) else [each for each in preferred if taken[each] + rows[place] <= room]
        chosen = among[0] if among else min(preferred, key=taken.__getitem__)
        places[chosen].append(place)
        taken[chosen] += rows[place]
    return [Shard(number, manifest, tuple(sorted(its))) for number, its in enumerate(places)]


def _preference(segment: str, count: int) -> list[int]:
    return sorted(range(count), key=lambda shard: checksum(f"{segment} {shard}".encode()))


def _longest(rows: Sequence[int], count: int) -> int:
    """The rows of the fullest shard where each segment, the largest first, goes to the emptiest: balance alone."""
    taken = [0] * count
    for each in sorted(rows, reverse=True):
        emptiest = min(range(count), key=taken.__getitem__)
        taken[emptiest] += each
    return max(taken)
