"""A program that has commands run with ever higher limits of open files or memory until they succeed, and says how each
ended.

    python -m tests.limited FOLDER WHAT:COMMAND:STEP ...

WHAT is files or memory: a command may open so many more files, or take so many more bytes, than there are when it
starts: STEP at first, then STEP more each time. FOLDER/WHAT holds an index `live` and corpora. Prints a line of JSON
for each try, and before those of a command one with what is there before and after it.

Each try is a fork of this process, which has imported everything and started no threads.
"""

import gc
import importlib
import itertools
import json
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from index import Gaussians, IndexDirectory, LocalSearcher
from service.cli import app
from tests.faults import Beside, in_a_fork

COMMANDS: dict[str, tuple[str, ...]] = {
    "build": ("build", "{folder}/corpus.parquet", "--segment-docs", "700"),
    "add": ("add", "{folder}/more.parquet"),
    "delete": ("delete", "--ids", "d1", "--ids", "d15"),
    "compact": ("compact",),
    "retrain": ("compact", "--retrain"),
    "search": ("search", "--queries", "{folder}/more.parquet", "--top-k", "2"),
    "verify": ("verify",),
}
MOST = 400
"""Tries that are enough for any command."""
PATIENCE = 10
"""Seconds that a try may take; it takes a tenth of one."""


def run(folder: Path, name: str, index: Path) -> dict[str, Any]:
    """How a command ends."""
    words = [word.format(folder=folder) for word in COMMANDS[name]]
    result = CliRunner().invoke(app, [*words, "--index", str(index)], env={"COLUMNS": "1000"})
    unexpected = result.exception is not None and not isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line.startswith("gaussearch: ")]
    return {"exit": result.exit_code, "unexpected": repr(result.exception) if unexpected else None, "said": lines}


def content(path: Path) -> list[Any] | None:
    """What the live generation holds, every byte of it checked; None where there is none."""
    directory = IndexDirectory(path)
    if directory.live_generation() is None:
        return None
    manifest = directory.verify()
    query = Gaussians.from_arrays([[0.1] * manifest.k], [[1.0] * manifest.k])
    (ranking,) = LocalSearcher(directory, device="cpu").search(query, 30)
    return [manifest.documents, ranking.ids, ranking.scores.tolist(), [entry.live for entry in manifest.segments]]


def limit(what: str, more: int) -> None:
    """Lets this process open so many more files, or take so many more bytes."""
    if what == "files":
        opened = {int(file.name) for file in Path("/proc/self/fd").iterdir()}
        # The lowest numbers that are free are taken first.
        free = (number for number in itertools.count() if number not in opened)
        most = next(itertools.islice(free, more, None))
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    else:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + more, taken + more))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def try_all(folder: Path, what: str, name: str, step: int, beside: Beside) -> None:
    """Runs a command with one limit after another."""
    tried, live = folder / "tried", folder / what / "live"
    for number in range(1, MOST):
        shutil.copytree(live, tried)

        def limited(more: int = number * step) -> dict[str, Any]:
            if what == "memory":
                # CPython waits for ever for a thread that had no memory to say that it has begun.
                signal.alarm(PATIENCE)
            limit(what, more)
            return run(folder / what, name, tried)

        ended = in_a_fork(limited)
        found = beside.ask([what, name])
        print(json.dumps({"what": what, "name": name, "more": number * step, "ended": ended, **found}), flush=True)
        shutil.rmtree(tried)
        if ended is not None and ended.get("exit") == 0:
            return


def main(folder: Path, wanted: list[str]) -> None:
    def expected(what: str, name: str) -> dict[str, Any]:
        shutil.copytree(folder / what / "live", folder / "whole")
        before = content(folder / "whole")
        run(folder / what, name, folder / "whole")
        after = content(folder / "whole")
        shutil.rmtree(folder / "whole")
        return {"before": before, "after": after}

    def warm_up() -> list[str]:
        before = set(sys.modules)
        for each in wanted:
            what, name, _ = each.split(":")
            expected(what, name)
        return [it for it, module in sys.modules.items() if it not in before and getattr(module, "__spec__", None)]

    def go_on(asked: list[str]) -> dict[str, Any]:
        what, name = asked
        left = content(folder / "tried")
        again = run(folder / what, name, folder / "tried")
        return {"left": left, "again": again["exit"], "end": content(folder / "tried")}

    for module in in_a_fork(warm_up):
        importlib.import_module(module)
    gc.freeze()
    beside = Beside(go_on)
    for each in wanted:
        what, name, step = each.split(":")
        states = in_a_fork(lambda what=what, name=name: expected(what, name))  # type: ignore[misc]
        print(json.dumps({"what": what, "name": name, "expected": states}), flush=True)
        try_all(folder, what, name, int(step), beside)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
