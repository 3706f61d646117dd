"""Generations of an index directory: published in one step, kept while they may be needed, refused where damaged."""

import contextlib
import errno
import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import index.current
from index import BuildOptions, Encoding, Gaussians, IndexDirectory, LocalSearcher, build_index
from index.changes import add_documents, delete_documents
from index.current import Named
from index.durable import SyncError, checksum, write_atomically
from index.errors import (
    CorruptIndexError,
    GenerationNotFoundError,
    IndexLockedError,
    IndexNotFoundError,
    NotSyncedError,
    SourceError,
    UnsupportedFormatError,
)
from index.holding import hold
from index.layout import Layout
from index.manifest import Manifest
from tests.conftest import MakeIndex, random_gaussians, write_corpus
from tests.serving import PATIENCE

Forge = Callable[..., Path]


@pytest.fixture
def directory(make_index: MakeIndex) -> IndexDirectory:
    return make_index(random_gaussians(10, 3), segment_docs=5, text=[f"text {row}" for row in range(10)])


def write_manifest(directory: IndexDirectory, data: bytes, name: str = "00000001.json") -> Path:
    """Replaces a manifest and makes CURRENT name it with the right checksum, so that its content is what is judged."""
    path = directory.manifests / name
    path.write_bytes(data)
    directory.current_file.write_text(f"{name} {checksum(data)}\n")
    return path


def changed(directory: IndexDirectory, change: Callable[[dict[str, Any]], object]) -> bytes:
    manifest = json.loads((directory.manifests / "00000001.json").read_bytes())
    change(manifest)
    return json.dumps(manifest).encode()


@pytest.mark.parametrize("present", [[], ["."], ["manifests", "segments"]])
def test_a_directory_without_an_index_says_so(tmp_path: Path, present: list[str]) -> None:
    directory = IndexDirectory(tmp_path / "index")
    for name in present:
        (directory.path / name).mkdir(parents=True, exist_ok=True)
    for read in (directory.current_token, directory.manifest, directory.verify, lambda: LocalSearcher(directory)):
        with pytest.raises(IndexNotFoundError, match=rf"no index in {directory.path}: .*CURRENT does not exist"):
            read()
    assert directory.live_generation() is None
    assert (tmp_path / "index").exists() == bool(present)


def test_a_file_in_place_of_the_directory_holds_no_index(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("no directory")
    with pytest.raises(IndexNotFoundError):
        IndexDirectory(tmp_path / "index").manifest()


@pytest.mark.parametrize("content", [
    b"", b"\n", b"00000001.json\n", b"../../00000001.json " + b"0" * 64 + b"\n", b"\xff\xfe" * 40,
    b"1.json " + b"0" * 64,
])  # fmt: skip
def test_a_current_file_that_names_nothing_is_corrupt(directory: IndexDirectory, content: bytes) -> None:
    directory.current_file.write_bytes(content)
    for read in (directory.manifest, directory.verify, lambda: LocalSearcher(directory)):
        with pytest.raises(CorruptIndexError, match=rf"{directory.current_file} does not name"):
            read()
    assert directory.live_generation() is None


def test_a_manifest_that_is_missing_or_another_is_corrupt(directory: IndexDirectory) -> None:
    path = directory.manifests / "00000001.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CorruptIndexError, match=rf"{path} does not match the checksum in {directory.current_file}"):
        directory.manifest()
    path.unlink()
    with pytest.raises(CorruptIndexError, match=f"{path} is missing"):
        directory.manifest()


@pytest.mark.parametrize(("field", "value", "said"), [
    ("k", 4, "standardisation must have 4 shifts"), ("k", "3", "k: "), ("k", 0, "k: "), ("documents", 11, "sum"),
    ("kind", "graph", "kind"), ("encoding", "simple", "encoding"), ("generation", 0, "generation"),
    ("deletes", ["d1"], "deletes"), ("segments", [], "segments"), ("surprise", 1, "surprise"),
    ("source", None, "source"),
])  # fmt: skip
def test_a_manifest_that_says_the_impossible_is_refused_by_its_field(
    directory: IndexDirectory, field: str, value: object, said: str
) -> None:
    path = write_manifest(directory, changed(directory, lambda manifest: manifest.update({field: value})))
    with pytest.raises(CorruptIndexError) as caught:
        directory.verify()
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_manifest_that_is_no_object_is_refused(directory: IndexDirectory, data: bytes) -> None:
    path = write_manifest(directory, data)
    with pytest.raises(CorruptIndexError, match=str(path)):
        directory.manifest()


@pytest.mark.parametrize("version", [0, 1, 2, 4, "3", None])
def test_another_format_version_is_refused_with_what_to_do(directory: IndexDirectory, version: object) -> None:
    path = write_manifest(directory, changed(directory, lambda manifest: manifest.update(format_version=version)))
    with pytest.raises(UnsupportedFormatError, match=rf"{path} has format version {version!r}; .* reads version 3"):
        directory.verify()


@pytest.mark.parametrize(
    "name", ["../x", "/etc", "..", "", "0" * 12 + "-00000001-00000/..", "ABCDEFABCDEF-00000001-00000"]
)
def test_a_segment_cannot_lie_outside_the_index(directory: IndexDirectory, name: str) -> None:
    def rename(manifest: dict[str, Any]) -> None:
        manifest["segments"][1]["id"] = name

    path = write_manifest(directory, changed(directory, rename))
    with pytest.raises(CorruptIndexError, match=rf"{path}: segments\.1\.id"):
        directory.verify()


def test_a_segment_listed_twice_is_refused(directory: IndexDirectory) -> None:
    def repeat(manifest: dict[str, Any]) -> None:
        manifest["segments"][1] = manifest["segments"][0]

    write_manifest(directory, changed(directory, repeat))
    with pytest.raises(CorruptIndexError, match="a segment is listed twice"):
        directory.verify()


def test_segments_must_be_those_that_the_manifest_counts(directory: IndexDirectory) -> None:
    def shift(manifest: dict[str, Any]) -> None:
        manifest["segments"][0]["documents"] += 1
        manifest["segments"][1]["documents"] -= 1

    write_manifest(directory, changed(directory, shift))
    segment = directory.segments / directory.manifest().segments[0].id / "segment.json"
    with pytest.raises(CorruptIndexError, match=f"{segment} describes another segment"):
        directory.verify()


@pytest.mark.parametrize("change", [{"k": 2}, {"encoding": "full"}])
def test_segments_must_be_of_the_manifests_k_and_encoding(directory: IndexDirectory, change: dict[str, Any]) -> None:
    def alter(manifest: dict[str, Any]) -> None:
        manifest |= change
        for numbers in (manifest["standardisation"]["shift"], manifest["standardisation"]["scale"]):
            del numbers[manifest["k"] :]

    write_manifest(directory, changed(directory, alter))
    for read in (directory.verify, lambda: LocalSearcher(directory, verify=False)):
        with pytest.raises(CorruptIndexError, match="holds another k or encoding"):
            read()


@pytest.mark.parametrize("content", [None, b"", b"00000001.json " + b"0" * 64 + b"\n"])
def test_a_record_that_nobody_could_go_back_by_is_named(directory: IndexDirectory, content: bytes | None) -> None:
    """CURRENT is right, so that the generation can be opened."""
    record = directory.manifests / "00000001.blake3"
    record.unlink() if content is None else record.write_bytes(content)
    assert len(LocalSearcher(directory)) == 10
    with pytest.raises(CorruptIndexError, match=str(record)):
        directory.verify()


def test_a_record_of_another_generation_is_refused(make_index: MakeIndex) -> None:
    for seed in (1, 2):
        directory = make_index(random_gaussians(6, 2, seed=seed))
    record = directory.manifests / "00000001.blake3"
    record.write_bytes(directory.current_file.read_bytes())
    for read in (directory.generation, directory.verify):
        with pytest.raises(CorruptIndexError, match=f"{record} names another generation's manifest"):
            read(1)


def generations(directory: IndexDirectory) -> list[str]:
    return sorted(path.name for path in directory.manifests.glob("*.json"))


def segment_generations(directory: IndexDirectory) -> set[int]:
    return {int(path.name.split("-")[1]) for path in directory.segments.iterdir()}


def test_the_live_generation_and_the_one_before_it_are_kept(make_index: MakeIndex) -> None:
    for number in range(1, 5):
        directory = make_index(random_gaussians(6, 2, seed=number), segment_docs=4)
        assert directory.live_generation() == number
        assert generations(directory) == [f"{kept:08}.json" for kept in range(max(1, number - 1), number + 1)]
        assert segment_generations(directory) == set(range(max(1, number - 1), number + 1))
        assert directory.verify().generation == number


def test_a_manifest_that_was_never_made_live_costs_no_live_generation_its_place(
    make_index: MakeIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die_before_current(path: Path, data: bytes) -> None:
        if path.name == "CURRENT":
            raise KeyboardInterrupt
        write_atomically(path, data)

    directory = make_index(random_gaussians(6, 2))
    for seed in (1, 2, 3):
        corpus = write_corpus(tmp_path / f"{seed}.parquet", random_gaussians(6, 2, seed=seed))
        with monkeypatch.context() as patch:
            patch.setattr("index.current.write_atomically", die_before_current)
            with pytest.raises(KeyboardInterrupt):
                build_index([corpus], directory, BuildOptions(restart=True))
        assert directory.verify().generation == 1
    summary = build_index([tmp_path / "index.parquet"], directory)
    assert summary.up_to_date
    build_index([corpus], directory, BuildOptions(restart=True))
    assert len(generations(directory)) == 2
    assert generations(directory)[0] == "00000001.json"
    assert directory.verify().documents == 6


@pytest.mark.parametrize("damage", ["garbage", "newer"])
def test_nothing_that_a_manifest_of_another_release_may_name_is_removed_before_it_is_replaced(
    directory: IndexDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    data = b"{}" if damage == "garbage" else changed(directory, lambda manifest: manifest.update(format_version=4))
    write_manifest(directory, data)
    segments = sorted(directory.segments.iterdir())
    corpus = write_corpus(tmp_path / "other.parquet", random_gaussians(6, 2))
    with monkeypatch.context() as patch:
        patch.setattr(IndexDirectory, "publish", lambda *_, **__: shutil.disk_usage("/no such place"))
        with pytest.raises(FileNotFoundError):
            build_index([corpus], directory)
    assert set(segments) < set(directory.segments.iterdir())
    assert build_index([corpus], directory).manifest.generation == 2
    assert directory.verify().documents == 6


def test_names_and_folders_are_found_whatever_the_path_looks_like(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a [1]*.parquet", random_gaussians(4, 2))
    path = tmp_path / "ün index [*]" / "nested"
    build_index([corpus], IndexDirectory(path), BuildOptions(encoding=Encoding.FULL))
    searcher = LocalSearcher(IndexDirectory(str(path)))
    assert searcher.name == "nested"
    assert searcher.search(Gaussians.from_arrays([[0.0, 0.0]], [[1.0, 1.0]]), 4)[0].ids


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("no")))
        with pytest.raises(OSError, match="no"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / ".file.tmp").write_bytes(b"what a killed process left")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("named", [False, True])
def test_a_generation_that_goes_before_it_can_be_held_is_not_damaged(
    directory: IndexDirectory, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """The newest is verified in its place, unless this one was named."""
    writes = iter((0, 1, 5))

    def late(pins: Path, number: int) -> AbstractContextManager[None]:
        for row in writes:
            delete_documents([f"d{row}"], directory)
        return hold(pins, number)

    monkeypatch.setattr("index.storage.hold", late)
    if named:
        with pytest.raises(GenerationNotFoundError, match="keeps no generation 1"):
            directory.verify(1)
    else:
        assert directory.verify().generation == 4


def test_what_is_verified_is_not_removed_meanwhile(directory: IndexDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = IndexDirectory.verify_contents

    def slowly(its: IndexDirectory, manifest: Manifest) -> None:
        for row in (0, 1, 5):
            delete_documents([f"d{row}"], directory)
        verify(its, manifest)

    monkeypatch.setattr(IndexDirectory, "verify_contents", slowly)
    assert directory.verify().generation == 1
    assert directory.generations() == [1, 3, 4]


def test_a_manifest_that_is_removed_while_it_is_opened_gives_way_to_the_newest(
    directory: IndexDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, late = IndexDirectory._manifest_data, [True]

    def slowly(its: IndexDirectory, named: Named) -> bytes:
        if late:
            late.clear()
            for row in (0, 1, 5):
                delete_documents([f"d{row}"], directory)
        return read(its, named)

    monkeypatch.setattr(IndexDirectory, "_manifest_data", slowly)
    assert LocalSearcher(directory, device="cpu").manifest.generation == 4


@pytest.mark.parametrize(
    "name", [".CURRENT.tmp", "manifests/.00000002.json.tmp", "manifests/.00000002.blake3.tmp", "deletes/.{}.npy.tmp"]
)
@pytest.mark.parametrize("what", ["link", "pipe"])
def test_nothing_is_written_where_a_link_or_a_pipe_leads(
    directory: IndexDirectory, tmp_path: Path, name: str, what: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    planted = directory.path / name.format(f"{directory.manifest().segments[0].id}-00000002")
    planted.parent.mkdir(exist_ok=True)
    if what == "link":
        planted.symlink_to(victim)
    else:
        os.mkfifo(planted)
    assert delete_documents(["d1"], directory).deleted == 1
    assert victim.read_text() == "mine"
    assert directory.verify().documents == 9
    assert not any(path.is_symlink() or path.is_fifo() for path in directory.path.rglob("*"))


def test_a_change_of_which_only_the_last_sync_fails_is_made_and_says_what_is_not_known(
    directory: IndexDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def write(path: Path, data: bytes) -> None:
        write_atomically(path, data)
        if path.name == "CURRENT":
            raise SyncError(errno.EIO, "Input/output error", str(path.parent))

    corpus = write_corpus(tmp_path / "more.parquet", random_gaussians(3, 3, seed=1), ["a", "b", "c"], text=["new"] * 3)
    with monkeypatch.context() as patch:
        patch.setattr(index.current, "write_atomically", write)
        with pytest.raises(NotSyncedError, match=f"generation 2 of {directory.path} is live"):
            add_documents([corpus], directory)
    assert directory.verify().generation == 2
    assert len(LocalSearcher(directory)) == 13
    assert delete_documents(["a"], directory).manifest.documents == 12


class FailedError(Exception):
    """What is done under the lock fails."""


def fail(directory: IndexDirectory, *made: str) -> None:
    def work() -> None:
        with directory.lock():
            for name in made:
                (directory.path / name).mkdir(parents=True)
            raise FailedError

    with pytest.raises(FailedError):
        work()


def test_what_a_failed_writer_made_for_nothing_is_removed(tmp_path: Path) -> None:
    fail(IndexDirectory(tmp_path / "deep" / "er" / "index"), "segments", "codebooks", "manifests")
    assert list(tmp_path.iterdir()) == []
    with IndexDirectory(tmp_path / "kept" / "index").lock():
        pass
    assert [path.name for path in (tmp_path / "kept" / "index").iterdir()] == [".lock"]


@pytest.mark.parametrize("there", [["segments"], ["own"], ["own", "staging"], []])
def test_what_was_there_before_a_failed_writer_stays(tmp_path: Path, there: list[str]) -> None:
    directory = IndexDirectory(tmp_path / "index")
    for name in there:
        (directory.path / name).mkdir(parents=True)
    directory.path.mkdir(exist_ok=True)
    fail(directory, "structures")
    # A folder of an index may be somebody's work, and then its lock stays with it.
    lock = [".lock"] if {"segments", "staging"} & set(there) else []
    assert sorted(path.name for path in directory.path.iterdir()) == sorted([*there, *lock])


@pytest.mark.parametrize("left", ["staging/of a build", "segments/of another"])
def test_what_a_build_goes_on_from_stays(tmp_path: Path, left: str) -> None:
    directory = IndexDirectory(tmp_path / "index")
    fail(directory, left, "structures")
    assert (directory.path / left).is_dir()
    assert sorted(path.name for path in directory.path.iterdir()) == [".lock", left.split("/")[0]]


def test_what_has_been_published_stays(make_index: MakeIndex) -> None:
    directory = make_index(random_gaussians(3, 2))
    (directory.path / ".lock").unlink()
    before = set(directory.path.rglob("*"))
    fail(directory, "pins")
    assert set(directory.path.rglob("*")) - before == {directory.pins, directory.path / ".lock"}
    assert directory.verify().documents == 3


def test_who_waits_for_a_writer_that_fails_goes_on_in_a_new_folder(tmp_path: Path) -> None:
    directory = IndexDirectory(tmp_path / "index")
    held, end = threading.Event(), threading.Event()

    def hold() -> None:
        with contextlib.suppress(FailedError), directory.lock():
            held.set()
            end.wait(PATIENCE)
            raise FailedError

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(PATIENCE)
    threading.Timer(0.2, end.set).start()
    with IndexDirectory(tmp_path / "index").lock(PATIENCE):
        holder.join()
        inode = (directory.path / ".lock").stat().st_ino
        with pytest.raises(IndexLockedError), directory.lock():
            pass
        assert (directory.path / ".lock").stat().st_ino == inode


def test_failed_first_builds_leave_no_directory(tmp_path: Path) -> None:
    corpus = tmp_path / "bad.jsonl"
    corpus.write_text("{}\n")
    for sources in ([tmp_path / "nowhere.parquet"], [corpus]):
        with pytest.raises(SourceError):
            build_index(sources, tmp_path / "indexes" / "index")
        assert not (tmp_path / "indexes").exists()


@pytest.mark.parametrize("look", [1, 2, 3])
def test_a_token_is_that_of_its_generation_whatever_is_published_meanwhile(
    directory: IndexDirectory, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    """A backup that took another's would name a manifest that it does not hold."""
    read, looks = index.current.read_current, itertools.count(1)

    def and_publish(its: Layout) -> str:
        token = read(its)
        if next(looks) == look:
            monkeypatch.setattr(index.current, "read_current", read)
            delete_documents(["d0"], IndexDirectory(directory.path))
        return token

    monkeypatch.setattr(index.current, "read_current", and_publish)
    assert directory.token(1).startswith("00000001.json ")
    assert directory.generation(1).documents == 10
