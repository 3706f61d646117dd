"""A change of an index that is interrupted, killed, cut from power or refused by the disk at any moment is there
wholly or not at all, and the same command then makes it as if nothing had happened."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import folder_in_memory
from tests.programs import said_by

FLAT = {
    "kill": 1,
    "torn": 1,
    "unsynced": 7,
    "lost": 3,
    "terminate": 11,
    "interrupt": 7,
    "EIO": 1,
    "ENOSPC": 3,
    "dead": 11,
}
SHORT = {**FLAT, "unsynced": 3, "lost": 1, "terminate": 5, "interrupt": 3, "ENOSPC": 1, "dead": 3}
CODES = {"kill": 5, "torn": 2, "lost": 7, "interrupt": 11, "EIO": 9, "dead": 17}
STRIDES: dict[str, dict[str, int]] = {
    "add": FLAT,
    "delete": SHORT,
    "compact": FLAT,
    "retrain": FLAT,
    "merge": FLAT,
    "rollback": SHORT,
    "build": {**FLAT, "kill": 3},
    "restore": {**FLAT, "kill": 3},
    "add-fastscan": CODES,
    "compact-fastscan": CODES,
    "compact-ivf": CODES,
}
"""At each how-manieth moment a change is struck, by what happens to it there: see tests/faults.py."""
WAYS = [(change, how) for change, strides in STRIDES.items() for how in strides]
STRUCK = 2_000
"""Times in all, at least, as README says."""
KILLED = {"kill", "torn", "unsynced", "lost"}
LEAST = {"kill": 30, "torn": 3}
"""Moments that every change has."""

pytestmark = pytest.mark.timeout(1800)


class Tries:
    """What tests/interrupting_changes.py found: of each change the states before, after it, and after it was made once
    more; and its tries by how it was struck."""

    def __init__(self, lines: Iterator[dict[str, Any]]) -> None:
        self.expected: dict[str, Any] = {}
        self.by_way: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for line in lines:
            if "expected" in line:
                self.expected[line["change"]] = line["expected"]
            else:
                self.by_way.setdefault((line["change"], line["how"]), []).append(line)


@pytest.fixture(scope="module")
def tries(tmp_path_factory: pytest.TempPathFactory) -> Tries:
    wanted = [f"{change}:{how}:{stride}" for change, strides in STRIDES.items() for how, stride in strides.items()]
    with folder_in_memory(tmp_path_factory.mktemp("changed")) as folder:
        said = said_by("interrupting_changes", folder, *wanted)
    return Tries(iter(said))


def is_after(expected: dict[str, Any], tried: dict[str, Any]) -> bool:
    """Whether the change is there; it is wholly, or not at all."""
    left = tried["left"]
    before, once = expected["before"], expected["once"]
    assert left["content"] in (before["content"], once["content"]), f"neither the one nor the other: {tried}"
    after = bool(left["content"] == once["content"])
    assert (left["generation"] > before["generation"]) == after
    # Whatever is kept beside it is whole, too, and nothing that was is gone before the change is there.
    assert after or left["generations"] == before["generations"]
    return after


def test_the_changes_that_are_tried_change_something(tries: Tries) -> None:
    # The last try of each way comes through.
    assert sum(len(found) - 1 for found in tries.by_way.values()) >= STRUCK
    assert tries.expected.keys() == STRIDES.keys()
    for change, expected in tries.expected.items():
        assert expected["before"]["content"] != expected["once"]["content"]
        assert not any(state["strays"] for state in expected.values())
        kind = expected["once"]["content"]["kind"]
        assert kind == {"fastscan": "fastscan", "ivf": "ivf-fastscan"}.get(change.partition("-")[2], "flat")


@pytest.mark.parametrize(("change", "how"), WAYS)
def test_a_change_is_there_wholly_or_not_at_all_and_can_be_made_again(tries: Tries, change: str, how: str) -> None:
    expected, found = tries.expected[change], tries.by_way[change, how]
    for tried in found:
        assert "error" not in tried, tried
        after = is_after(expected, tried)
        as_if = expected["twice" if after else "once"]
        assert tried["end"]["content"] == as_if["content"], tried
        assert tried["end"]["generation"] == tried["again"]
        # What was left is removed by the next publication, if not by this change, which may have nothing to do.
        assert tried["strays"] == [], tried
        assert tried["end"]["strays"] == [] or (after and tried["again"] == tried["left"]["generation"])


@pytest.mark.parametrize(("change", "how"), WAYS)
def test_what_was_done_is_told(tries: Tries, change: str, how: str) -> None:
    """What was acknowledged is there, whatever follows; what failed says with which file."""
    expected, (*struck, through) = tries.expected[change], tries.by_way[change, how]
    assert len(struck) >= LEAST.get(how, LEAST["kill"]) // STRIDES[change][how]
    assert not through["outcome"]["struck"]
    assert is_after(expected, through)
    for tried in struck:
        outcome = tried["outcome"]
        if how in KILLED:
            assert outcome is None
        elif how == "terminate":
            assert outcome == {"exit": 130, "struck": True}
        elif how == "interrupt":
            assert outcome["error"] == "KeyboardInterrupt"
        elif "generation" in outcome:
            # It was only in clearing away that the disk failed.
            assert is_after(expected, tried)
        else:
            assert outcome["error"] in ("OSError", "SyncError", "NotSyncedError")
            assert (outcome["error"] == "NotSyncedError") <= is_after(expected, tried)
            # A restoration looks at the manifest of the backup in a temporary folder.
            assert "/tried" in outcome["message"] or change == "restore", outcome


@pytest.mark.parametrize("change", STRIDES)
def test_changes_are_struck_before_and_after_they_are_published(tries: Tries, change: str) -> None:
    expected = tries.expected[change]
    found = [tried for how in ("kill", "EIO", "interrupt") for tried in tries.by_way[change, how][:-1]]
    assert {is_after(expected, tried) for tried in found} == {False, True}


@pytest.mark.parametrize("change", ["add", "delete", "compact", "merge"])
@pytest.mark.parametrize("how", ["interrupt", "EIO", "ENOSPC"])
def test_what_fails_takes_away_what_it_has_written(tries: Tries, change: str, how: str) -> None:
    expected = tries.expected[change]
    for tried in tries.by_way[change, how]:
        assert is_after(expected, tried) or tried["left"]["strays"] == [], tried
