"""What an unfinished build allows in its directory: it goes on, and another one is refused unless it restarts."""

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import index.build_encoding
import index.durable
from index import BuildOptions, IndexDirectory, build_index
from index.changes import add_documents, delete_documents
from index.document_writing import DocumentWriter
from index.errors import BuildError, IndexLockedError, NotSyncedError, SourceError
from tests.conftest import random_gaussians, write_corpus
from tests.serving import wait_until

OPTIONS = BuildOptions(segment_docs=4)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.parquet", random_gaussians(10, 2))


@pytest.fixture
def unfinished(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> IndexDirectory:
    """An index in whose directory a second build has read everything and encoded nothing."""
    directory = IndexDirectory(tmp_path / "index")
    build_index([write_corpus(tmp_path / "live.parquet", random_gaussians(6, 3))], directory)
    with monkeypatch.context() as patch:
        patch.setattr(index.build_encoding, "write_vectors", failing(OSError(errno.EIO, "the disk fails")))
        with pytest.raises(OSError, match="the disk fails"):
            build_index([corpus], directory, OPTIONS)
    return directory


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


def test_the_same_build_goes_on(unfinished: IndexDirectory, corpus: Path) -> None:
    summary = build_index([corpus.rename(corpus.with_name("moved.parquet"))], unfinished, OPTIONS)
    assert (summary.resumed_documents, summary.manifest.generation) == (10, 2)
    assert not unfinished.staging.exists()


def test_changes_that_publish_nothing_leave_an_unfinished_build_as_it_is(
    unfinished: IndexDirectory, corpus: Path, tmp_path: Path
) -> None:
    assert delete_documents(["nobody"], unfinished).deleted == 0
    wrong = write_corpus(tmp_path / "wrong.parquet", random_gaussians(3, 5))
    with pytest.raises(SourceError):
        add_documents([wrong], unfinished)
    assert build_index([corpus], unfinished, OPTIONS).resumed_documents == 10


@pytest.mark.parametrize("finished", [1, 2, 3])
@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_resumed_build_writes_the_bytes_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int, suffix: str
) -> None:
    # What is read in one batch depends on where reading begins, and what a batch looks like in memory on its size.
    path, n = tmp_path / "corpus.parquet", 9000
    payload: dict[str, Any] = {
        "text": [f"é{row}" for row in range(n)],
        "odd": [row % 3 == 0 or None for row in range(n)],
    }
    write_corpus(path, random_gaussians(n, 2), **payload, many=[[row] * (row % 3) for row in range(n)])
    if suffix == "jsonl":
        rows = pq.read_table(path).to_pylist()
        path = tmp_path / "corpus.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options, finish, ordinals = BuildOptions(segment_docs=2500), DocumentWriter.finish, itertools.count()

    def finish_some(*arguments: Any) -> Any:
        if next(ordinals) == finished:
            raise OSError("the disk fails")
        return finish(*arguments)

    build_index([path], IndexDirectory(tmp_path / "whole"), options)
    with monkeypatch.context() as patch:
        patch.setattr(DocumentWriter, "finish", finish_some)
        with pytest.raises(OSError, match="the disk fails"):
            build_index([path], IndexDirectory(tmp_path / "resumed"), options)
    resumed = build_index([path], IndexDirectory(tmp_path / "resumed"), options)
    assert resumed.resumed_documents == 2500 * finished
    assert resumed.manifest.segments == IndexDirectory(tmp_path / "whole").verify().segments


@pytest.mark.parametrize(("change", "differing"), [
    ({"encoding": "folded"}, "encoding"), ({"segment_docs": 5}, "segment_docs"), ({"on_error": "skip"}, "on_error"),
    ({"variance_as": "std"}, "corpus"), ({"encoding": "full", "segment_docs": 1}, "encoding and segment_docs"),
])  # fmt: skip
def test_a_build_with_another_setting_is_refused_by_its_name(
    unfinished: IndexDirectory, corpus: Path, change: dict[str, object], differing: str
) -> None:
    options = BuildOptions.model_validate({**OPTIONS.model_dump(), **change})
    with pytest.raises(BuildError, match=rf"{unfinished.staging} .* another {differing}: .*--restart"):
        build_index([corpus], unfinished, options)
    assert unfinished.verify().generation == 1
    assert build_index([corpus], unfinished, OPTIONS).resumed_documents == 10


@pytest.mark.parametrize("k", [2, 5])
def test_a_build_of_another_corpus_is_refused_unless_it_restarts(
    unfinished: IndexDirectory, corpus: Path, k: int
) -> None:
    write_corpus(corpus, random_gaussians(7, k, seed=1))
    with pytest.raises(BuildError, match="another corpus"):
        build_index([corpus], unfinished, OPTIONS)
    left = len(list(unfinished.segments.iterdir()))
    summary = build_index([corpus], unfinished, OPTIONS.model_copy(update={"restart": True}))
    assert (summary.resumed_documents, summary.manifest.generation, summary.manifest.k) == (0, 2, k)
    # Of the discarded build nothing is left; the generation before is.
    assert left == 1 + 3
    assert len(list(unfinished.segments.iterdir())) == 1 + 2


def test_a_plan_that_cannot_be_read_is_refused_unless_the_build_restarts(
    unfinished: IndexDirectory, corpus: Path
) -> None:
    plan = unfinished.staging / "plan.json"
    plan.write_text(plan.read_text().replace('"generation"', '"generations"'))
    with pytest.raises(BuildError, match=rf"{plan} is from another release or damaged: add --restart"):
        build_index([corpus], unfinished, OPTIONS)
    assert build_index([corpus], unfinished, OPTIONS.model_copy(update={"restart": True})).manifest.generation == 2


def test_a_live_index_is_up_to_date_whatever_is_unfinished_beside_it(
    unfinished: IndexDirectory, corpus: Path, tmp_path: Path
) -> None:
    assert build_index([tmp_path / "live.parquet"], unfinished).up_to_date
    assert build_index([corpus], unfinished, OPTIONS).resumed_documents == 10


@pytest.mark.parametrize("name", ["gaussians.npy", "ids.arrow"])
def test_finished_segments_that_were_damaged_are_read_again(
    unfinished: IndexDirectory, corpus: Path, name: str
) -> None:
    (file,) = unfinished.segments.glob(f"*-00001/{name}")
    file.write_bytes(file.read_bytes()[:-1])
    assert build_index([corpus], unfinished, OPTIONS).resumed_documents == 4
    assert unfinished.verify().documents == 10


def test_a_build_killed_between_publishing_and_tidying_up_blocks_no_other(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = IndexDirectory(tmp_path / "index")
    remove = shutil.rmtree

    def die(*arguments: Any, **options: Any) -> None:
        if directory.live_generation():
            raise KeyboardInterrupt
        remove(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("index.publication.shutil.rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            build_index([corpus], directory, OPTIONS)
    # The first thing that is removed is what the build has staged, when its index is live.
    assert directory.manifest().generation == 1
    assert (directory.staging / "plan.json").exists()
    write_corpus(corpus, random_gaussians(5, 4, seed=1))
    assert build_index([corpus], directory, OPTIONS).manifest.generation == 2


HOLD_THE_LOCK = """
import sys, time
from index import IndexDirectory

with IndexDirectory(sys.argv[1]).lock():
    print("locked", flush=True)
    time.sleep(600)
"""


class Failing:
    """Stands in for functions that write: the call with number `at`, counted over all of them, fails."""

    def __init__(self, at: int, code: int) -> None:
        self.at, self.code, self.calls = at, code, 0

    def __call__(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.at:
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments, **options)

        return call


def test_whichever_write_sync_or_rename_fails_the_next_build_succeeds(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index([write_corpus(tmp_path / "live.parquet", random_gaussians(3, 3))], IndexDirectory(tmp_path / "live"))
    write_corpus(corpus, random_gaussians(6, 2))
    for at in range(1, 1000):
        directory = IndexDirectory(shutil.copytree(tmp_path / "live", tmp_path / f"index{at}"))
        failure = Failing(at, (errno.ENOSPC, errno.EIO, errno.EDQUOT)[at % 3])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failure(os.fsync))
            patch.setattr(os, "replace", failure(os.replace))
            patch.setattr(index.durable.ChecksummedFile, "write", failure(index.durable.ChecksummedFile.write))
            try:
                build_index([corpus], directory, OPTIONS)
                break
            except NotSyncedError:
                # The very last step: it is live.
                assert directory.verify().generation == 2
                continue
            except OSError as error:
                raised = error.errno
        assert raised == failure.code
        assert directory.verify().generation == 1
        build_index([corpus], directory, OPTIONS)
        assert (directory.verify().generation, directory.manifest().documents) == (2, 6)
    assert failure.calls < at
    assert at > 30


def test_a_second_writer_is_refused_at_once(tmp_path: Path, corpus: Path) -> None:
    directory = IndexDirectory(tmp_path / "index")
    with (
        directory.lock(),
        pytest.raises(IndexLockedError, match=f"another process is writing to {directory.path}"),
    ):
        build_index([corpus], IndexDirectory(directory.path), OPTIONS)
    assert build_index([corpus], directory, OPTIONS).manifest.generation == 1


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it dies."""
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(tmp_path / "index")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_the_lock_of_a_dead_writer_is_free(writer: subprocess.Popen[str], tmp_path: Path, corpus: Path) -> None:
    assert writer.stdout is not None
    assert writer.stdout.readline() == "locked\n"
    with pytest.raises(IndexLockedError):
        build_index([corpus], IndexDirectory(tmp_path / "index"), OPTIONS)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert build_index([corpus], IndexDirectory(tmp_path / "index"), OPTIONS).manifest.documents == 10


@pytest.mark.parametrize("name", ["gaussians.npy", "ids.arrow", "vectors.faiss", "segment.json"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_file_that_did_not_reach_the_disk_is_written_anew(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, name: str, interrupted: bool
) -> None:
    # The system says so once; from then on the file reads as it should be, and syncing it succeeds.
    directory, sync, failures = IndexDirectory(tmp_path / "index"), os.fsync, iter([errno.EIO])
    failed: list[Path] = []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name == name and (error := next(failures, None)):
            failed.append(path)
            raise OSError(error, "the disk fails")
        sync(descriptor)

    def finish(syncer: index.durable.Syncer) -> None:
        wait_until(lambda: failed)
        if interrupted:
            raise KeyboardInterrupt
        real_finish(syncer)

    real_finish = index.durable.Syncer.finish
    monkeypatch.setattr(os, "fsync", fsync)
    with monkeypatch.context() as patch:
        patch.setattr(index.durable.Syncer, "finish", finish)
        with pytest.raises(KeyboardInterrupt if interrupted else OSError):
            build_index([corpus], directory, OPTIONS)
    assert len(failed) == 1
    assert not failed[0].exists()
    summary = build_index([corpus], directory, OPTIONS)
    assert (summary.resumed_documents, summary.manifest.documents) == (0, 10)
    directory.verify()
