"""A program that strikes changes of an index at one moment after another, and says what was left and how the same
change went again.

    python -m tests.interrupting_changes FOLDER CHANGE:HOW:STRIDE ...

HOW, and what a moment is, says tests/faults.py. Each try starts from a copy of an index and makes the change, which is
struck at moment 1, 1 + STRIDE, ... until one comes through unstruck. Prints a line of JSON for each try, and before
those of a change one with what is there before it, after it, and after it was made twice.

Each try is a fork of this process, which has imported everything and started no threads.
"""

import gc
import importlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import typer

import index.changes
from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, build_index
from index.backup import back_up
from index.build_options import AddOptions, CompactOptions, WriteOptions
from index.changes import add_documents, compact_index, delete_documents, roll_back
from index.maintenance import merge_due
from index.manifest import IndexKind
from index.restoring import restore
from index.segments import read_segment_manifest
from service.commands import errors
from tests.conftest import random_gaussians, write_corpus
from tests.faults import POWER_CUTS, Beside, arm, in_a_fork, one_after_the_other

QUERY = Gaussians.from_arrays([[0.3, -0.2]], [[1.0, 0.5]])
FOUND = 20


class Change(NamedTuple):
    """A change of the index that is called `live`."""

    live: str
    make: Callable[[Path, IndexDirectory], Any]


def add(folder: Path, directory: IndexDirectory) -> int:
    return add_documents([folder / "added.parquet"], directory, AddOptions(device="cpu")).manifest.generation


def delete(_: Path, directory: IndexDirectory) -> int:
    return delete_documents(["d0", "d7", "nobody"], directory).manifest.generation


def compact(_: Path, directory: IndexDirectory) -> int:
    return compact_index(directory, CompactOptions(device="cpu")).generation


def retrain(_: Path, directory: IndexDirectory) -> int:
    return compact_index(directory, CompactOptions(retrain=True, device="cpu")).generation


def merge(_: Path, directory: IndexDirectory) -> int | None:
    merged = merge_due(directory)
    return merged.generation if merged is not None else directory.live_generation()


def build(folder: Path, directory: IndexDirectory) -> int | None:
    build_index([folder / "other.parquet"], directory, BuildOptions(segment_docs=6, device="cpu"))
    return directory.live_generation()


def bring_back(folder: Path, directory: IndexDirectory) -> int:
    return restore(folder / "backup.tar", directory).generation


def go_back(_: Path, directory: IndexDirectory) -> int:
    return roll_back(directory, 2, WriteOptions(keep_generations=9)).generation


CHANGES = {
    "add": Change("flat", add),
    "delete": Change("flat", delete),
    "compact": Change("flat", compact),
    "retrain": Change("flat", retrain),
    "merge": Change("many", merge),
    "rollback": Change("flat", go_back),
    "build": Change("flat", build),
    "restore": Change("flat", bring_back),
    "add-fastscan": Change("fastscan", add),
    "compact-fastscan": Change("fastscan", compact),
    "compact-ivf": Change("ivf", compact),
}


def write(path: Path, ids: list[str], seed: int) -> Path:
    return write_corpus(path, random_gaussians(len(ids), 2, seed), ids, text=[f"{name} of {seed}" for name in ids])


def make_index(folder: Path, name: str, documents: int, **options: Any) -> None:
    """An index in its third generation, of a build, some more documents and deletions; `many` has eight segments that
    are worth merging."""
    directory = IndexDirectory(folder / name)
    corpus = write(folder / f"{name}.parquet", [f"d{row}" for row in range(documents)], 1)
    build_index([corpus], directory, BuildOptions(device="cpu", **options))
    add_documents([write(folder / "more.parquet", ["d1", "more0", "more1"], 2)], directory)
    delete_documents(["d3", "more0"], directory)
    if name == "many":
        # What is due is to be done by the command that is tried.
        index.changes.maintain = lambda *_: None  # type: ignore[attr-defined]
        for number in range(7):
            add_documents([write(folder / "one.parquet", [f"one{number}"], 3 + number)], directory)


def make_indexes(folder: Path) -> None:
    write(folder / "added.parquet", ["d0", *(f"new{number}" for number in range(6))], 99)
    make_index(folder, "flat", 10, segment_docs=6)
    write(folder / "other.parquet", [f"other{number}" for number in range(9)], 98)
    build_index([folder / "other.parquet"], IndexDirectory(folder / "another"), BuildOptions(device="cpu"))
    back_up(IndexDirectory(folder / "another"), folder / "backup.tar")
    make_index(folder, "many", 10, segment_docs=16)
    make_index(folder, "fastscan", 300, segment_docs=200, kind=IndexKind.FASTSCAN)
    make_index(folder, "ivf", 300, segment_docs=200, kind=IndexKind.IVF_FASTSCAN)


def state(path: Path) -> dict[str, Any]:
    """What the live generation is, every byte of all that are kept checked, and what else lies there."""
    directory = IndexDirectory(path)
    manifest = directory.verify()
    live = manifest.generation
    generations = [manifest if number == live else directory.verify(number) for number in directory.generations()]
    (ranking,) = LocalSearcher(directory, device="cpu").search(QUERY, FOUND)
    segments = [read_segment_manifest(directory.segments / entry.id, entry).files for entry in manifest.segments]
    codes = manifest.codes
    named = {Path("CURRENT"), Path(".lock")}
    for generation in generations:
        named |= directory.files(generation).keys()
        named |= {Path(f"manifests/{generation.generation:08d}.{suffix}") for suffix in ("json", "blake3")}
    there = {file.relative_to(path) for file in path.rglob("*")}
    folders = {folder for file in named for folder in file.parents}
    kept = {Path(name) for name in ("segments", "deletes", "codebooks", "structures", "pins")}
    return {
        "generation": manifest.generation,
        "generations": [generation.generation for generation in generations],
        "strays": sorted(map(str, there - named - folders - kept)),
        "content": {
            "kind": manifest.kind,
            "documents": manifest.documents,
            "ranking": [ranking.ids, ranking.scores.tolist()],
            "segments": [{name: file.blake3 for name, file in files.items()} for files in segments],
            "deletes": [entry.deletes and entry.deletes.file.blake3 for entry in manifest.segments],
            "codebook": codes and codes.file.blake3,
            "structure": codes and codes.structure and codes.structure.file.blake3,
        },
    }


def go_on(folder: Path, name: str) -> dict[str, Any]:
    """What is left of a change, what there is when it has been made again, and what is still in the way after one more
    change."""
    directory = IndexDirectory(folder / "tried" / "index")
    left = state(directory.path)
    again = CHANGES[name].make(folder, directory)
    end = state(directory.path)
    if end["strays"]:
        delete_documents(["d9", "other8"], directory)
    return {"left": left, "again": again, "end": end, "strays": end["strays"] and state(directory.path)["strays"]}


def try_all(folder: Path, name: str, how: str, stride: int, beside: Beside) -> None:
    """Strikes a change in one way, at one moment after another."""
    change, moment, tried = CHANGES[name], 1, folder / "tried"
    directory, struck = IndexDirectory(tried / "index"), True

    def begin() -> dict[str, Any]:
        one_after_the_other()
        tempfile.gettempdir()  # which it writes to find out, once
        fault = arm(how, moment, directory.path)
        assert fault is not None
        outcome: dict[str, Any] = {}
        try:
            if how == "terminate":
                with errors():
                    outcome["generation"] = change.make(folder, directory)
            else:
                outcome["generation"] = change.make(folder, directory)
            if how in POWER_CUTS and not fault.struck:
                fault.cut_power()
        except typer.Exit as left:
            outcome["exit"] = left.exit_code
        except BaseException as error:  # noqa: BLE001 (it is what is reported)
            outcome |= {"error": type(error).__name__, "message": str(error)}
        return {**outcome, "struck": fault.struck}

    while struck:
        shutil.copytree(folder / change.live, directory.path)
        outcome = in_a_fork(begin)
        line = {"change": name, "how": how, "moment": moment, "outcome": outcome}
        print(json.dumps({**line, **beside.ask(name)}), flush=True)
        shutil.rmtree(tried)
        struck = outcome is None or outcome["struck"]
        moment += stride


def expected(folder: Path, name: str) -> dict[str, Any]:
    """The states of an index before, after, and after one more of a change."""
    change, directory = CHANGES[name], IndexDirectory(folder / "whole")
    shutil.copytree(folder / change.live, directory.path)
    states = {}
    for when in ("before", "once", "twice"):
        if when != "before":
            in_a_fork(lambda: change.make(folder, directory))
        states[when] = in_a_fork(lambda: state(directory.path))
    shutil.rmtree(directory.path)
    return states


def warm_up(folder: Path) -> list[str]:
    """Makes the indexes, and returns the modules that all this imports on first use."""
    before = set(sys.modules)
    make_indexes(folder)
    for name, change in CHANGES.items():
        shutil.copytree(folder / change.live, folder / f"warm-{name}")
        change.make(folder, IndexDirectory(folder / f"warm-{name}"))
        state(folder / f"warm-{name}")
    return [name for name, module in sys.modules.items() if name not in before and getattr(module, "__spec__", None)]


def main(folder: Path, wanted: list[str]) -> None:
    for module in in_a_fork(lambda: warm_up(folder)):
        importlib.import_module(module)  # so that no fork has to do it again
    gc.freeze()  # so that collections in the forks do not copy this process's memory
    beside = Beside(partial(go_on, folder))
    known = set()
    for each in wanted:
        name, how, stride = each.split(":")
        if name not in known:
            print(json.dumps({"change": name, "expected": expected(folder, name)}), flush=True)
            known.add(name)
        try_all(folder, name, how, int(stride), beside)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
