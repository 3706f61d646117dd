"""Work beside a build: items in order and a few at a time, files on their way to the disk, and what fails there."""

import errno
import gc
import itertools
import os
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from index.background import in_order, read_ahead
from index.durable import Syncer
from tests.serving import PATIENCE


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("ahead", [0, 1, 5, 100])
def test_results_come_in_order_and_each_once(threads: int, ahead: int) -> None:
    def square(number: int) -> int:
        time.sleep(0.001 * (number % 3))
        return number * number

    with ThreadPoolExecutor(threads) as pool:
        assert list(in_order(pool, square, range(20), ahead=ahead)) == [number**2 for number in range(20)]
        assert list(in_order(pool, square, [], ahead=ahead)) == []


def test_no_more_items_are_taken_than_may_be_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(30):
            taken += 1
            yield number

    with ThreadPoolExecutor(1) as pool:
        for done, _ in enumerate(in_order(pool, abs, items(), ahead=3), start=1):
            assert taken <= done + 3
    assert taken == 30


def test_so_many_items_are_worked_on_at_a_time() -> None:
    together = threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        # Breaks the barrier, and so fails, unless three are there at a time.
        list(in_order(pool, lambda _: together.wait(PATIENCE), range(9), ahead=2))


def test_a_failure_is_told_and_what_has_not_begun_is_dropped() -> None:
    done: list[int] = []
    release = threading.Event()

    def work_on(number: int) -> None:
        if number == 1:
            raise OSError(errno.ENOSPC, "the disk is full")
        if number == 2:
            release.wait(PATIENCE)
        done.append(number)

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(OSError, match="the disk is full"):
            list(in_order(pool, work_on, range(100), ahead=10))
        release.set()
    assert done in ([0], [0, 2])


def test_a_generator_is_read_one_item_ahead_in_another_thread() -> None:
    made: list[int] = []
    makers = set()

    def items() -> Generator[int]:
        for number in range(5):
            makers.add(threading.get_ident())
            made.append(number)
            yield number

    seen = []
    for item in read_ahead(items()):
        seen.append(item)
        assert len(made) <= item + 2
    assert seen == list(range(5))
    assert threading.get_ident() not in makers
    assert len(makers) == 1


def test_what_a_generator_raises_comes_after_what_it_yielded() -> None:
    def items() -> Generator[int]:
        yield 1
        raise ValueError("broken after the first")

    reading = read_ahead(items())
    assert next(reading) == 1
    with pytest.raises(ValueError, match="broken after the first"):
        next(reading)


def test_a_generator_is_closed_with_its_reader() -> None:
    closed = threading.Event()

    def items() -> Generator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    reading = read_ahead(items())
    assert [next(reading) for _ in range(3)] == [0, 1, 2]
    assert not closed.is_set()
    del reading
    assert closed.wait(PATIENCE)


def test_readers_that_were_dropped_are_in_nobodys_way() -> None:
    # In cycles, as tracebacks make them: the garbage collector ends them, sometimes while another thread starts.
    def items() -> Generator[int]:
        yield from itertools.count()

    before = gc.get_threshold()
    gc.set_threshold(20)
    try:
        for _ in range(300):
            reading = read_ahead(items())
            next(reading)
            cycle: list[object] = [reading]
            cycle.append(cycle)
        del reading, cycle
    finally:
        gc.set_threshold(*before)
    gc.collect()
    deadline = time.monotonic() + PATIENCE
    while any(thread.name.startswith("gaussearch-read") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_everything_handed_over_is_synced_before_finish_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    files = [tmp_path / str(number) for number in range(20)]
    with Syncer() as syncer:
        for file in files:
            file.write_bytes(b"x")
            syncer.sync(file)
        syncer.finish()
        assert sorted(synced) == sorted(file.stat().st_ino for file in files)


def test_a_file_that_did_not_reach_the_disk_fails_the_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "the disk fails")

    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setattr(os, "fsync", fail)
    with Syncer() as syncer:
        syncer.sync(tmp_path / "file")
        with pytest.raises(OSError, match="the disk fails"):
            syncer.finish()
