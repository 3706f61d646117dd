"""Which generations are kept, and that nothing of the others is left."""

import datetime
import errno
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from pydantic import ValidationError

import index.generations
import index.holding
from index import BuildOptions, IndexDirectory, build_index
from index.build_options import AddOptions, CompactOptions, WriteOptions
from index.changes import add_documents, compact_index, delete_documents, roll_back
from index.errors import GenerationNotFoundError, SourceError
from index.holding import held, hold
from index.manifest import Manifest
from index.retention import MOST_HOURS, Retention
from service.settings import ServiceSettings
from tests.conftest import MakeIndex, random_gaussians, write_corpus

FIVE = {"keep_generations": 5}


@pytest.fixture
def directory(make_index: MakeIndex) -> IndexDirectory:
    """20 documents, k = 3, in two segments."""
    return make_index(random_gaussians(20, 3), segment_docs=10)


def delete(directory: IndexDirectory, row: int, **options: float) -> None:
    delete_documents([f"d{row}"], directory, WriteOptions.model_validate(options))


def assert_only_needed_files(directory: IndexDirectory) -> None:
    """Of every generation that is kept all files are there, and no others."""
    needed = {Path("CURRENT"), Path(".lock")}
    for number in directory.generations():
        manifest = directory.verify(number)
        needed |= set(directory.files(manifest))
        needed |= {Path("manifests", f"{number:08d}.{ending}") for ending in ("json", "blake3")}
    needed |= {Path("pins", f"{number:08d}") for number in directory.pinned()}
    there = {path.relative_to(directory.path) for path in directory.path.rglob("*") if path.is_file()}
    assert there - {Path("rejected.jsonl")} == needed
    folders = {path.name for path in directory.segments.iterdir()}
    assert folders == {path.parts[1] for path in needed if path.parts[0] == "segments"}


def made(manifest: Manifest, changes: int, restores: int | None = None, *, seconds: float = 3600) -> Manifest:
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    changed = {"created_at": then.isoformat(), "changes": changes, "restores": restores}
    return manifest.model_copy(update=changed)


@pytest.mark.parametrize(
    ("generations", "seconds", "pinned", "kept"),
    [
        (2, 0.0, set(), {8, 9}),
        (0, 0.0, set(), {8, 9}),  # never fewer, for a reader may just be opening the one before
        (3, 0.0, set(), {7, 8, 9}),
        (99, 0.0, set(), {3, 5, 6, 7, 8, 9}),
        (2, 0.0, {3, 4}, {3, 8, 9}),  # there is no 4
        (2, 150.0, set(), {6, 7, 8, 9}),  # each is a minute older than the next; 5 cannot be read
        (3, 3600.0, {5}, {3, 5, 6, 7, 8, 9}),
    ],
)
def test_the_newest_the_young_and_the_pinned_are_kept(
    directory: IndexDirectory, generations: int, seconds: float, pinned: set[int], kept: set[int]
) -> None:
    live = directory.manifest()
    there = {number: made(live, number, seconds=60 * (9 - number) - 50) for number in (3, 6, 7, 8, 9)}
    assert Retention(generations, seconds).kept({**there, 5: None}, pinned) == kept


def test_generations_of_the_same_documents_count_once(directory: IndexDirectory) -> None:
    live = directory.manifest()
    # Built; written, merged and measured; written; gone back to the first; written as it had been, and merged.
    states = [(0, None), (1, None), (1, None), (1, None), (2, None), (0, 1), (1, None), (1, None)]
    there: dict[int, Manifest | None] = {number: made(live, *state) for number, state in enumerate(states, start=1)}
    kept = {
        2: {6, 7, 8},  # the two newest, whatever they are, and the state before theirs
        3: {5, 6, 7, 8},
        4: {4, 5, 6, 7, 8},
        5: {1, 4, 5, 6, 7, 8},
    }
    for generations, expected in kept.items():
        assert Retention(generations).kept(there, set()) == expected
    # What cannot be read is the same as nothing.
    assert Retention(3).kept({**there, 6: None, 7: None}, set()) == {6, 7, 8}


def test_commands_keep_as_many_as_they_are_told_to(directory: IndexDirectory, tmp_path: Path) -> None:
    new = write_corpus(tmp_path / "new.parquet", random_gaussians(3, 3, 1), ["a", "b", "c"])
    add_documents([new], directory, AddOptions.model_validate(FIVE))
    delete(directory, 1, **FIVE)
    compact_index(directory, CompactOptions.model_validate(FIVE))
    compact_index(directory, CompactOptions.model_validate({"retrain": True, **FIVE}))
    # Compacted, the same documents are in the fourth as were in the third.
    assert directory.generations() == [1, 2, 4, 5]
    roll_back(directory, 2, WriteOptions.model_validate(FIVE))
    assert directory.generations() == [1, 2, 4, 5, 6]
    assert_only_needed_files(directory)
    build_index([new], directory, BuildOptions.model_validate({"keep_generations": 4}))
    assert directory.generations() == [4, 5, 6, 7]
    assert_only_needed_files(directory)
    delete_documents(["a"], directory)
    assert directory.generations() == [7, 8]
    assert_only_needed_files(directory)


def test_what_publishes_nothing_removes_no_generation(directory: IndexDirectory, tmp_path: Path) -> None:
    for row in range(3):
        delete(directory, row, **FIVE)
    bad = write_corpus(tmp_path / "bad.parquet", random_gaussians(3, 4), ["a", "b", "c"])
    with pytest.raises(SourceError):
        add_documents([bad], directory)
    delete_documents(["nobody"], directory)
    with pytest.raises(SourceError):
        build_index([bad, tmp_path / "index.parquet"], directory)
    assert directory.generations() == [1, 2, 3, 4]
    assert_only_needed_files(directory)


def test_young_generations_are_kept(directory: IndexDirectory) -> None:
    for row in range(4):
        delete(directory, row, keep_hours=1.0)
    assert directory.generations() == [1, 2, 3, 4, 5]
    assert_only_needed_files(directory)
    delete(directory, 4, keep_hours=1e-9)
    assert directory.generations() == [5, 6]


def test_a_pinned_generation_is_kept_until_it_is_unpinned(directory: IndexDirectory) -> None:
    with directory.lock():
        directory.pin(1)
        with pytest.raises(GenerationNotFoundError, match=r"keeps no generation 2; it keeps 1$"):
            directory.pin(2)
    for row in range(3):
        delete(directory, row)
    assert (directory.generations(), directory.pinned()) == ([1, 3, 4], {1})
    assert_only_needed_files(directory)
    roll_back(directory, 1)
    assert directory.verify().documents == 20
    with directory.lock():
        for number in (1, 77):
            directory.unpin(number)
    assert directory.generations() == [1, 4, 5]
    delete(directory, 5)
    assert (directory.generations(), directory.pinned()) == ([5, 6], set())
    assert_only_needed_files(directory)


def test_a_generation_that_is_held_is_kept_while_it_is(directory: IndexDirectory) -> None:
    with hold(directory.pins, 1), hold(directory.pins, 1), hold(directory.pins, 7):
        assert held(directory.pins) == {1, 7}
        assert directory.pinned() == set()
        for row in range(3):
            delete(directory, row)
        assert directory.generations() == [1, 3, 4]
        directory.verify(1)
    assert held(directory.pins) == set()
    assert not list(directory.pins.iterdir())
    delete(directory, 3)
    assert directory.generations() == [4, 5]
    assert_only_needed_files(directory)


HOLD = """
import sys, time
from pathlib import Path
from index.holding import hold

with hold(Path(sys.argv[1]), 1):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(directory: IndexDirectory) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds generation 1 until it dies."""
    command = [sys.executable, "-c", HOLD, str(directory.pins)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_a_dead_process_holds_nothing(directory: IndexDirectory, holder: subprocess.Popen[str]) -> None:
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    for row in range(2):
        delete(directory, row)
    assert directory.generations() == [1, 2, 3]
    holder.kill()
    holder.wait()
    assert len(list(directory.pins.iterdir())) == 1
    delete(directory, 2)
    assert directory.generations() == [3, 4]
    assert not list(directory.pins.iterdir())


def test_a_file_that_is_taken_for_a_dead_ones_is_made_again(
    directory: IndexDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = FileLock.acquire
    removed: list[Path] = []

    def acquire_when_removed(lock: FileLock, *arguments: object, **options: object) -> object:
        taken = acquire(lock, *arguments, **options)  # type: ignore[arg-type]
        if not removed:
            removed.append(Path(lock.lock_file))
            removed[0].unlink()
        return taken

    monkeypatch.setattr(FileLock, "acquire", acquire_when_removed)
    with hold(directory.pins, 1):
        assert held(directory.pins) == {1}
    assert removed


def test_where_nothing_can_be_written_nothing_is_held(
    directory: IndexDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with hold(directory.pins, 1):
        assert held(directory.pins) == set()
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"), hold(directory.pins, 1):
        pass


@pytest.mark.parametrize("hours", [math.inf, math.nan, 2e6, -1.0])
def test_hours_that_no_date_can_go_back_are_refused_before_anything_is_written(hours: float) -> None:
    with pytest.raises(ValidationError):
        WriteOptions(keep_hours=hours)
    with pytest.raises(ValidationError):
        ServiceSettings(index=Path("index"), keep_hours=hours)


def test_a_century_may_be_kept(directory: IndexDirectory) -> None:
    delete(directory, 0, keep_hours=MOST_HOURS)
    delete(directory, 1, keep_hours=MOST_HOURS)
    delete(directory, 2, keep_hours=MOST_HOURS)
    assert directory.generations() == [1, 2, 3, 4]


def test_a_generation_that_another_user_holds_is_kept_and_others_are_not(
    directory: IndexDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who killed `sudo gaussearch backup` leaves a file that the writer may not open."""
    directory.pins.mkdir(exist_ok=True)
    (directory.pins / "00000001-0123456789ab.held").touch()

    def acquire(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    assert index.holding.held(directory.pins) == {1}
    monkeypatch.undo()
    monkeypatch.setattr(index.generations, "held", lambda _: {1})
    for row in range(4):
        delete(directory, row)
    assert directory.generations() == [1, 4, 5]


def test_each_manifest_is_read_once_however_many_publications_follow(
    directory: IndexDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    parse = index.generations.parse_manifest

    def watched(path: Path, data: bytes) -> Manifest:
        read.append(path.name)
        return parse(path, data)

    monkeypatch.setattr(index.generations, "parse_manifest", watched)
    for row in range(5):
        delete(directory, row, keep_hours=1)
    assert directory.generations() == [1, 2, 3, 4, 5, 6]
    assert len(read) == len(set(read))
