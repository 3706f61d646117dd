"""Writers that are killed at random lose nothing that they have said is done, and leave nothing half done."""

import collections
from pathlib import Path

import pytest

from tests.programs import said_by

KILLS = 200


@pytest.mark.timeout(600)
def test_writers_killed_at_random_lose_nothing_that_they_have_told(memory: Path) -> None:
    """After every kill the index is whole, all changes that had returned are there, and the one that was being made is
    there wholly or not at all."""
    killed = said_by("killed_writers", memory, KILLS)
    assert len(killed) == KILLS
    for number, each in enumerate(killed):
        assert each["whole"], (number, each)
    # They met writers at work: before they had done anything, and after; and some had just made what they could not
    # tell any more.
    assert sum(each["told"] for each in killed) >= KILLS // 4
    assert {0, 1} <= {each["told"] for each in killed}
    found = collections.Counter(each["next"] for each in killed)
    assert found["not made"] > KILLS // 8
    assert found["made"] > 0
