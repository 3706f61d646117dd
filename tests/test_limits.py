"""Commands that may open few files, or take little memory, end with one line that says so; the index is as it was, or
as it was to be, and the same command succeeds where more is allowed."""

from pathlib import Path
from typing import Any

import pytest

from index import BuildOptions, IndexDirectory, build_index
from index.changes import delete_documents
from tests.conftest import folder_in_memory, random_gaussians, write_corpus
from tests.programs import said_by

FILES = {"build": 1, "add": 11, "delete": 17, "compact": 11, "retrain": 11, "search": 11, "verify": 17}
"""How many more files a command may open at each try than at the one before. An index of many segments takes many."""
MEMORY = {"build": 6_000_000, "add": 4_000_000, "compact": 4_000_000, "retrain": 9_000_000, "search": 4_000_000}
"""The same in bytes."""
WAYS = [("files", name) for name in FILES] + [("memory", name) for name in MEMORY]

Tries = dict[tuple[str, str], list[dict[str, Any]]]


def make(folder: Path, documents: int, k: int, segment_docs: int) -> None:
    """An index `live`, some of its documents deleted, and corpora for its commands."""
    folder.mkdir()
    first = write_corpus(folder / "first.parquet", random_gaussians(documents, k), text=["a text"] * documents)
    build_index([first], IndexDirectory(folder / "live"), BuildOptions(device="cpu", segment_docs=segment_docs))
    delete_documents(["d3"], IndexDirectory(folder / "live"))
    write_corpus(folder / "corpus.parquet", random_gaussians(documents, k, 1))
    added = max(5, documents // 8)
    write_corpus(folder / "more.parquet", random_gaussians(added, k, 2), [f"new{row}" for row in range(added)])


@pytest.fixture(scope="module")
def tries(tmp_path_factory: pytest.TempPathFactory) -> Tries:
    """What tests/limited.py found; of each command first what is there before and after it."""
    wanted = [f"files:{name}:{step}" for name, step in FILES.items()]
    wanted += [f"memory:{name}:{step}" for name, step in MEMORY.items()]
    with folder_in_memory(tmp_path_factory.mktemp("limited")) as folder:
        make(folder / "files", 60, 3, 2)
        make(folder / "memory", 2000, 64, 700)
        said = said_by("limited", folder, *wanted)
    found: Tries = {}
    for line in said:
        found.setdefault((line["what"], line["name"]), []).append(line)
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("what", "name"), WAYS)
def test_a_limit_leaves_an_index_whole_and_the_command_succeeds_without(tries: Tries, what: str, name: str) -> None:
    begun, *found = tries[what, name]
    before, after = begun["expected"]["before"], begun["expected"]["after"]
    assert after is not None
    assert (before == after) == (name in ("search", "verify"))
    for tried in found:
        assert "error" not in tried, tried
        assert tried["left"] in (before, after), tried
        assert (tried["again"], tried["end"]) == (0, after), tried
    assert len(found) > 2
    assert found[-1]["ended"]["exit"] == 0
    assert found[-1]["left"] == after


@pytest.mark.parametrize("name", FILES)
def test_what_may_open_no_more_files_says_so(tries: Tries, name: str) -> None:
    for tried in tries["files", name][1:-1]:
        ended = tried["ended"]
        assert (ended["exit"], ended["unexpected"]) == (1, None), ended
        (line,) = ended["said"]
        # It is not that the index is damaged.
        assert "Too many open files" in line
        assert "index_corrupt" not in line


@pytest.mark.parametrize("name", MEMORY)
def test_what_has_no_more_memory_says_so(tries: Tries, name: str) -> None:
    found = [tried["ended"] for tried in tries["memory", name][1:-1]]
    # What is written in C++ or Rust may end the process instead, or raise anything; and CPython may wait for a thread
    # that never began.
    clean = [each for each in found if each is not None and "exit" in each and each["unexpected"] is None]
    assert 3 * len(clean) >= 2 * len(found), found
    for each in clean:
        assert each["exit"] == 1
        (line,) = each["said"]
        assert any(words in line for words in ("not enough memory", "alloc", "Cannot allocate memory")), line
        assert "index_corrupt" not in line
