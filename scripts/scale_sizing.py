"""How many machines an index of any size takes: arithmetic on measured constants (scale_constants) and a machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from scale_constants import Constants, Growth, Line

from index.build_lists import MOST_LISTS_BYTES
from index.manifest import IndexKind

__all__ = ["FEWEST_REPLICAS", "MOST", "Load", "Machine", "Plan", "largest_shard", "plan", "segments_of"]

FEWEST_REPLICAS = 2
"""So that one machine may go."""
MOST = {
    # FAISS numbers the documents that a graph links in int32.
    IndexKind.HNSW: (1 << 31) - 1,
    # The list of a document is an int32, and those of all are one file.
    IndexKind.IVF_FASTSCAN: MOST_LISTS_BYTES // 4,
}
"""The most documents of an index of these kinds, on however many machines."""
SHARED_OUT = (IndexKind.FLAT, IndexKind.FASTSCAN)
"""Kinds whose scan of one query is all cores' work."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What one shard runs on. `usable` is the share of memory for what a search holds: the rest is for Python, for
    files that are mapped and for a generation that is being opened. All cores together read `memory_rate` bytes a
    second; `together` is how much of a core another core adds to one query's scan, and `busy` the share of the time
    that cores are to work."""

    cores: int = 16
    memory_bytes: float = 128 * 2**30
    disk_bytes: float = 3.75e12
    network_bytes: float = 25e9 / 8
    memory_rate: float = 150e9
    usable: float = 0.6
    together: float = 0.7
    busy: float = 0.6


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked: queries a second, and the seconds that a shard may take for one."""

    queries: float = 100.0
    seconds: float = 0.1


class Plan(NamedTuple):
    """What an index of a kind takes, in bytes, seconds and machines.

    `bound` is what decided how many shards there are. `latency` is one shard's for a query that waits for none, `busy`
    the share of the time that its cores work, `gathered_bytes` what whoever gathers reads and writes a second,
    `measuring_bytes` the memory of the one machine of a build that measures recall,
    `opening` the seconds until a machine that has nothing has fetched and checked its shard.
    """

    documents: int
    kind: IndexKind
    shards: int
    replicas: int
    bound: str
    shard_documents: float
    memory_bytes: float
    disk_bytes: float
    storage_bytes: float
    latency: float
    busy: float
    gathered_bytes: float
    merge: float
    measuring_bytes: float
    build_core_hours: float
    build_hours: float
    opening: float

    @property
    def machines(self) -> int:
        """Replicas of all shards."""
        return self.shards * self.replicas


def cores_for_one(kind: IndexKind, machine: Machine) -> float:
    """How many times faster all cores answer one query than one does: a scan of all documents is shared out among
    them, lists and a graph are one thread's."""
    if kind in SHARED_OUT:
        return 1 + machine.together * (machine.cores - 1)
    return 1.0


def latency(kind: IndexKind, growth: Growth, machine: Machine, documents: float) -> float:
    """Seconds of one query that waits for none: its work, or what memory takes to be read where that is more."""
    work = growth.query.at(documents) / cores_for_one(kind, machine)
    return max(work, growth.scanned * documents / machine.memory_rate) if kind in SHARED_OUT else work


def largest_shard(kind: IndexKind, growth: Growth, machine: Machine, load: Load) -> tuple[float, str]:
    """The documents that one machine may hold, and what sets that bound."""
    bounds = {
        "memory": growth.memory.most(machine.usable * machine.memory_bytes),
        # Two generations while one takes the other's place.
        "disk": growth.disk.most(machine.disk_bytes / 2),
        "latency: cores": growth.query.most(load.seconds * cores_for_one(kind, machine)),
    }
    if kind in SHARED_OUT and growth.scanned:
        bounds["latency: memory"] = load.seconds * machine.memory_rate / growth.scanned
    bound = min(bounds, key=lambda name: bounds[name])
    return bounds[bound], bound


def plan(constants: Constants, kind: IndexKind, documents: int, machine: Machine, load: Load) -> Plan | str:
    """What so many documents take; why not, where a kind cannot hold them."""
    growth = Growth.of(kind, constants.kinds[kind])
    most, bound = largest_shard(kind, growth, machine, load)
    if documents > MOST.get(kind, documents):
        return f"an index of this kind has {MOST[kind]:,} documents at most"
    if kind is IndexKind.HNSW and documents > most:
        return f"one graph links all documents, and one machine holds {most:,.0f} ({bound})"
    shards = max(1, math.ceil(documents / most))
    each = documents / shards
    core_seconds = growth.batch.at(each)
    replicas = max(FEWEST_REPLICAS, math.ceil(load.queries * core_seconds / (machine.cores * machine.busy)))
    storage = growth.disk.at(documents)
    core_hours = growth.build.at(documents) / 3600
    # What links documents is one machine's, and most of the time.
    is_shared_out = kind is not IndexKind.HNSW
    wire = constants.wire
    disk = growth.disk.at(each)
    return Plan(
        documents=documents,
        kind=kind,
        shards=shards,
        replicas=replicas,
        bound=bound if shards > 1 else "none",
        shard_documents=each,
        memory_bytes=growth.memory.at(each),
        disk_bytes=disk,
        storage_bytes=storage,
        latency=latency(kind, growth, machine, each),
        busy=load.queries * core_seconds / (machine.cores * replicas),
        gathered_bytes=load.queries * shards * (wire.request_bytes + wire.reply_bytes),
        merge=merge_line(constants).at(shards),
        build_core_hours=core_hours,
        measuring_bytes=0.0 if kind is IndexKind.FLAT else growth.memory.at(documents),
        build_hours=core_hours / (machine.cores * (shards * replicas if is_shared_out else 1)),
        opening=disk / machine.network_bytes + disk * constants.verify_seconds / machine.cores,
    )


def merge_line(constants: Constants) -> Line:
    """Seconds to merge what shards gave, by how many these are."""
    points = sorted(constants.wire.merge_seconds.items())
    return Line.through(points[0], points[-1])


def segments_of(documents: int, segment_docs: int, manifest_bytes: tuple[float, float]) -> tuple[int, float]:
    """How many segments that many documents are, and the bytes of the manifest that names them."""
    segments = math.ceil(documents / segment_docs)
    base, each = manifest_bytes
    return segments, base + each * segments
