"""scripts/soak.py at a size that takes seconds, and that it finds what it is there to find."""

import importlib
import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
REQUESTS, ROUNDS = 1500, 3


def test_mixed_traffic_leaves_nothing_behind(tmp_path: Path) -> None:
    report = tmp_path / "soak.json"
    options = ["--requests", str(REQUESTS), "--rounds", str(ROUNDS), "--seconds", "250", "--json", str(report)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GAUSSEARCH_")}
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "soak.py"), *options],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(report.read_text())
    assert seen["faults"] == []
    held = seen["held"]
    assert [each["requests"] for each in held] == [REQUESTS * number // ROUNDS for number in range(ROUNDS + 1)]
    assert [each["generation"] for each in held] == list(range(1, ROUNDS + 2))
    assert {each["descriptors"] for each in held} == {held[0]["descriptors"]}
    kinds = {what.split(":")[0] for what in seen["seen"]}
    assert kinds == {"search", "batch", "document", "similar", "mistake", "deadline", "broken off", "look"}


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    soak = importlib.import_module("soak")

    def found(held: list[dict[str, float]], unexpected: tuple[str, ...] = ()) -> list[str]:
        traffic, options = Namespace(unexpected=unexpected), Namespace(rounds=len(held) - 1, max_growth=10.0)
        faults: list[str] = soak.faults(traffic, held, options)
        return faults

    return found


def quiet(*memory: float, **changes: Any) -> list[dict[str, float]]:
    held = [{"memory": each, "descriptors": 17.0, "generation": number + 1.0} for number, each in enumerate(memory)]
    held[-1].update(changes)
    return held


def test_what_must_not_be_is_found(faults: Callable[..., list[str]]) -> None:
    # What the warm-up takes is not counted, and later as much as may be retained.
    assert faults(quiet(100, 150, 155, 159, 152, 160, 151)) == []
    assert faults(quiet(100, 120, 150, 160.1, 140, 130, 120)) == [
        "memory grew by 10.1 MiB after the warm-up; 10.0 may be retained"
    ]
    assert "18 file descriptors" in faults(quiet(100, 100, 100, descriptors=18.0))[0]
    assert "generation 3 was published" in faults(quiet(100, 100, 100, generation=2.0))[0]
    assert "search: 500" in faults(quiet(100, 100, 100), ("search: 500 failed", "search: 503"))[0]
