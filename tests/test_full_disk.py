"""On a disk that is full, however little room is left, or that takes no writes, a command ends with one line that says
so; the index is as it was, and the same command succeeds once there is room."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, build_index
from index.backup import back_up
from index.build_options import WriteOptions
from index.changes import delete_documents
from index.restoring import restore
from service.cli import app
from tests.conftest import random_gaussians, write_corpus
from tests.small_disks import SmallDisk, small_disk

MOST = 120
"""Pages, or files, that are more than any of these commands takes."""
QUERY = Gaussians.from_arrays([[0.1, 0.2, -0.3]], [[1.0, 0.5, 2.0]])
COMMANDS: dict[str, tuple[str, ...]] = {
    "build": ("build", "{folder}/other.parquet", "--segment-docs", "30"),
    "add": ("add", "{folder}/more.parquet"),
    "delete": ("delete", "--ids", "d1", "--ids", "d25"),
    "compact": ("compact",),
    "retrain": ("compact", "--retrain"),
    "rollback": ("rollback", "1"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds corpora and an index: 39 documents in two segments, generation 2."""
    made = tmp_path_factory.mktemp("full")
    corpus = write_corpus(made / "corpus.parquet", random_gaussians(40, 3), text=["a text"] * 40)
    build_index([corpus], IndexDirectory(made / "live"), BuildOptions(device="cpu", segment_docs=30))
    delete_documents(["d3"], IndexDirectory(made / "live"))
    write_corpus(made / "other.parquet", random_gaussians(50, 3, 1))
    write_corpus(made / "more.parquet", random_gaussians(35, 3, 2), [f"new{row}" for row in range(34)] + ["d0"])
    return made


@pytest.fixture
def disk(tmp_path: Path, folder: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", size="4m", files=400) as made:
        shutil.copytree(folder / "live", made.path / "index")
        yield made


def run(name: str, folder: Path, index: Path) -> Result:
    words = [word.format(folder=folder) for word in COMMANDS[name]]
    return CliRunner().invoke(app, [*words, "--index", str(index)], env={"COLUMNS": "1000"})


def content(path: Path) -> list[Any]:
    """What the live generation of an index holds, every byte of it checked."""
    directory = IndexDirectory(path)
    manifest = directory.verify()
    (ranking,) = LocalSearcher(directory, device="cpu").search(QUERY, 100)
    return [manifest.documents, ranking.ids, ranking.scores.tolist(), [entry.live for entry in manifest.segments]]


def require_one_line(result: Result, reason: str, path: Path) -> None:
    """A command has said, in a line, why it failed and with which file of a folder."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("gaussearch: ")]
    assert reason in line
    assert str(path) in line
    assert "Traceback" not in result.output


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("what", ["pages", "files"])
def test_a_command_that_fills_the_disk_changes_nothing_and_succeeds_when_there_is_room(
    disk: SmallDisk, folder: Path, tmp_path: Path, name: str, what: str
) -> None:
    index, before = disk.path / "index", content(folder / "live")
    shutil.copytree(folder / "live", tmp_path / "whole")
    assert run(name, folder, tmp_path / "whole").exit_code == 0
    after = content(tmp_path / "whole")
    assert after != before
    for room in range(MOST):
        shutil.rmtree(index)
        shutil.copytree(folder / "live", index)
        disk.fill(**{what: room})
        result = run(name, folder, index)
        disk.make_room()
        if result.exit_code == 0:
            break
        require_one_line(result, "No space left on device", disk.path)
        assert content(index) == before
        assert run(name, folder, index).exit_code == 0
        assert content(index) == after
    assert content(index) == after
    # Some have failed, each with a little more room than the one before; and one has made do.
    assert 1 < room < MOST - 1


def test_an_index_that_is_begun_on_a_full_disk_is_none(disk: SmallDisk, folder: Path) -> None:
    shutil.rmtree(disk.path / "index")
    for room in (0, 1, 5):
        disk.fill(pages=room)
        require_one_line(run("build", folder, disk.path / "index"), "No space left on device", disk.path)
        assert IndexDirectory(disk.path / "index").live_generation() is None
    disk.make_room()
    assert run("build", folder, disk.path / "index").exit_code == 0
    assert content(disk.path / "index")[0] == 50


@pytest.fixture
def read_only(disk: SmallDisk) -> Path:
    """An index on a disk that takes no writes."""
    disk.make_read_only()
    return disk.path / "index"


@pytest.fixture
def forbidden(folder: Path) -> Iterator[Path]:
    """A folder as `folder`, whose index this process may not write to. Root, who may, becomes somebody else."""
    nobody, owner = 65534, os.geteuid()
    with tempfile.TemporaryDirectory() as made:
        copy = Path(shutil.copytree(folder, Path(made) / "copy"))
        for name in COMMANDS:
            # So that nothing is left to be imported, which nobody else may read.
            assert run(name, folder, shutil.copytree(folder / "live", Path(made) / name)).exit_code == 0
        folders = [path for path in (*copy.rglob("*"), copy) if path.is_dir()]
        for path in folders:
            path.chmod(0o555)
        (copy / "live" / ".lock").chmod(0o444)
        Path(made).chmod(0o755)
        if owner == 0:
            os.seteuid(nobody)
        try:
            yield copy
        finally:
            os.seteuid(owner)
            for path in folders:
                path.chmod(0o755)


def require_reads_only(index: Path, folder: Path, reason: str) -> None:
    """An index that cannot be written to is searched, checked and copied, and every change of it says why not."""

    def run_other(*words: str) -> Result:
        return CliRunner().invoke(app, [*words, "--index", str(index)], env={"COLUMNS": "1000"})

    before = content(index)
    assert before[0] == 39
    for words in (("verify",), ("inspect",), ("generations",), ("search", "--queries", str(folder / "other.parquet"))):
        result = run_other(*words)
        assert result.exit_code == 0, result.output
    for name in COMMANDS:
        require_one_line(run(name, folder, index), reason, index)
    require_one_line(run_other("generations", "--pin", "1"), reason, index)
    assert content(index) == before


def test_an_index_on_a_disk_that_takes_no_writes_is_searched(read_only: Path, folder: Path, tmp_path: Path) -> None:
    require_reads_only(read_only, folder, "Read-only file system")
    back_up(IndexDirectory(read_only), tmp_path / "backup.tar")
    restore(tmp_path / "backup.tar", IndexDirectory(tmp_path / "restored"))
    assert content(tmp_path / "restored") == content(read_only)


def test_an_index_that_one_may_not_write_to_is_searched(forbidden: Path) -> None:
    require_reads_only(forbidden / "live", forbidden, "Permission denied")


def test_retention_is_the_same_when_the_disk_was_full(disk: SmallDisk) -> None:
    """Deleting needs a little room, and makes more by removing the generation before the last."""
    index = IndexDirectory(disk.path / "index")
    disk.fill(pages=0)
    with pytest.raises(OSError, match=str(disk.path)):
        delete_documents(["d5"], index, WriteOptions(keep_generations=2))
    assert index.generations() == [1, 2]
    disk.make_room()
    delete_documents(["d5"], index)
    assert index.generations() == [2, 3]
