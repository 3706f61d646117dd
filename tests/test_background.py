"""Work beside a build: segments in order and a few at a time, files on their way to the disk, and what fails there."""

import errno
import os
import threading
from pathlib import Path

import pytest

from index.background import SEGMENTS_AT_WORK, BackgroundWork
from index.durable import Syncer
from tests.serving import PATIENCE


def test_results_come_in_order_and_each_once() -> None:
    with BackgroundWork[int]() as work:
        results = [result for number in range(20) for result in work.submit(lambda n: n * n, number)]
        results += work.finish()
        assert work.finish() == []
    assert results == [number**2 for number in range(20)]


def test_so_many_segments_are_worked_on_at_a_time_and_no_more() -> None:
    together = threading.Barrier(SEGMENTS_AT_WORK)
    at_work, most, lock = 0, 0, threading.Lock()

    def work_on(_: int) -> None:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        together.wait(PATIENCE)
        with lock:
            at_work -= 1

    with BackgroundWork[None]() as work:
        for number in range(3 * SEGMENTS_AT_WORK):
            work.submit(work_on, number)
        work.finish()
    assert most == SEGMENTS_AT_WORK


def test_a_failure_is_told_and_what_has_not_begun_is_dropped() -> None:
    done: list[int] = []

    def work_on(number: int) -> None:
        if number == 1:
            raise OSError(errno.ENOSPC, "the disk is full")
        done.append(number)

    def submit_all() -> None:
        with BackgroundWork[None]() as work:
            for number in range(100):
                work.submit(work_on, number)

    with pytest.raises(OSError, match="the disk is full"):
        submit_all()
    assert 0 in done
    # Those that were waiting when the failure was told.
    assert len(done) <= 1 + SEGMENTS_AT_WORK


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
