"""Writers of one index on several machines: of two that race one publishes, and whoever dies leaves a whole index."""

import dataclasses
import datetime
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from index import BuildOptions, GaussearchError, LocalSearcher, build_index, delete_documents
from index.errors import PublicationConflictError
from index.remote.objects import Listed, ObjectStorage
from index.remote.removal import DEAD_DAYS, sweep
from index.remote.working_copy import Published
from tests.conftest import random_gaussians, write_corpus
from tests.object_storage import CHANGES, Fault, Storage
from tests.remote_workers import Running, Workers

K = 4
LOOK = 0.01
OPTIONS = BuildOptions(device="cpu", segment_docs=20)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.parquet", random_gaussians(30, K, seed=1))


@pytest.fixture
def built(storage: Storage, corpus: Path) -> Storage:
    build_index([corpus], storage.on("builder"), OPTIONS)
    return storage


def ids(storage: Storage, machine: str) -> set[str]:
    """The documents of the live generation, every byte of it checked by a machine that has nothing of it."""
    index = storage.on(machine)
    index.verify_stored(index.manifest())
    # Opening it compares what was fetched, too.
    searcher = LocalSearcher(index, device="cpu")
    found = searcher.search(random_gaussians(1, K, seed=1), len(searcher))
    return set(found[0].ids)


BASE = {f"d{row}" for row in range(30)}


@pytest.mark.parametrize("at", [r"manifests/.*json", "CURRENT"])
@pytest.mark.parametrize("first", [0, 1])
def test_of_two_that_are_let_go_at_once_one_publishes(built: Storage, workers: Workers, at: str, first: int) -> None:
    """Both have come to the same point. Both have the same number at the first, and one of their own at the second."""
    gates, running = [built.fail("hang", method="PUT", name=at) for _ in range(2)], []
    for place, gate in enumerate(gates):
        running.append(workers.start(built, f"machine{place}", "delete", ids=[f"d{place}"]))
        gate.reached.wait()
    for gate in gates[first:] + gates[:first]:
        gate.release.set()
    said = [each.wait() for each in running]
    (winner,) = [place for place, each in enumerate(said) if "generation" in each]
    lost = said[1 - winner]
    assert lost["error"] == "PublicationConflictError"
    assert "another writer has published generation" in lost["message"]
    assert "run the command again" in lost["message"]
    assert ids(built, "reader") == BASE - {f"d{winner}"}
    # What it says to do does it; and its manifest is gone.
    assert "generation" in workers.start(built, f"machine{1 - winner}", "delete", ids=[f"d{1 - winner}"]).wait()
    assert ids(built, "another reader") == BASE - {"d0", "d1"}
    published = Published.of(built.on("reader").storage)
    assert published.manifests == published.records


def test_rounds_of_writers_that_race_lose_nothing_and_make_nothing_twice(built: Storage) -> None:
    machines = [built.on(f"machine{place}") for place in range(3)]
    expected, published = set(BASE), 1
    for turn in range(4):
        start = threading.Barrier(len(machines))

        def change(place: int, turn: int = turn, start: threading.Barrier = start) -> str | None:
            start.wait()
            name = f"d{3 * turn + place}"
            try:
                delete_documents([name], machines[place])
            except PublicationConflictError:
                return None
            return name

        with ThreadPoolExecutor(len(machines)) as threads:
            gone = {name for name in threads.map(change, range(len(machines))) if name is not None}
        assert gone
        expected, published = expected - gone, published + len(gone)
        manifest = built.on("reader").manifest()
        assert (ids(built, "reader"), manifest.changes) == (expected, published - 1)


def test_one_that_stalls_before_current_has_lost_when_it_wakes(built: Storage, workers: Workers) -> None:
    gate = built.fail("hang", method="PUT", name="CURRENT")
    stalled = workers.start(built, "stalled", "delete", ids=["d0"])
    gate.reached.wait()
    assert built.on("reader").generations() == [1]
    for name in ("d1", "d2", "d3"):
        delete_documents([name], built.on("other"))
    assert "manifests/00000002.json" not in built.objects(), "of one that has been overtaken"
    gate.release.set()
    assert stalled.wait()["error"] == "PublicationConflictError"
    assert ids(built, "reader") == BASE - {"d1", "d2", "d3"}


def test_an_answer_that_is_lost_until_another_has_published_on_top(built: Storage, workers: Workers) -> None:
    """CURRENT is another then, and yet it has published: saying that it has not would have it done twice."""
    built.fail("lose", method="PUT", name="CURRENT")
    again = built.fail("hang", method="PUT", name="CURRENT")
    first = workers.start(built, "first", "delete", ids=["d0"])
    again.reached.wait()
    delete_documents(["d1"], built.on("other"))
    again.release.set()
    assert first.wait() == {"generation": 2}
    reader = built.on("reader")
    assert (reader.generations(), reader.manifest().changes) == ([2, 3], 2)
    assert reader.verify(2).documents == 29
    assert ids(built, "reader") == BASE - {"d0", "d1"}


@pytest.fixture
def going_back(built: Storage, tmp_path: Path, workers: Workers) -> Iterator[tuple[Fault, Running]]:
    """Generation 3 has just been published, whose writer is about to remove generation 1, of other segments."""
    other = write_corpus(tmp_path / "other.parquet", random_gaussians(25, K, seed=4))
    build_index([other], built.on("builder"), OPTIONS)
    removal = built.fail("hang", method="DELETE|POST", times=1)
    remover = workers.start(built, "remover", "delete", ids=["d0"])
    removal.reached.wait()
    assert built.on("reader").generations() == [1, 2, 3]
    yield removal, remover
    built.faulty.heal()


def test_who_goes_back_to_what_is_being_removed_is_told(
    built: Storage, workers: Workers, going_back: tuple[Fault, Running]
) -> None:
    removal, remover = going_back
    gate = built.fail("hang", method="PUT", name=r"manifests/.*json")
    late = workers.start(built, "late", "back", generation=1)
    gate.reached.wait()
    removal.release.set()
    assert remover.wait() == {"generation": 3}
    gate.release.set()
    said = late.wait()
    assert said["error"] == "PublicationConflictError"
    assert "generation 1" in said["message"]
    assert "removed by another writer meanwhile" in said["message"]
    assert built.on("reader").manifest().generation == 3
    assert len(ids(built, "reader")) == 24


def test_who_has_named_it_before_keeps_it(built: Storage, workers: Workers, going_back: tuple[Fault, Running]) -> None:
    removal, remover = going_back
    gate = built.fail("hang", method="PUT", name="CURRENT")
    early = workers.start(built, "early", "back", generation=1)
    gate.reached.wait()
    removal.release.set()
    assert remover.wait() == {"generation": 3}
    assert built.on("reader").generations() == [2, 3]
    gate.release.set()
    assert early.wait() == {"generation": 4}
    assert ids(built, "reader") == BASE


@pytest.mark.parametrize("how", ["drop", "hang"])
def test_whoever_is_killed_leaves_the_generation_before_or_the_next(
    built: Storage, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Killed at each of its requests that change anything, which is lost with it, or comes through after its death."""
    there, moment, finished = set(BASE), 0, False
    while not finished:
        name = f"n{moment}"
        source = write_corpus(tmp_path / f"{name}.parquet", random_gaussians(1, K, seed=moment), [name])
        fault = built.fail(how, method="|".join(CHANGES), after=moment)
        running = workers.start(built, "writer", "add", source=str(source))
        while not fault.reached.wait(LOOK) and not running.result.exists():
            pass
        finished = not fault.reached.is_set()
        said: Any = running.wait() if finished else running.kill()
        built.faulty.heal()
        if how == "hang":
            # What was on its way comes through.
            settled(built)
        assert said is None or "generation" in said
        after = ids(built, f"reader{moment}")
        assert after in (there, there | {name}), moment
        if finished:
            assert name in after
        there, moment = after, moment + 1
    assert moment > 10
    index = built.on("writer")
    delete_documents(["d0"], index)
    monkeypatch.setattr("index.remote.removal.DEAD_DAYS", -1)
    with index.lock():
        sweep(index)
    published = Published.of(index.storage)
    assert sorted(published.manifests) == sorted(published.records) == index.generations()
    needed = {str(path) for number in index.generations() for path in index.files(index.generation(number))}
    assert {name for name in built.objects() if name != "CURRENT" and not name.startswith("manifests/")} == needed
    assert ids(built, "last reader") == there - {"d0"}


@pytest.mark.parametrize("young", [True, False])
def test_what_a_build_goes_on_with_is_not_swept(built: Storage, monkeypatch: pytest.MonkeyPatch, young: bool) -> None:
    """Put anew between the look at how old all is and the removal of what is."""
    index, name = built.on("writer"), "segments/aaaaaaaaaaaa-00000009-00000/segment.json"
    built.faulty.put(f"{built.prefix}/{name}", b"x")
    listed = ObjectStorage.list

    def old(its: ObjectStorage, prefix: str) -> list[Listed]:
        found = listed(its, prefix)
        if young and prefix != "segments":
            return found
        ago = datetime.timedelta(days=DEAD_DAYS + 1)
        return [
            dataclasses.replace(each, modified=each.modified - ago) if each.name == name else each for each in found
        ]

    monkeypatch.setattr(ObjectStorage, "list", old)
    with index.lock():
        sweep(index)
    assert (name in built.objects()) is young
    assert ids(built, "reader") == BASE


def settled(storage: Storage) -> None:
    """Waits until the proxy has nothing under way."""
    looking = threading.Event()
    while storage.faulty.under_way:
        looking.wait(LOOK)


def test_a_build_that_is_killed_is_gone_on_with(storage: Storage, workers: Workers, corpus: Path) -> None:
    fault = storage.fail("drop", method="PUT", name="CURRENT")
    running = workers.start(storage, "one", "build", source=str(corpus))
    fault.reached.wait()
    assert running.kill() is None
    storage.faulty.heal()
    before = storage.asked("PUT", "gaussians")
    assert workers.start(storage, "one", "build", source=str(corpus)).wait() == {"generation": 2}
    assert storage.asked("PUT", "gaussians") == before
    assert ids(storage, "reader") == BASE


def test_a_reader_never_sees_two_generations_at_once(storage: Storage, tmp_path: Path) -> None:
    """Every document of a generation says which it is of, and is replaced by each publication."""
    corpora = [
        write_corpus(tmp_path / f"c{turn}.parquet", random_gaussians(25, K, seed=turn), of=[turn] * 25)
        for turn in range(6)
    ]
    build_index([corpora[0]], storage.on("writer"), OPTIONS)
    ended, seen, failed = threading.Event(), list[int](), list[Exception]()

    def read() -> None:
        reader = storage.on("reader")
        while not failed:
            last = ended.is_set()
            try:
                searcher = LocalSearcher(reader, device="cpu")
                (found,) = searcher.search(random_gaussians(1, K, seed=0), 25)
                (turn,) = {payload["of"] for payload in searcher.payloads(found.documents)}
                assert turn == searcher.manifest.generation - 1
                seen.append(turn)
            except (GaussearchError, OSError, ValueError, AssertionError) as error:
                failed.append(error)
            if last:
                return

    thread = threading.Thread(target=read)
    thread.start()
    for corpus in corpora[1:]:
        build_index([corpus], storage.on("writer"), OPTIONS)
    ended.set()
    thread.join()
    assert not failed
    assert seen == sorted(seen)
    assert seen[-1] == len(corpora) - 1
