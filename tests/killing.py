"""A program that kills a backup, or a restoration, at one moment after another, and says what was left and how the same
command went again.

    python -m tests.killing FOLDER

FOLDER holds the index `live` and `backup.tar`, a backup of another one. What a moment is says tests/faults.py. Prints a
line of JSON for each try. Each is a fork of this process, which has imported everything and started no threads.
"""

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from index import IndexDirectory
from index.backup import back_up
from index.restoring import restore
from tests.faults import arm, in_a_fork


def state(directory: Path) -> list[int]:
    """The live generation, every byte of it checked, and how many documents it has."""
    manifest = IndexDirectory(directory).verify()
    return [manifest.generation, manifest.documents]


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def backing_up(folder: Path) -> list[int]:
    return [back_up(IndexDirectory(folder / "index"), folder / "target.tar.zst").generation]


def backing_up_into_a_folder(folder: Path) -> list[int]:
    return [back_up(IndexDirectory(folder / "index"), folder / "target").generation]


def restoring(folder: Path) -> list[int]:
    return [restore(folder.parent / "backup.tar", IndexDirectory(folder / "index")).generation]


def look(folder: Path) -> dict[str, Any]:
    """What is there: the index, and the target of a backup, where that has its name."""
    targets = [path for path in (folder / "target", folder / "target.tar.zst") if path.exists()]
    restored = [restore(path, IndexDirectory(folder / f"from-{path.name}")).documents for path in targets]
    return {"index": state(folder / "index"), "targets": restored}


def main(folder: Path) -> None:
    tried = folder / "tried"
    for command, stride in ((backing_up, 1), (backing_up_into_a_folder, 3), (restoring, 1)):
        moment, done = 1, None
        while done is None:
            shutil.copytree(folder / "live", tried / "index")

            def killed(command: Callable[[Path], Any] = command, moment: int = moment) -> Any:
                arm("kill", moment)
                return command(tried)

            done = in_a_fork(killed)
            found = in_a_fork(lambda: look(tried))
            if done is None:
                # What has been made stands in the way of making it once more.
                for path in (tried / "target", tried / "target.tar.zst"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            again = in_a_fork(partial(command, tried)) if done is None else None
            end = in_a_fork(lambda: state(tried / "index"))
            line = {"command": command.__name__, "moment": moment, "done": done, "found": found, "again": again}
            print(json.dumps({**line, "end": end, "left": left(tried / "index")}), flush=True)
            shutil.rmtree(tried)
            moment += stride


if __name__ == "__main__":
    main(Path(sys.argv[1]))
