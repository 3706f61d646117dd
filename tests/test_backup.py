"""Backups: what is copied out of an index comes back as it was, and nothing else gets in."""

import os
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from index import BuildOptions, IndexDirectory, LocalSearcher, build_index
from index.archives import FolderWriter
from index.backup import back_up
from index.build_options import AddOptions, WriteOptions
from index.changes import add_documents, delete_documents, roll_back
from index.durable import checksum
from index.errors import (
    BackupError,
    CorruptIndexError,
    GaussearchError,
    GenerationNotFoundError,
    IndexLockedError,
    IndexNotFoundError,
)
from index.manifest import IndexKind
from index.restoring import restore
from tests.conftest import MakeIndex, random_gaussians, write_corpus
from tests.mirror import Mirror
from tests.programs import said_by
from tests.rankings import ids_of

NAMES = ["backup", "backup.tar", "backup.tar.gz", "backup.tgz", "backup.tar.zst"]


class Original:
    """An index with all that one can have: a payload, deleted rows, a codebook and, of kind ivf-fastscan, lists."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.mirror, self.directory = Mirror(4), IndexDirectory(folder / "original")
        corpus = self.mirror.corpus(folder / "original.parquet", ids_of(options.pop("documents", 40)), 1)
        build_index([corpus], self.directory, BuildOptions(**options))
        add_documents([self.mirror.corpus(folder / "more.parquet", ["d3", "new"], 2)], self.directory)
        delete_documents(["d1", "d21"], self.directory)
        self.mirror.delete(["d1", "d21"])


@pytest.fixture
def original(tmp_path: Path) -> Original:
    """39 documents, k = 4, flat, in three segments; its generation is 3."""
    return Original(tmp_path, segment_docs=20)


def files(folder: Path) -> dict[str, str]:
    """What lies in a folder, by its name: the checksum of each file."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: checksum(path.read_bytes()) for name, path in found.items() if name != ".lock"}


def expected(directory: IndexDirectory, number: int) -> dict[str, str]:
    """The files that a backup of a generation has."""
    names = [str(path) for path in directory.files(directory.generation(number))]
    names += [f"manifests/{number:08d}.json", f"manifests/{number:08d}.blake3"]
    token = directory.token(number).encode()
    return {"CURRENT": checksum(token), **{name: checksum((directory.path / name).read_bytes()) for name in names}}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_backed_up_comes_back(original: Original, tmp_path: Path, name: str) -> None:
    target = tmp_path / "new" / name
    before = files(original.directory.path)
    assert back_up(original.directory, target) == original.directory.manifest()
    assert files(original.directory.path) == before
    assert [path.name for path in target.parent.iterdir()] == [name]
    restored = IndexDirectory(tmp_path / "restored")
    assert restore(target, restored) == original.directory.manifest()
    assert files(restored.path) == expected(original.directory, 3)
    assert files(restored.path).keys() >= {"CURRENT", "manifests/00000003.json", "manifests/00000003.blake3"}
    assert any(path.startswith("deletes/") for path in files(restored.path))
    assert restored.generations() == [3]
    original.mirror.check(restored)
    # And can be changed like any other.
    assert delete_documents(["new"], restored).manifest.generation == 4
    original.mirror.delete(["new"])
    original.mirror.check(restored)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": IndexKind.FASTSCAN},
        {"kind": IndexKind.IVF_FASTSCAN},
        {"kind": IndexKind.HNSW},
        {"kind": IndexKind.FAISS, "factory": "SQ8"},
    ],
    ids=lambda options: str(options["kind"]),
)
def test_every_kind_is_backed_up_whole(tmp_path: Path, options: dict[str, Any]) -> None:
    original = Original(tmp_path, documents=2500, segment_docs=2000, **options)
    live = original.directory.manifest()
    assert live.kind == options["kind"]
    back_up(original.directory, tmp_path / "backup.tar.zst")
    restored = IndexDirectory(tmp_path / "restored")
    restore(tmp_path / "backup.tar.zst", restored)
    assert files(restored.path) == expected(original.directory, live.generation)
    original.mirror.check(restored)


def test_a_backup_in_a_folder_is_an_index(original: Original, tmp_path: Path) -> None:
    back_up(original.directory, tmp_path / "backup")
    copy = IndexDirectory(tmp_path / "backup")
    assert files(copy.path) == expected(original.directory, 3)
    original.mirror.check(copy)
    assert roll_back(copy, 3).generation == 4


def test_a_tar_is_one_that_other_programs_read(original: Original, tmp_path: Path) -> None:
    for name in ("backup.tar", "backup.tar.gz"):
        back_up(original.directory, tmp_path / name)
        with tarfile.open(tmp_path / name) as tar:
            members = tar.getmembers()
            tar.extractall(tmp_path / f"{name}.d", filter="data")
        assert all(member.isreg() and member.mode == 0o644 for member in members)
        assert files(tmp_path / f"{name}.d") == expected(original.directory, 3)
    original.mirror.check(IndexDirectory(tmp_path / "backup.tar.d"))
    # A generation has one tar, whenever it is made.
    back_up(original.directory, tmp_path / "again.tar.gz")
    assert (tmp_path / "again.tar.gz").read_bytes() == (tmp_path / "backup.tar.gz").read_bytes()


def test_an_older_generation_is_backed_up_by_its_number(original: Original, tmp_path: Path) -> None:
    assert original.directory.generations() == [2, 3]
    assert back_up(original.directory, tmp_path / "second.tar", 2).generation == 2
    restored = IndexDirectory(tmp_path / "restored")
    restore(tmp_path / "second.tar", restored)
    assert files(restored.path) == expected(original.directory, 2)
    assert LocalSearcher(restored).document("d21").id == "d21"
    with pytest.raises(GenerationNotFoundError, match="keeps no generation 1; it keeps 2, 3"):
        back_up(original.directory, tmp_path / "first.tar", 1)
    for generation in (None, 1):
        with pytest.raises(IndexNotFoundError):
            back_up(IndexDirectory(tmp_path / "nowhere"), tmp_path / "nothing.tar", generation)
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "nothing.tar").exists()


def test_what_exists_is_not_replaced(original: Original, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.tar").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link.tar"):
        with pytest.raises(BackupError, match=f"{name} exists: name a new"):
            back_up(original.directory, tmp_path / name)
    for path in (original.directory.path / "backup", original.directory.path / "deep" / "er.tar"):
        with pytest.raises(BackupError, match="lies in the index itself"):
            back_up(original.directory, path)
    assert (tmp_path / "file").read_text() == "precious"


OTHER_ARCHIVES = ["b.zip", "b.7z", "b.rar", "b.gz", "b.bz2", "b.xz", "b.zst", "b.tar.xz", "b.tbz2", "b.ZIP", "b.TAR"]


@pytest.mark.parametrize("name", OTHER_ARCHIVES)
def test_no_folder_is_called_like_an_archive(original: Original, tmp_path: Path, name: str) -> None:
    before = sorted(tmp_path.iterdir())
    said = rf"{name} is called like.*\.tar, \.tar\.gz, \.tgz or \.tar\.zst, or a folder"
    with pytest.raises(BackupError, match=said):
        back_up(original.directory, tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["zip", "of.2026-11-26", "zip.d", "gzip", "a.tar.d"])
def test_any_other_name_is_a_folder(original: Original, tmp_path: Path, name: str) -> None:
    back_up(original.directory, tmp_path / name)
    assert (tmp_path / name / "CURRENT").is_file()


def test_a_target_that_another_process_makes_meanwhile_is_left_alone(
    original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "backup"
    add = FolderWriter.add

    def add_and_make(writer: FolderWriter, name: Any, size: int, file: Any) -> None:
        add(writer, name, size, file)
        target.mkdir(exist_ok=True)

    monkeypatch.setattr(FolderWriter, "add", add_and_make)
    with pytest.raises(BackupError, match="another process has just made it"):
        back_up(original.directory, target)
    assert list(target.iterdir()) == []
    assert not list(tmp_path.glob(".backup*"))


@pytest.mark.parametrize("damage", ["changed", "longer", "shorter", "missing"])
def test_what_is_damaged_is_not_backed_up(original: Original, tmp_path: Path, damage: str) -> None:
    names = [name for name in expected(original.directory, 3) if name != "CURRENT"]
    assert len(names) > 15
    for number, name in enumerate(names):
        if name.endswith(".blake3"):
            continue  # of the live generation CURRENT says the same
        path = original.directory.path / name
        whole = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            other = {"changed": bytes([whole[0] ^ 1]) + whole[1:], "longer": whole + b"\n", "shorter": whole[:-1]}
            path.write_bytes(other[damage])
        target = tmp_path / f"backup{number}{'.tar' * (number % 2)}"
        with pytest.raises(CorruptIndexError, match=str(path)):
            back_up(original.directory, target)
        assert not target.exists()
        assert not list(tmp_path.glob(".backup*"))
        path.write_bytes(whole)
    back_up(original.directory, tmp_path / "whole")


def test_a_generation_is_kept_while_it_is_copied(
    original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publications that would have removed it go on during the copy, and no copy holds the writer lock."""
    add, rows, added = FolderWriter.add, iter(range(5, 11)), []

    def add_and_publish(writer: FolderWriter, name: Any, size: int, file: Any) -> None:
        add(writer, name, size, file)
        added.append(name)
        if len(added) in (1, 5, 9):
            for row in (next(rows), next(rows)):
                delete_documents([f"d{row}"], original.directory)

    monkeypatch.setattr(FolderWriter, "add", add_and_publish)
    assert back_up(original.directory, tmp_path / "backup").generation == 3
    original.mirror.check(IndexDirectory(tmp_path / "backup"))
    # The third went on to be there, though it was not among the two newest any more.
    assert original.directory.generations() == [3, 8, 9]
    delete_documents(["new"], original.directory)
    assert original.directory.generations() == [9, 10]
    assert not list(original.directory.pins.iterdir())


def test_a_generation_that_was_being_removed_gives_way_to_the_newest(
    original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files_of, calls, rows = IndexDirectory.files, list[int](), iter((2, 4, 5, 6))

    def files_after_removal(directory: IndexDirectory, manifest: Any) -> Any:
        calls.append(manifest.generation)
        if len(calls) == 1:
            with monkeypatch.context() as patch:
                # As by a writer that looked who holds what before this backup did.
                patch.setattr("index.generations.held", lambda _: set())
                for row in (next(rows), next(rows)):
                    delete_documents([f"d{row}"], directory)
        return files_of(directory, manifest)

    monkeypatch.setattr(IndexDirectory, "files", files_after_removal)
    assert back_up(original.directory, tmp_path / "backup").generation == 5
    assert calls == [3, 5]
    original.mirror.delete(["d2", "d4"])
    original.mirror.check(IndexDirectory(tmp_path / "backup"))
    calls.clear()
    with pytest.raises(GenerationNotFoundError, match=r"generation 4 of .* was removed while it was copied"):
        back_up(original.directory, tmp_path / "fourth", 4)
    assert not list(tmp_path.glob("*fourth*"))


def test_backups_go_on_beside_writes(original: Original, tmp_path: Path) -> None:
    """For real: a thread publishes without a pause, and every backup is whole."""
    stop, errors = threading.Event(), []

    def write() -> None:
        row = 0
        while not stop.is_set():
            row += 1
            name = f"d{5 + row % 10}"
            corpus = write_corpus(tmp_path / "again.parquet", random_gaussians(1, 4, row), [name], text=[""])
            try:
                add_documents([corpus], original.directory, AddOptions(wait=60))
            except GaussearchError as error:
                errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(6):
            made = back_up(original.directory, tmp_path / f"backup{number}{'.tar.zst' * (number % 2)}")
            restored = IndexDirectory(tmp_path / f"restored{number}")
            restore(tmp_path / f"backup{number}{'.tar.zst' * (number % 2)}", restored)
            assert (restored.verify().generation, restored.manifest().documents) == (made.generation, 39)
    finally:
        stop.set()
        thread.join()
    assert errors == []


# Restoring over an index.


def test_a_backup_becomes_the_next_generation_of_an_index(original: Original, tmp_path: Path) -> None:
    back_up(original.directory, tmp_path / "backup.tar")
    delete_documents(ids_of(20)[4:], original.directory)
    inodes = {path: path.stat().st_ino for path in original.directory.segments.rglob("*") if path.is_file()}
    restored = restore(tmp_path / "backup.tar", original.directory, WriteOptions(keep_generations=3))
    assert (restored.generation, restored.restores) == (original.directory.live_generation(), 3)
    assert original.directory.generations()[-2:] == [restored.generation - 1, restored.generation]
    # What was there is not copied once more.
    assert inodes.items() <= {path: path.stat().st_ino for path in original.directory.segments.rglob("*")}.items()
    original.mirror.check(original.directory)
    assert restored.model_dump(exclude={"generation", "created_at", "restores"}) == (
        IndexDirectory(tmp_path / "original").generation(restored.generation)
    ).model_dump(exclude={"generation", "created_at", "restores"})


def test_another_index_is_replaced_and_can_be_gone_back_to(
    original: Original, tmp_path: Path, make_index: MakeIndex
) -> None:
    back_up(original.directory, tmp_path / "backup")
    other = make_index(random_gaussians(10, 7), name="other")
    manifest = restore(tmp_path / "backup", other)
    # After its own and after that of the backup, so that no name is given twice.
    assert (manifest.generation, manifest.restores) == (4, 3)
    assert other.generations() == [1, 4]
    original.mirror.check(other)
    roll_back(other, 1)
    assert (other.verify().k, other.manifest().generation) == (7, 5)
    delete_documents(["d0"], other)
    assert len(list(other.segments.iterdir())) == 1


def test_a_searcher_goes_on_while_an_index_is_restored(
    original: Original, tmp_path: Path, make_index: MakeIndex
) -> None:
    back_up(original.directory, tmp_path / "backup.tar")
    documents = random_gaussians(10, 7)
    other = make_index(documents, name="other")
    searcher = LocalSearcher(other)
    restore(tmp_path / "backup.tar", other)
    assert [ranking.ids[0] for ranking in searcher.search(documents, 1)] == ids_of(10)


def test_a_damaged_current_file_is_remedied(original: Original, tmp_path: Path) -> None:
    back_up(original.directory, tmp_path / "backup.tar")
    original.directory.current_file.write_text("nonsense")
    assert restore(tmp_path / "backup.tar", original.directory).generation == 4
    original.mirror.check(original.directory)


def test_a_file_with_other_content_under_one_name_is_an_error(original: Original, tmp_path: Path) -> None:
    back_up(original.directory, tmp_path / "backup.tar")
    for name in (name for name in expected(original.directory, 3) if name.split("/")[0] in ("segments", "deletes")):
        path = original.directory.path / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CorruptIndexError, match=f"{path} is there already, with other .*backup.tar: {name}"):
            restore(tmp_path / "backup.tar", original.directory)
        assert original.directory.live_generation() == 3
        path.write_bytes(whole)
    original.mirror.check(original.directory)


def test_one_writes_at_a_time(original: Original, tmp_path: Path) -> None:
    with original.directory.lock():
        # A backup writes nothing to the index.
        back_up(original.directory, tmp_path / "backup.tar")
        with pytest.raises(IndexLockedError):
            restore(tmp_path / "backup.tar", original.directory)


def test_what_is_no_backup_is_refused(original: Original, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.zip").write_bytes(b"PK")
    (tmp_path / "text.tar").write_text("no tar at all, though it is longer than one block of a tar is " * 20)
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "text.tar.gz").write_text("not compressed")
    (tmp_path / "text.tar.zst").write_text("not compressed")
    directory = IndexDirectory(tmp_path / "new")
    for source, error, said in (
        ("nowhere", BackupError, "there is no backup"),
        ("empty", CorruptIndexError, "CURRENT is missing"),
        ("file.zip", BackupError, "neither a folder nor a file whose name ends in"),
        ("text.tar", BackupError, "is not a tar, or damaged"),
        ("empty.tar", CorruptIndexError, "CURRENT is missing"),
        ("text.tar.gz", CorruptIndexError, "text.tar.gz cannot be read"),
        ("text.tar.zst", CorruptIndexError, "text.tar.zst cannot be read"),
    ):
        with pytest.raises(error, match=said):
            restore(tmp_path / source, directory)
    assert not directory.path.exists()
    with pytest.raises(BackupError, match="is the index itself"):
        restore(original.directory.path, original.directory)


# Killed at any moment.


@pytest.fixture(scope="module")
def tries(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What tests/killing.py found."""
    folder = tmp_path_factory.mktemp("killed")
    other = Original(folder, segment_docs=50)
    back_up(other.directory, folder / "backup.tar")
    live = write_corpus(folder / "live.parquet", random_gaussians(7, 2))
    build_index([live], IndexDirectory(folder / "live"), BuildOptions(segment_docs=4))
    return said_by("killing", folder)


def of_command(tries: Sequence[dict[str, Any]], command: str, at_least: int) -> list[dict[str, Any]]:
    found = [tried for tried in tries if tried["command"] == command]
    # The last one came through.
    assert [tried["done"] is None for tried in found] == [True] * (len(found) - 1) + [False]
    assert len(found) > at_least
    return found[:-1]


@pytest.mark.parametrize("command", ["backing_up", "backing_up_into_a_folder"])
def test_a_killed_backup_has_no_name_until_it_is_whole(tries: list[dict[str, Any]], command: str) -> None:
    found = of_command(tries, command, 8)
    for tried in found:
        assert tried["found"]["index"] == tried["end"] == [1, 7]
        assert tried["found"]["targets"] in ([], [7])
        assert tried["again"] == [1]
    # Killed when it has its name, before that is on the disk, it is whole.
    assert [tried["found"]["targets"] for tried in found].count([]) >= len(found) - 4


def test_a_killed_restoration_leaves_the_live_generation_as_it_was(tries: list[dict[str, Any]]) -> None:
    found = of_command(tries, "restoring", 40)
    before, after = [1, 7], [4, 39]
    for tried in found:
        assert tried["found"]["index"] in (before, after)
        # Restored once more, it is a generation more.
        number = 4 if tried["found"]["index"] == before else 5
        assert tried["again"] == [number]
        assert tried["end"] == [number, 39]
    assert [tried["found"]["index"] for tried in found].count(before) > len(found) // 2
    # Nothing of the killed ones is left.
    segments = [{name for name in tried["left"] if name.startswith("segments/")} for tried in found]
    assert max(map(len, segments)) == min(map(len, segments))


def test_a_backup_of_what_is_there_already_writes_nothing(original: Original, tmp_path: Path) -> None:
    """Its files are read and compared, and nothing takes the place of the null device, though root might."""
    back_up(original.directory, tmp_path / "backup.tar")
    assert restore(tmp_path / "backup.tar", original.directory).documents == len(
        original.mirror.check(original.directory)
    )
    assert Path(os.devnull).is_char_device()
