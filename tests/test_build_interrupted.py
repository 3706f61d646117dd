"""A build that is interrupted at any moment leaves the live index as it was, and the same command finishes it."""

import json
from typing import Any

import pytest

from tests.conftest import random_gaussians, write_corpus
from tests.programs import said_by

STRIDES = {"kill": 1, "torn": 1, "terminate": 7, "interrupt": 5, "full": 97}

Tries = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def tries(tmp_path_factory: pytest.TempPathFactory) -> Tries:
    """What tests/interrupting.py found, by how it interrupted; under "expected" what uninterrupted builds give."""
    folder = tmp_path_factory.mktemp("interrupted")
    write_corpus(folder / "live.parquet", random_gaussians(6, 2))
    documents = random_gaussians(10, 2, seed=1)
    with (folder / "corpus.jsonl").open("w") as file:
        for row in range(10):
            mean, variance = documents.means[row].tolist(), documents.variances[row].tolist()
            # Rows 3 and 8 are bad: skipped rows must be counted and listed once however often a build is resumed.
            bad = {"variance": [1.0, 0.0]} if row % 5 == 3 else {}
            line = {"id": f"new{row}", "mean": mean, "variance": variance, "text": f"text {row}", **bad}
            file.write(json.dumps(line) + "\n")
    ways = [f"{how}:{stride}" for how, stride in STRIDES.items()]
    expected, *outcomes = said_by("interrupting", folder, *ways)
    return {"expected": [expected], **{how: [tried for tried in outcomes if tried["how"] == how] for how in STRIDES}}


def content(files: dict[str, str]) -> dict[str, str]:
    """The files that say what was built: not the lock, nor the manifest and CURRENT, which hold a time."""
    return {
        name: checksum for name, checksum in files.items() if name.startswith("segments/") or name == "rejected.jsonl"
    }


def assert_recovered(expected: dict[str, Any], tried: dict[str, Any]) -> None:
    """The directory was served well all the time, and ended up as if nothing had happened."""
    live, whole, left, again, end = expected["live"], expected["whole"], tried["left"], tried["again"], tried["end"]
    before = {1: live, 2: whole}[left["generation"]]
    assert left["ranking"] == before["ranking"]
    if before is live:
        kept = {name: checksum for name, checksum in live["files"].items() if name != "rejected.jsonl"}
        assert kept.items() <= left["files"].items()
    others = ("staging/plan.json", "staging/rejected.jsonl")
    records = [name for name in left["files"] if name.startswith("staging/") and name not in others]
    # 8 good documents in segments of 4; of the second nothing is used while the first is not whole.
    whole_records = [f"staging/{ordinal:05d}.json" in records for ordinal in range(2)]
    resumed = 4 * (whole_records[0] + all(whole_records))
    assert again == {"resumed": 0 if before is whole else resumed, "up_to_date": before is whole}
    assert (end["generation"], end["ranking"]) == (2, whole["ranking"])
    assert content(end["files"]) == content(whole["files"])
    if before is live:
        assert end["files"].keys() == whole["files"].keys()


def failed(outcome: dict[str, Any] | None, error: str | None) -> bool:
    return outcome is None if error is None else outcome is not None and outcome.get("error") == error


@pytest.mark.parametrize(
    ("how", "error", "least"),
    [("kill", None, 40), ("torn", None, 12), ("terminate", None, 6), ("interrupt", "KeyboardInterrupt", 8)],
)
def test_a_build_resumes_after_an_interruption_at_any_moment(
    tries: Tries, how: str, error: str | None, least: int
) -> None:
    (expected,), outcomes = tries["expected"], tries[how]
    assert (expected["live"]["generation"], len(expected["whole"]["ranking"][0])) == (1, 8)
    for tried in outcomes:
        assert_recovered(expected, tried)
    *interrupted, through = outcomes
    assert through["outcome"] == {"resumed": 0, "up_to_date": False}
    assert all(failed(tried["outcome"], error) for tried in interrupted)
    assert len(interrupted) >= least
    # The interruptions reached every stage: nothing read, some segments read, all of them. Where two are worked on at a
    # time, they may well be done at the same one.
    stages = {tried["again"]["resumed"] for tried in interrupted}
    assert stages | {4} == {0, 4, 8} if how == "kill" else stages == {0, 4, 8}


def test_a_build_killed_just_after_it_published_has_nothing_left_to_do(tries: Tries) -> None:
    assert any(tried["again"]["up_to_date"] for tried in tries["kill"][:-1])


def test_a_build_resumes_after_the_disk_was_full(tries: Tries) -> None:
    (expected,), (*interrupted, through) = tries["expected"], tries["full"]
    for tried in (*interrupted, through):
        assert_recovered(expected, tried)
    assert through["outcome"] == {"resumed": 0, "up_to_date": False}
    assert {tried["outcome"]["error"] for tried in interrupted} == {"OSError"}
    assert {tried["again"]["resumed"] for tried in interrupted} == {0, 8}
