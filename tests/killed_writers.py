"""A program that kills writers of one index at random, and says what of their changes there is then.

    python -m tests.killed_writers FOLDER KILLS

One writer after the other changes the index, each going on where it finds it: documents written and deleted, segments
compacted, the index built anew. A change has a number, which says what it is. A writer tells each that has returned,
and is killed at a time that nobody chose. Prints a line of JSON for each: how many changes it had told, what there was
then of the next, and whether all that was as it should be.

Each is a fork of this process, which has imported everything and started no threads.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from index import BuildOptions, IndexDirectory, build_index
from index.build_options import AddOptions, CompactOptions
from index.changes import add_documents, compact_index, delete_documents
from tests.conftest import random_gaussians, write_corpus
from tests.faults import Beside, in_a_fork
from tests.write_history import K, document, documents_of

IDS = [f"d{number}" for number in range(12)]
BASE = 6
PACE = 0.05
"""Seconds that a change takes at least."""
LONGEST = 3
"""Changes for which a writer has time at most, once it has begun, at the pace of those before it."""
PATIENCE = 5.0
"""Seconds that it has at most, whatever the pace."""

Model = dict[str, int]
"""Which change each document is of."""


def planned(number: int) -> tuple[str, list[str]]:
    """What change number so many is, and which documents it is of."""
    drawn = random.Random(number)
    (kind,) = drawn.choices(["add", "delete", "compact", "retrain"], [60, 25, 10, 5])
    return kind, drawn.sample(IDS, drawn.randint(1, 4))


def changed(model: Model, number: int) -> Model:
    """What there is after a change."""
    kind, ids = planned(number)
    if kind == "add":
        return {**model, **dict.fromkeys(ids, number)}
    return {name: by for name, by in model.items() if kind != "delete" or name not in ids}


def make(folder: Path, number: int) -> None:
    """Makes a change."""
    directory, (kind, ids) = IndexDirectory(folder / "index"), planned(number)
    if kind == "add":
        documents = [document(name, number) for name in ids]
        lines = [json.dumps({**each, **each.pop("payload")}) for each in documents]
        (folder / "added.jsonl").write_text("\n".join(lines))
        add_documents([folder / "added.jsonl"], directory, AddOptions(device="cpu"))
    elif kind == "delete":
        delete_documents(ids, directory)
    else:
        compact_index(directory, CompactOptions(retrain=kind == "retrain", restart=kind == "retrain", device="cpu"))


def told_before_it_was_killed(folder: Path, first: int, seconds: float) -> list[int]:
    """The changes that a writer has told, from the first on; it is killed so long after it has begun."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            os.write(writer, b"begun\n")
            for number in range(first, first + 1000):
                make(folder, number)
                os.write(writer, f"{number}\n".encode())
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        pipe.readline()
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        told = [int(line) for line in pipe]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "a writer has failed"
    return told


def there(folder: Path) -> Model:
    """What the index holds beside its first documents, every byte of it checked."""
    found = documents_of(IndexDirectory(folder / "index"))
    assert [found.pop(f"base{row}") for row in range(BASE)] == [-1] * BASE
    return {name: int(by or 0) for name, by in found.items()}


def kill_all(folder: Path, kills: int) -> Iterator[dict[str, Any]]:
    times, beside, model, first = random.Random(0), Beside(lambda _: there(folder)), Model(), 0
    lived, made = 0.0, 0
    for _ in range(kills):
        # On a machine that others use, too, a writer takes longer to come to anything.
        seconds = times.uniform(0, min(PATIENCE, LONGEST * max(PACE, lived / (made + 1))))
        told = told_before_it_was_killed(folder, first, seconds)
        lived, made = lived + seconds, made + len(told)
        for number in told:
            assert number == first
            model, first = changed(model, number), number + 1
        found, after = beside.ask(None), changed(model, first)
        next_one = "made" if found == after else "not made" if found == model else "neither"
        if model == after:
            next_one = "says nothing"
        yield {"told": len(told), "next": next_one, "whole": found in (model, after), "found": found, "expected": model}
        if next_one == "made":
            model, first = after, first + 1


def warm_up(folder: Path) -> list[str]:
    """Makes the index, and some changes of a copy; returns the modules that all this imports on first use."""
    before = set(sys.modules)
    ids = [f"base{row}" for row in range(BASE)]
    corpus = write_corpus(folder / "base.parquet", random_gaussians(BASE, K), ids, request=[-1] * BASE)
    for name in ("warm/index", "index"):
        (folder / name).parent.mkdir(exist_ok=True)
        build_index([corpus], IndexDirectory(folder / name), BuildOptions(device="cpu", segment_docs=8))
    for number in range(40):
        make(folder / "warm", number)
    there(folder / "warm")
    return [name for name, module in sys.modules.items() if name not in before and getattr(module, "__spec__", None)]


def main(folder: Path, kills: int) -> None:
    for module in in_a_fork(lambda: warm_up(folder)):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)  # so that no fork has to do it again
    gc.freeze()  # so that collections in the forks do not copy this process's memory
    for line in kill_all(folder, kills):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
