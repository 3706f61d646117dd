"""How many shards a service has, how many processes each, and what Ray sets aside for one: worked out of the sizes that
a manifest says and of the machines that there are, and shown before it is applied.

Fewer shards are better: every one is one more answer to wait for. So there are as few as fit. A process needs memory
for two generations, since one that was built anew shares nothing with the one before it. Where there are several
machines, what Ray sets aside is kept so small that the processes of any machine find room on the others.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from index.errors import InsufficientMemoryError, InvalidOptionError
from index.manifest import IndexKind, Manifest
from service.cluster.options import ClusterSettings
from service.cluster.sharding import Shard, most_shards, shards_of

__all__ = ["ClusterPlan", "Node", "plan_for"]

PROCESS_BYTES = 512 * 2**20
"""What a process takes that has nothing open: Python, torch and FAISS."""
GENERATIONS = 2
ROOM = {True: "all of it finds room", False: "not all of it finds room", None: "not looked at: all of it is given"}
LISTED = 16
"""Shards up to which each has a line."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster, and what Ray may set aside on it: cores, GPUs, bytes."""

    cpus: float
    gpus: float
    memory: int


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """Shards, processes of each, and cores, GPUs and bytes of one of these; whether there is room for all of them
    without any one of the machines, None where that was not looked at."""

    shards: list[Shard]
    replicas: int
    max_replicas: int
    cpus: float
    gpus: float
    memory: int
    survives: bool | None

    @property
    def threads(self) -> int:
        """Cores that one search uses."""
        return max(1, round(self.cpus))

    def rows(self, nodes: Sequence[Node]) -> dict[str, object]:
        """What is to be shown of it."""
        scaled = f", up to {self.max_replicas:,} under load" if self.max_replicas > self.replicas else ""
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        return {
            "machines": f"{len(nodes):,}, of {sum(each.cpus for each in nodes):g} cores and "
            f"{_gib(sum(each.memory for each in nodes))} that Ray may set aside",
            "shards": len(self.shards),
            **dict(self._shard_rows()),
            "processes": f"{self.replicas} of each shard{scaled}",
            "set aside for one": f"{self.cpus:g} cores{gpus}, {_gib(self.memory)}",
            "without any one machine": ROOM[self.survives],
        }

    def _shard_rows(self) -> Iterator[tuple[str, str]]:
        if len(self.shards) <= LISTED:
            for shard in self.shards:
                yield f"shard {shard.number}", _described(shard)
            return
        by_size = sorted(self.shards, key=lambda shard: shard.rows)
        yield "smallest shard", _described(by_size[0])
        yield "largest shard", _described(by_size[-1])


def plan_for(manifest: Manifest, nodes: Sequence[Node], options: ClusterSettings) -> ClusterPlan:
    """What to run on these machines.

    Raises InsufficientMemoryError where the index does not fit, naming both sizes, and InvalidOptionError for options
    that go neither with it nor with each other.
    """
    if options.max_replicas is not None and options.max_replicas < (options.replicas or 1):
        raise InvalidOptionError(f"max_replicas is {options.max_replicas}, less than replicas, {options.replicas}")
    most = most_shards(manifest)
    if not nodes and not _is_given(options):
        raise InsufficientMemoryError(
            "no machine of the cluster has cores: add some, or give shards, replicas, replica-cpus and replica-memory, "
            "with which the service waits for machines to join"
        )
    if options.shards is not None and options.shards > most and manifest.kind is not IndexKind.HNSW:
        raise InvalidOptionError(
            f"shards is {options.shards}, and the index has {most} segments, which are not divided: build it with a "
            "smaller segment-docs, or have fewer shards"
        )
    if options.shards is not None and options.replicas is not None and _is_given(options):
        # What there is room for now may not be what there will be.
        given = shards_of(manifest, options.shards)
        return _plan(given, options.replicas, options.replica_cpus or 1.0, options, survives=None)
    counts = [options.shards] if options.shards is not None else _counts(most)
    wanted = [options.replicas] if options.replicas is not None else [2, 1] if len(nodes) > 1 else [1]
    # Two of each beat fewer shards: the one is an answer that waits for one more, the other none at all.
    for replicas in wanted:
        for count in counts:
            plan = _fitted(shards_of(manifest, count), replicas, nodes, options)
            if plan is not None:
                return plan
    smallest = _memory_of(shards_of(manifest, counts[-1]), options)
    raise InsufficientMemoryError(
        f"{counts[-1]} shards with {wanted[-1]} processes each take {_gib(smallest)} a process; the "
        f"{len(nodes)} machines have {', '.join(_gib(each.memory) for each in nodes)} that Ray may set aside, and "
        f"{sum(each.cpus for each in nodes):g} cores: add machines, or say how much a process takes (replica-memory, "
        "replica-cpus)"
    )


def _counts(most: int) -> list[int]:
    """How many shards to try: each number while they are few, and then in steps of an eighth."""
    counts = [1]
    while counts[-1] < most:
        counts.append(min(most, counts[-1] + max(1, counts[-1] // 8)))
    return counts


def _memory_of(shards: Sequence[Shard], options: ClusterSettings) -> int:
    if options.replica_memory is not None:
        return options.replica_memory
    largest = max(shard.resident_bytes(on_gpu=options.replica_gpus > 0) for shard in shards)
    return PROCESS_BYTES + GENERATIONS * largest


def _fitted(shards: list[Shard], replicas: int, nodes: Sequence[Node], options: ClusterSettings) -> ClusterPlan | None:
    """The plan for these shards, with as many cores each as can be shared out; None where there is no room."""
    memory, processes = _memory_of(shards, options), len(shards) * replicas
    largest = max(range(len(nodes)), key=lambda place: (nodes[place].memory, nodes[place].cpus))
    without_one = [node for place, node in enumerate(nodes) if place != largest]
    for survives, among in ((True, without_one), (False, list(nodes))):
        if not among:
            continue
        for cpus in _shares(among, processes, options):
            need = Node(cpus, options.replica_gpus, memory)
            if _find_room(among, need, processes, options):
                return _plan(shards, replicas, cpus, options, survives=survives)
    return None


def _is_given(options: ClusterSettings) -> bool:
    """Whether nothing is left to be worked out of what machines there are."""
    given = (options.shards, options.replicas, options.replica_cpus, options.replica_memory)
    return all(each is not None for each in given)


def _plan(
    shards: list[Shard], replicas: int, cpus: float, options: ClusterSettings, *, survives: bool | None
) -> ClusterPlan:
    most = max(replicas, options.max_replicas or replicas)
    return ClusterPlan(shards, replicas, most, cpus, options.replica_gpus, _memory_of(shards, options), survives)


def _shares(nodes: Sequence[Node], processes: int, options: ClusterSettings) -> Iterator[float]:
    """Cores of a process, the most first: whole ones where there are enough."""
    if options.replica_cpus is not None:
        yield options.replica_cpus
        return
    total = sum(node.cpus for node in nodes) - options.ingress_replicas * options.ingress_cpus
    share = min(total / processes, max(node.cpus for node in nodes))
    yield from (float(cpus) for cpus in range(math.floor(share), 0, -1))
    parts = (math.floor(100 * min(1.0, share) / divisor) / 100 for divisor in (1, 2, 4))
    # Of so many processes a hundredth of a core each may be too much.
    yield from (part for part in parts if part > 0)


def _find_room(nodes: Sequence[Node], need: Node, processes: int, options: ClusterSettings) -> bool:
    """Whether so many processes that need this, and those that take requests, find room on these machines."""
    cpus = [node.cpus for node in nodes]
    for _ in range(options.ingress_replicas):
        emptiest = max(range(len(nodes)), key=cpus.__getitem__)
        cpus[emptiest] -= options.ingress_cpus
    if min(cpus) < 0:
        return False
    room = 0
    for node, left in zip(nodes, cpus, strict=True):
        by_gpus = math.floor(node.gpus / need.gpus + 1e-9) if need.gpus else processes
        room += min(math.floor(left / need.cpus + 1e-9), node.memory // need.memory, by_gpus)
    return room >= processes


def _described(shard: Shard) -> str:
    return (
        f"{shard.documents:,} documents in {len(shard.places):,} segments, {_gib(shard.bytes)} on disk, "
        f"{_gib(shard.resident_bytes())} of them in memory"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB"
