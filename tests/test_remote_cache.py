"""The cache of a machine: bounded, shared by its processes, and never without what somebody uses."""

import shutil
import stat
from pathlib import Path

import pytest

from index import (
    BuildOptions,
    CompactOptions,
    LocalSearcher,
    build_index,
    compact_index,
    delete_documents,
    roll_back,
)
from index.errors import CorruptIndexError, InsufficientCacheError, InvalidOptionError
from index.remote.cache import Cache, CacheOptions, part_of
from index.remote.location import Location
from index.remote.remote_index import RemoteIndex
from tests.conftest import random_gaussians, write_corpus
from tests.object_storage import Storage
from tests.remote_workers import Workers

K = 4


@pytest.fixture
def built(storage: Storage, tmp_path: Path) -> Storage:
    """Four segments of 25 documents."""
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(100, K, seed=1))
    build_index([corpus], storage.on("builder"), BuildOptions(device="cpu", segment_docs=25))
    return storage


def largest(storage: Storage) -> int:
    """Bytes of a segment, which differ by a few."""
    return max(entry.bytes for entry in storage.on("reader").manifest().segments)


def cached(index: RemoteIndex) -> set[str]:
    """The segments of which there is anything in the cache."""
    return {path.parent.name for path in index.segments.glob("*/*")}


def test_segments_are_fetched_that_are_asked_for(built: Storage) -> None:
    index = built.on("reader")
    manifest = index.manifest()
    first, second, *_ = manifest.segments
    lease = index.fetch(manifest, [first])
    assert cached(index) == {first.id}
    index.fetch(manifest, [first, second])
    assert cached(index) == {first.id, second.id}
    assert built.asked("GET", f"{first.id}/gaussians") == 1
    lease.release()
    assert len(LocalSearcher(index)) == 100


@pytest.mark.parametrize("first", ["manifest", "build", "hold"])
def test_nobody_else_can_read_it_whatever_is_done_first(storage: Storage, tmp_path: Path, first: str) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(10, K, seed=1))
    build_index([corpus], storage.on("builder"), BuildOptions(device="cpu"))
    index = storage.on("builder" if first == "build" else "other")
    if first == "manifest":
        index.manifest()
    elif first == "hold":
        with index.hold(1):
            pass
    assert stat.S_IMODE(index.cache.folder.stat().st_mode) == 0o700


def test_looking_at_the_objects_leaves_nothing_here(built: Storage) -> None:
    """No segment is begun that no mark stands for, or beside who is fetching it."""
    index = built.on("reader")
    manifest = index.manifest()
    index.verify_stored(manifest)
    assert not cached(index)
    LocalSearcher(index)
    asked = built.asked("GET", "segment.json")
    assert len(index.files(manifest)) == len(built.on("another").files(manifest)) > 4
    assert built.asked("GET", "segment.json") == asked + 4


def test_what_was_begun_goes_with_what_it_is_of(built: Storage) -> None:
    index = built.on("reader", bytes=100)
    index.cache.lease("any", {"deletes/a.npy": 90}).release()
    begun = part_of(index.cache.index_folder("any") / "deletes" / "a.npy")
    begun.parent.mkdir()
    begun.touch()
    index.cache.lease("any", {"deletes/b.npy": 90})
    assert not begun.exists()


def test_what_has_not_been_asked_for_longest_makes_room(built: Storage) -> None:
    size = largest(built)
    index = built.on("reader", bytes=3 * size)
    manifest = index.manifest()
    one, two, three, four = manifest.segments
    for entry in (one, two, three, one):
        index.fetch(manifest, [entry]).release()
    index.fetch(manifest, [four]).release()
    assert cached(index) == {one.id, three.id, four.id}
    assert index.cache.used() == one.bytes + three.bytes + four.bytes


def test_what_is_in_use_stays_and_what_does_not_fit_is_told(built: Storage) -> None:
    size = largest(built)
    index = built.on("reader", bytes=3 * size)
    manifest = index.manifest()
    one, two, three, four = manifest.segments
    used = index.fetch(manifest, [one, two])
    index.fetch(manifest, [three]).release()
    index.fetch(manifest, [four]).release()
    assert cached(index) == {one.id, two.id, four.id}
    with pytest.raises(InsufficientCacheError) as told:
        LocalSearcher(index)
    message = str(told.value)
    assert f"would need {sum(entry.bytes for entry in manifest.segments):,} bytes" in message
    assert f"may have {3 * size:,}" in message
    assert "--cache-bytes or GAUSSEARCH_CACHE_BYTES" in message
    used.release()
    assert len(LocalSearcher(built.on("reader"))) == 100


def test_a_searcher_keeps_what_it_uses_as_long_as_it_lives(built: Storage, tmp_path: Path) -> None:
    index = built.on("reader")
    size = sum(entry.bytes for entry in index.manifest().segments)
    other = build_index(
        [write_corpus(tmp_path / "other.parquet", random_gaussians(30, K, seed=2))],
        f"{built.uri}/other",
        BuildOptions(device="cpu"),
    )
    searcher = LocalSearcher(built.on("reader", bytes=size), device="cpu")
    before = [list(each.ids) for each in searcher.search(random_gaussians(3, K, seed=9), 5)]
    with pytest.raises(InsufficientCacheError):
        LocalSearcher(RemoteIndex(other_location(built), CacheOptions(built.folder / "reader", size)))
    assert cached(index) == {entry.id for entry in index.manifest().segments}
    assert [list(each.ids) for each in searcher.search(random_gaussians(3, K, seed=9), 5)] == before
    del searcher
    # Of another index of the same machine, but the bound is of both.
    again = RemoteIndex(other_location(built), CacheOptions(built.folder / "reader", size))
    assert len(LocalSearcher(again)) == other.manifest.documents
    assert len(cached(index)) < 4


def other_location(built: Storage) -> Location:
    return Location.parse(f"{built.uri}/other")


def test_other_processes_keep_theirs_until_they_die(built: Storage, workers: Workers) -> None:
    index = built.on("reader")
    manifest = index.manifest()
    size = sum(entry.bytes for entry in manifest.segments)
    holder = workers.start(built, "reader", "hold")
    assert holder.said() == {"generation": 1}
    cache = Cache(CacheOptions(built.folder / "reader", size))
    with pytest.raises(InsufficientCacheError):
        cache.lease("another", {"segments/x": 1})
    assert len(cached(index)) == 4
    holder.kill()
    cache.lease("another", {"segments/x": size}).release()
    assert not cached(index)
    assert not list((built.folder / "reader" / "leases").iterdir())


def test_processes_that_open_at_once_fetch_once(built: Storage, workers: Workers) -> None:
    gate = built.fail("hang", name="gaussians")
    running = [workers.start(built, "reader", "search") for _ in range(3)]
    gate.reached.wait()
    gate.release.set()
    said = [each.wait() for each in running]
    assert said[0] == said[1] == said[2]
    assert said[0]["generation"] == 1
    for entry in built.on("reader").manifest().segments:
        assert built.asked("GET", f"{entry.id}/gaussians") == 1


def test_one_that_was_killed_while_it_fetched_is_followed(built: Storage, workers: Workers) -> None:
    gate = built.fail("hang", name="gaussians", after=2)
    running = workers.start(built, "reader", "search")
    gate.reached.wait()
    running.kill()
    gate.release.set()
    assert len(LocalSearcher(built.on("reader"))) == 100


@pytest.mark.parametrize("name", ["gaussians.npy", "vectors.faiss", "ids.arrow", "segment.json"])
def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(built: Storage, name: str) -> None:
    index = built.on("reader")
    manifest = index.manifest()
    LocalSearcher(index)
    path = index.segments / manifest.segments[1].id / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    before = built.asked("GET", "gaussians")
    assert len(LocalSearcher(index)) == 100
    assert path.read_bytes() == data
    # That segment, and no other.
    assert built.asked("GET", "gaussians") == before + 1


def test_a_writer_does_not_build_on_what_was_damaged(built: Storage) -> None:
    index = built.on("writer")
    delete_documents(["d1"], index)
    path = index.segments / index.manifest().segments[2].id / "gaussians.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    roll_back(index, 1)
    assert path.read_bytes() == data
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    manifest = compact_index(index, CompactOptions(device="cpu", retrain=True))
    assert (manifest.documents, manifest.changes) == (100, 0)
    assert index.verify() == manifest


def test_a_file_that_was_cut_short_or_removed_is_fetched_again(built: Storage) -> None:
    index = built.on("reader")
    LocalSearcher(index)
    one, two, *_ = index.manifest().segments
    (index.segments / one.id / "ids.arrow").write_bytes(b"")
    shutil.rmtree(index.segments / two.id)
    assert len(LocalSearcher(index)) == 100


def test_what_a_writer_has_made_is_not_fetched(built: Storage) -> None:
    index = built.on("builder")
    delete_documents(["d1"], index)
    assert len(LocalSearcher(index)) == 99
    assert not built.asked("GET", "segments/.*/gaussians")


def test_a_writer_is_given_room_for_what_it_makes(built: Storage, tmp_path: Path) -> None:
    """What is published stays at hand, whatever the bound, until the writer is done."""
    index = built.on("writer", bytes=1)
    corpus = write_corpus(tmp_path / "c.parquet", random_gaussians(50, K, seed=3))
    assert build_index([corpus], index, BuildOptions(device="cpu")).manifest.documents == 50
    with pytest.raises(InsufficientCacheError):
        delete_documents(["d1"], built.on("another", bytes=1))


def test_without_a_bound_it_is_a_share_of_the_disk(built: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    size = largest(built)
    free = int(2.7 * size)
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr("index.remote.cache.shutil.disk_usage", lambda _: usage(10 * size, 7 * size, free))
    index = built.on("reader")
    manifest = index.manifest()
    index.fetch(manifest, manifest.segments[:2]).release()
    limit = int(0.8 * (free + index.cache.used()))
    with pytest.raises(InsufficientCacheError, match=f"may have {limit:,}:"):
        LocalSearcher(index)


def test_where_it_lies_and_how_large_it_is_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("GAUSSEARCH_CACHE", raising=False)
    assert CacheOptions().resolved() == CacheOptions(tmp_path / "xdg" / "gaussearch", None)
    monkeypatch.setenv("GAUSSEARCH_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("GAUSSEARCH_CACHE_BYTES", "1000")
    assert CacheOptions().resolved() == CacheOptions(tmp_path / "mine", 1000)
    assert CacheOptions(tmp_path / "given", 5).resolved() == CacheOptions(tmp_path / "given", 5)
    for wrong in ("0", "-1", "1e9"):
        monkeypatch.setenv("GAUSSEARCH_CACHE_BYTES", wrong)
        with pytest.raises(InvalidOptionError, match="GAUSSEARCH_CACHE_BYTES"):
            CacheOptions().resolved()


def test_a_cached_file_that_storage_no_longer_has_is_told(built: Storage) -> None:
    index = built.on("reader")
    LocalSearcher(index)
    path = index.segments / index.manifest().segments[0].id / "ids.arrow"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    built.faulty.delete(f"{built.prefix}/segments/{path.parent.name}/ids.arrow")
    with pytest.raises(CorruptIndexError, match=f"{built.uri}/segments/{path.parent.name}/ids.arrow is missing"):
        LocalSearcher(index)
