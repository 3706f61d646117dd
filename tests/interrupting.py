"""A program that interrupts a build at one moment after another, and says what was left and how the next build went.

    python -m tests.interrupting FOLDER HOW:STRIDE ...

FOLDER holds live.parquet and corpus.jsonl. Each try starts from a copy of an index of the first, builds the second over
it, and interrupts that build at moment 1, 1 + STRIDE, ... until a build comes through. A moment is just before anything
is changed in the file system: a file opened for writing, synced, renamed or removed, a folder made or removed.

HOW is kill (SIGKILL), terminate (SIGTERM), interrupt (KeyboardInterrupt), torn (SIGKILL with half of the file that is
being synced missing), or full (files can grow no further than so many bytes). Prints a line of JSON for each try, and
first of all one with what uninterrupted builds give.

Each try is a fork of this process, which has imported everything and started no threads: importing takes seconds, and
a test has hundreds of tries.
"""

import gc
import importlib
import json
import os
import resource
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import index.build_encoding
import index.durable
from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, build_index
from index.durable import checksum

OPTIONS = BuildOptions(segment_docs=4, on_error="skip", device="cpu")
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
QUERY = Gaussians.from_arrays([[0.3, -0.2]], [[1.0, 0.5]])


def in_a_fork(work: Callable[[], Any]) -> Any:
    """What `work` returns in a process of its own, through JSON; None where that process died of it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            os.write(writer, json.dumps(work()).encode())
        except BaseException as error:  # noqa: BLE001 (interruptions are what is reported)
            os.write(writer, json.dumps({"error": type(error).__name__, "message": str(error)}).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer) if answer else None


def arm(how: str, moment: int) -> None:
    """Has this process interrupted at that moment."""
    if how == "full":
        # Python ignores SIGXFSZ, so that a write beyond the limit fails as one to a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (moment - 1, resource.RLIM_INFINITY))
        return
    passed = 0
    synced: set[int] = set()
    sync = os.fsync

    def pass_moment() -> None:
        nonlocal passed
        passed += 1
        if passed != moment:
            return
        if how == "interrupt":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM if how == "terminate" else signal.SIGKILL)

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if how != "torn" and (writes or event in CHANGES):
            pass_moment()

    def fsync(descriptor: int) -> None:
        file = os.fstat(descriptor)
        # What has been synced before is whole, so that only the first time is a moment at which it can be torn.
        if stat.S_ISREG(file.st_mode) and not (how == "torn" and file.st_ino in synced):
            if how == "torn" and passed + 1 == moment:
                os.truncate(f"/proc/self/fd/{descriptor}", file.st_size // 2)
            pass_moment()
        synced.add(file.st_ino)
        sync(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
    sys.addaudithook(on_event)


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
                # One thing after the other, so that a moment is the same at every try. Kills hit a build that works on
                # several segments, as builds do.
                index.build_encoding.available_cores = lambda: 1  # type: ignore[attr-defined]
                index.build_encoding.SEGMENTS_WAITING = 0
                index.durable.Syncer.sync = lambda _, path: index.durable.sync(path)  # type: ignore[assignment,method-assign]
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
