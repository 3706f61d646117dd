"""Which shard has which segments, and how many shards and processes fit on which machines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index import Encoding
from index.errors import InsufficientMemoryError, InvalidOptionError
from index.manifest import IndexKind, Manifest
from index.segment_records import SegmentEntry
from service.cluster.options import ClusterSettings
from service.cluster.plan import GENERATIONS, PROCESS_BYTES, Node, plan_for
from service.cluster.sharding import shards_of

GIB = 2**30
K = 127
"""Of which a document's folded vector takes 4 * (2 * 127 + 1) bytes."""
VECTOR = 4 * (2 * K + 1)


def manifest(*rows: int, first: int = 0, kind: IndexKind = IndexKind.FLAT) -> Manifest:
    """A manifest of segments of so many rows, numbered from `first`, which nothing was built of."""
    segments = [
        SegmentEntry.model_construct(
            id=f"0123456789ab-00000001-{first + place:05d}",
            documents=count,
            bytes=9 * K * count,
            blake3="",
            deletes=None,
        )
        for place, count in enumerate(rows)
    ]
    return Manifest.model_construct(
        k=K, kind=kind, segments=segments, documents=sum(rows), codes=None, generation=1, encoding=Encoding.FOLDED
    )


sizes = st.lists(st.integers(1, 1000), min_size=1, max_size=60)


@given(sizes, st.integers(1, 12))
def test_every_segment_is_in_one_shard_and_none_has_much_more_than_its_share(rows: list[int], count: int) -> None:
    shards = shards_of(manifest(*rows), count)
    assert [shard.number for shard in shards] == list(range(count))
    assert sorted(place for shard in shards for place in shard.places) == list(range(len(rows)))
    assert sum(shard.rows for shard in shards) == sum(rows)
    # What is put somewhere in spite of everything is put where there is least.
    assert max(shard.rows for shard in shards) <= max(1.1 * sum(rows) / count, sum(rows) / count + max(rows))
    assert all(shard.places for shard in shards) or len(rows) < count
    assert all(list(shard.places) == sorted(shard.places) for shard in shards)


@given(sizes, st.integers(1, 12))
def test_whoever_asks_gets_the_same_shards(rows: list[int], count: int) -> None:
    first, second = (shards_of(manifest(*rows), count) for _ in range(2))
    assert [shard.places for shard in first] == [shard.places for shard in second]


def test_equal_segments_are_spread_evenly() -> None:
    shards = shards_of(manifest(*[100] * 12), 4)
    assert [len(shard.places) for shard in shards] == [3, 3, 3, 3]


def test_what_is_written_moves_few_of_the_segments_that_were_there() -> None:
    before = shards_of(manifest(*[1000] * 40), 4)
    after = shards_of(manifest(*[1000] * 40, 10, 20, 30), 4)
    owners = [
        {name: shard.number for shard in its for name in shard.segments if not name.endswith(("40", "41", "42"))}
        for its in (before, after)
    ]
    moved = sum(owners[0][name] != owners[1][name] for name in owners[0])
    assert moved <= 4


def test_a_graph_is_not_divided() -> None:
    with pytest.raises(InvalidOptionError, match="1 shard with several replicas"):
        shards_of(manifest(5, 5, kind=IndexKind.HNSW), 2)
    assert [shard.places for shard in shards_of(manifest(5, 5, kind=IndexKind.HNSW), 1)] == [(0, 1)]


def machines(count: int, gib: float, cpus: float = 8.0) -> list[Node]:
    return [Node(cpus, 0.0, int(gib * GIB))] * count


def million(segments: int = 16) -> Manifest:
    """A million documents: 0.95 GiB of vectors."""
    return manifest(*[1_000_000 // segments] * segments)


def test_what_fits_on_one_machine_is_one_shard() -> None:
    plan = plan_for(million(), machines(1, 8), ClusterSettings())
    assert (len(plan.shards), plan.replicas, plan.survives) == (1, 1, False)
    # Half a core is the ingress's.
    assert plan.cpus == 7
    assert plan.memory == PROCESS_BYTES + GENERATIONS * 1_000_000 * VECTOR


def test_two_machines_have_a_process_of_each_shard_each_and_room_for_the_other_s() -> None:
    plan = plan_for(million(), machines(2, 8), ClusterSettings())
    assert (len(plan.shards), plan.replicas, plan.survives) == (1, 2, True)
    assert 2 * plan.cpus + 0.5 <= 8


def test_there_are_as_few_shards_as_their_memory_allows() -> None:
    # 0.5 GiB of the process, and 1.9 GiB of two generations of all documents, divided by the shards.
    plan = plan_for(million(), machines(8, 1.1), ClusterSettings(replicas=1))
    needed = PROCESS_BYTES + GENERATIONS * 1_000_000 * VECTOR / len(plan.shards)
    assert needed <= 1.1 * GIB
    assert PROCESS_BYTES + GENERATIONS * 1_000_000 * VECTOR / (len(plan.shards) - 1) > 1.1 * GIB
    assert plan.survives


def test_an_index_that_fits_nowhere_is_refused_with_both_sizes() -> None:
    with pytest.raises(InsufficientMemoryError, match=r"16 shards .* GiB a process; the 1 machines have 0\.60 GiB"):
        plan_for(million(), machines(1, 0.6), ClusterSettings())


def test_more_processes_than_hundredths_of_a_core_find_no_room() -> None:
    with pytest.raises(InsufficientMemoryError, match=r"64 shards with 1 processes each"):
        plan_for(million(64), machines(1, 0.01, cpus=1.0), ClusterSettings())


def test_what_is_asked_for_is_what_there_is() -> None:
    options = ClusterSettings(shards=3, replicas=2, max_replicas=5, replica_cpus=1.5, replica_memory=GIB)
    plan = plan_for(million(), machines(2, 8), options)
    assert (len(plan.shards), plan.replicas, plan.max_replicas) == (3, 2, 5)
    assert (plan.cpus, plan.memory, plan.threads) == (1.5, GIB, 2)


def test_more_shards_than_segments_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match="shards is 17, and the index has 16 segments"):
        plan_for(million(), machines(1, 8), ClusterSettings(shards=17))


def test_fewer_at_most_than_at_least_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match="max_replicas is 1, less than replicas, 2"):
        plan_for(million(), machines(1, 8), ClusterSettings(replicas=2, max_replicas=1))


def test_the_plan_says_what_each_shard_has() -> None:
    nodes = machines(2, 8)
    rows = plan_for(million(), nodes, ClusterSettings(shards=2)).rows(nodes)
    assert rows["shards"] == 2
    assert rows["shard 1"] == "500,000 documents in 8 segments, 0.53 GiB on disk, 0.47 GiB of them in memory"
    assert rows["machines"] == "2, of 16 cores and 16.00 GiB that Ray may set aside"


def test_what_is_all_given_waits_for_machines_that_are_not_there_yet() -> None:
    options = ClusterSettings(shards=4, replicas=2, replica_cpus=2, replica_memory=GIB)
    plan = plan_for(million(), [], options)
    assert (len(plan.shards), plan.replicas, plan.cpus, plan.memory, plan.survives) == (4, 2, 2, GIB, None)
    assert plan.rows([])["without any one machine"] == "not looked at: all of it is given"
    with pytest.raises(InsufficientMemoryError, match="no machine of the cluster has cores"):
        plan_for(million(), [], ClusterSettings(shards=4))
