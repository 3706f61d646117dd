"""What docs/scale.md rests on: constants that scripts/scale_measure.py has measured, as docs/scale-constants.json has
them, and the two ways in which they grow with an index.

Everything is of one machine and of documents like the sample's. Times are seconds of processors, not of clocks: other
work on the machine then changes little of them.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

from index.durable import write_where_told
from index.manifest import IndexKind

__all__ = ["CONSTANTS", "Constants", "Growth", "Latencies", "Line", "Measured", "Power", "Wire", "read", "write"]

CONSTANTS = Path(__file__).resolve().parent.parent / "docs" / "scale-constants.json"


class Strict(BaseModel):
    """A record without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Measured(Strict):
    """One index of a kind, of so many documents.

    `segment_bytes` are those of its segments, `shared_bytes` of its codebook and of its graph or lists, `memory_bytes`
    what a process takes to search it, files that are mapped not counted. `build_seconds` are of one processor, and so
    are those of a query, alone on one thread and in a batch on all. A scan reads `scanned_bytes` of a document, nothing
    where there is none, and `candidates` are scored exactly.
    """

    documents: PositiveInt
    segment_bytes: PositiveInt
    shared_bytes: int
    memory_bytes: PositiveInt
    build_seconds: PositiveFloat
    query_seconds: PositiveFloat
    batch_seconds: PositiveFloat
    scanned_bytes: NonNegativeInt
    candidates: PositiveInt
    recall: float | None


class Wire(Strict):
    """Bytes between whoever gathers and one shard, for one query, and seconds to merge what so many shards gave."""

    request_bytes: PositiveInt
    reply_bytes: PositiveInt
    merge_seconds: dict[int, PositiveFloat]


class Latencies(Strict):
    """How long searches of one shard took and waited, in seconds, that came at random: by the share of the time that it
    was busy. `service` is the mean of a search that waited for none."""

    what: str
    documents: PositiveInt
    service: PositiveFloat
    samples: dict[float, Annotated[list[PositiveFloat], Field(min_length=1)]]


class Constants(Strict):
    """All that was measured. `manifest_bytes` are those of a manifest without and for each segment, `verify_seconds`
    what checking a byte's checksum takes of a processor."""

    environment: dict[str, Any]
    note: str
    k: PositiveInt
    target_recall: float
    top_k: PositiveInt
    kinds: dict[IndexKind, Annotated[list[Measured], Field(min_length=2, max_length=2)]]
    wire: Wire
    manifest_bytes: tuple[float, float]
    verify_seconds: PositiveFloat
    latencies: Latencies


class Line(NamedTuple):
    """What grows by as much with each document: base + each * n, neither below zero."""

    base: float
    each: float

    @classmethod
    def through(cls, first: tuple[float, float], second: tuple[float, float]) -> Line:
        """The line through two points (n, value), or the one through zero where it would begin below."""
        (few, less), (many, more) = first, second
        each = max(0.0, (more - less) / (many - few))
        base = less - each * few
        return cls(base, each) if base >= 0 else cls(0.0, more / many)

    def at(self, n: float) -> float:
        """The value for n documents."""
        return self.base + self.each * n

    def most(self, value: float) -> float:
        """The documents up to which it is no more than that."""
        return max(0.0, value - self.base) / self.each if self.each else math.inf


class Power(NamedTuple):
    """What grows more slowly than documents do: factor * n^exponent, the exponent between 0 and 1."""

    factor: float
    exponent: float

    @classmethod
    def through(cls, first: tuple[float, float], second: tuple[float, float]) -> Power:
        """The curve through two points (n, value)."""
        (few, less), (many, more) = first, second
        exponent = min(1.0, max(0.0, math.log(more / less) / math.log(many / few)))
        return cls(more / math.pow(many, exponent), exponent)

    def at(self, n: float) -> float:
        """The value for n documents."""
        return self.factor * math.pow(n, self.exponent)

    def most(self, value: float) -> float:
        """The documents up to which it is no more than that."""
        return math.pow(value / self.factor, 1 / self.exponent) if self.exponent else math.inf


class Growth(NamedTuple):
    """What an index of a kind takes, by its documents: see Measured."""

    disk: Line
    memory: Line
    build: Line
    query: Line | Power
    batch: Line | Power
    scanned: int

    @classmethod
    def of(cls, kind: IndexKind, pair: list[Measured]) -> Growth:
        """Of two indexes of that kind."""

        def points(name: str) -> tuple[tuple[float, float], tuple[float, float]]:
            few, many = sorted(pair, key=lambda each: each.documents)
            return (few.documents, getattr(few, name)), (many.documents, getattr(many, name))

        of_segments, of_all = points("segment_bytes"), points("shared_bytes")
        few, many = ((n, its + shared) for (n, its), (_, shared) in zip(of_segments, of_all, strict=True))
        # A scan looks at all documents, or at a share of them that a recall sets; a walk need not.
        grows: type[Line] | type[Power] = Power if kind is IndexKind.HNSW else Line
        return cls(
            disk=Line.through(few, many),
            memory=Line.through(*points("memory_bytes")),
            build=Line.through(*points("build_seconds")),
            query=grows.through(*points("query_seconds")),
            batch=grows.through(*points("batch_seconds")),
            scanned=pair[-1].scanned_bytes,
        )


def read(path: Path = CONSTANTS) -> Constants:
    """The constants of a file; OSError or pydantic's ValidationError where it has none."""
    return Constants.model_validate_json(path.read_bytes())


def write(constants: Constants, path: Path = CONSTANTS) -> None:
    """Writes them, a list of numbers on one line."""
    text = re.sub(r"\[[\s\d.,e-]+\]", lambda found: re.sub(r"\s+", "", found[0]), constants.model_dump_json(indent=1))
    write_where_told(path, f"{text}\n".encode())
