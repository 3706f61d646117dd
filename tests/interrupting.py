"""A program that interrupts a build at one moment after another, and says what was left and how the next build went.

    python -m tests.interrupting FOLDER HOW:STRIDE ...

FOLDER holds live.parquet and corpus.jsonl. Each try starts from a copy of an index of the first, builds the second over
it, and interrupts that build at moment 1, 1 + STRIDE, ... until a build comes through. HOW, and what a moment is, says
tests/faults.py. Prints a line of JSON for each try, and first of all one with what uninterrupted builds give.

Each try is a fork of this process, which has imported everything and started no threads: importing takes seconds, and
a test has hundreds of tries.
"""

import gc
import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, build_index
from index.durable import checksum
from tests.faults import arm, in_a_fork, one_after_the_other

OPTIONS = BuildOptions(segment_docs=4, on_error="skip", device="cpu")
QUERY = Gaussians.from_arrays([[0.3, -0.2]], [[1.0, 0.5]])


def build(folder: Path, directory: Path) -> dict[str, Any]:
    summary = build_index([folder / "corpus.jsonl"], IndexDirectory(directory), OPTIONS)
    return {"resumed": summary.resumed_documents, "up_to_date": summary.up_to_date}


def state(directory: Path) -> dict[str, Any]:
    """What is served from the directory, checked, and everything that lies in it."""
    manifest = IndexDirectory(directory).verify()
    (ranking,) = LocalSearcher(IndexDirectory(directory)).search(QUERY, 20)
    files = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    return {
        "generation": manifest.generation,
        "ranking": [ranking.ids, ranking.scores.tolist()],
        "files": {name: checksum(path.read_bytes()) for name, path in files.items()},
    }


def build_live(folder: Path, directory: Path) -> list[str]:
    """Builds the live index and returns the modules that building and searching import on first use."""
    before = set(sys.modules)
    build_index([folder / "live.parquet"], IndexDirectory(directory), OPTIONS)
    build(folder, directory.with_name("first"))
    state(directory.with_name("first"))
    return [name for name in sys.modules if name not in before]


def main(folder: Path, ways: list[str]) -> None:
    live, whole = folder / "live", folder / "whole"
    for module in in_a_fork(lambda: build_live(folder, live)):
        importlib.import_module(module)  # what is imported only when it is used, so that no fork has to do it again
    gc.freeze()  # so that collections in the forks do not copy this process's memory
    shutil.copytree(live, whole)
    in_a_fork(lambda: build(folder, whole))
    print(json.dumps({"live": in_a_fork(lambda: state(live)), "whole": in_a_fork(lambda: state(whole))}), flush=True)
    for way in ways:
        how, _, stride = way.partition(":")
        try_all(folder, how, int(stride))


def try_all(folder: Path, how: str, stride: int) -> None:
    moment, live, directory = 1, folder / "live", folder / "tried"
    while True:
        shutil.copytree(live, directory)

        def interrupted(moment: int = moment) -> dict[str, Any]:
            if how != "kill":
                # Kills hit a build that works on several segments, as builds do.
                one_after_the_other()
            arm(how, moment)
            return build(folder, directory)

        outcome = in_a_fork(interrupted)
        after = in_a_fork(
            lambda: {"left": state(directory), "again": build(folder, directory), "end": state(directory)}
        )
        print(json.dumps({"how": how, "moment": moment, "outcome": outcome, **after}), flush=True)
        shutil.rmtree(directory)
        if outcome is not None and "error" not in outcome:
            return
        moment += stride


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
