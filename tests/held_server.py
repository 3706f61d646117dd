"""`gaussearch` whose searches wait until a file is there, as a process of its own.

    python -m tests.held_server FILE serve ...

Every search leaves a byte in FILE.begun, so that a test knows how many have begun.
"""

import sys
import time
from pathlib import Path
from typing import Any

from index import LocalSearcher, Ranking
from service import live_index
from service.cli import main


def hold(gate: Path) -> None:
    class Held(LocalSearcher):
        def search(self, *arguments: Any, **options: Any) -> list[Ranking]:
            with gate.with_suffix(".begun").open("a") as begun:
                begun.write(".")
            while not gate.exists():
                time.sleep(0.005)
            return super().search(*arguments, **options)

    live_index.LocalSearcher = Held  # type: ignore[attr-defined]


if __name__ == "__main__":
    hold(Path(sys.argv.pop(1)))
    main()
