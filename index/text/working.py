"""The folder beside an output in which a command keeps what it has made of it, for one process at a time."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from index.durable import write_atomically
from index.errors import BuildError

__all__ = ["EXPORTED", "REJECTED", "clear", "holding", "parts_in", "working_folder"]

EXPORTED: Final = "texts.jsonl.zst"
REJECTED: Final = "rejected.jsonl"

MARKER: Final = "made-by-gaussearch-encode"
"""A file that says whose the folder is."""

_OURS: Final = re.compile(
    rf"\.?[0-9a-f]{{12}}-([0-9]{{5,}}\.parquet|{re.escape(EXPORTED)})(\.tmp)?|{re.escape(REJECTED)}"
)


def working_folder(output: Path) -> Path:
    """Where it lies: hidden, so that a folder of texts in which the output is made does not have it in it."""
    return output.with_name(f".{output.name}.parts")


@contextlib.contextmanager
def holding(output: Path) -> Iterator[Path]:
    """Makes the folder, for this process alone. After an error it stays where there is something to go on with.

    Raises BuildError where another process has it, or something else is in its place.
    """
    folder = working_folder(output)
    try:
        # Beside the folder, which is removed: one who waited in it would hold a lock that no other could find. The lock
        # itself stays, for the same reason.
        with FileLock(output.with_name(f".{output.name}.lock"), timeout=0):
            _take(folder)
            try:
                yield folder
            except BaseException:
                if not parts_in(folder) and not any(folder.glob(f"*-{EXPORTED}")):
                    clear(folder)
                raise
    except Timeout as error:
        raise BuildError(f"{output}: another process is encoding into it") from error


def _take(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise BuildError(f"{folder} is where parts of the output are kept, and it is no folder: move it away")
    folder.mkdir(exist_ok=True)
    marker = folder / MARKER
    if not marker.is_file():
        # One without anything in it may be ours: a run was killed before it could say so.
        if any(path.name != f".{MARKER}.tmp" for path in folder.iterdir()):
            raise BuildError(
                f"{folder} is where parts of the output are kept, and gaussearch encode has not made it: move it away"
            )
        write_atomically(marker, b"Parts of an output that is not finished: the same command goes on with them.\n")


def parts_in(folder: Path) -> list[Path]:
    """The parts of outputs that it holds."""
    return [path for path in folder.glob("*.parquet") if _OURS.fullmatch(path.name)]


def clear(folder: Path) -> None:
    """Removes what encoding keeps in the folder, and with it the folder, unless somebody has put something there."""
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name):
            path.unlink()
    if [path.name for path in folder.iterdir()] == [MARKER]:
        (folder / MARKER).unlink()
        folder.rmdir()
