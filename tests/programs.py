"""Programs of the tests: modules that do what must not be done in pytest's own process, and say what came of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["said_by"]


def said_by(program: str, *arguments: object) -> list[dict[str, Any]]:
    """The lines of JSON that `python -m tests.PROGRAM` prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.{program}", *map(str, arguments)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
