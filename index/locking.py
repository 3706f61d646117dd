"""The lock of an index's one writer."""

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from index.durable import sync
from index.errors import IndexLockedError
from index.layout import Layout
from index.untrusted import require_folder

__all__ = ["writer_lock"]


@contextlib.contextmanager
def writer_lock(layout: Layout, wait: float = 0.0) -> Iterator[None]:
    """Makes the folder where it is missing and holds its writer lock, which a dead process does not keep.

    Where what is done under it fails, before anything has been published or staged, what there was not before is
    removed again. Raises IndexLockedError where another process, or thread, holds it for longer than `wait` seconds,
    and CorruptIndexError where one of its folders is none.
    """
    lock = FileLock(layout.lock_file)
    while True:
        made, before = _make(layout)
        try:
            lock.acquire(timeout=wait)
            break
        except Timeout as error:
            waited = f" and has not finished within {wait:g} seconds" if wait else ""
            raise IndexLockedError(
                f"another process is writing to {layout.path}{waited}; wait for it to finish (--wait SECONDS does)"
            ) from error
        except FileNotFoundError:
            # Whoever held it has failed, and has removed the folder that it had made.
            if layout.path.is_dir():
                raise
    try:
        yield
    except BaseException:
        _unmake(layout, made, before)
        raise
    finally:
        lock.release()


def _make(layout: Layout) -> tuple[list[Path], set[str]]:
    """Makes the folder. Returns what of it and of the folders that it lies in was not there, from the inside out, and
    the names of what was there in it."""
    made = [folder for folder in (layout.path, *layout.path.parents) if not folder.exists()]
    layout.path.mkdir(parents=True, exist_ok=True)
    # Through a link, a build would write and remove files elsewhere.
    for folder in layout.folders:
        require_folder(folder)
    if made:
        sync(layout.path.resolve().parent)
    return made, set() if made else {path.name for path in layout.path.iterdir()}


def _unmake(layout: Layout, made: Sequence[Path], before: Collection[str]) -> None:
    """Removes the folders that are empty, the lock and the directory, where they were made for nothing. Hold the writer
    lock: who waits for it goes on with another, as FileLock looks whether its file has been removed."""
    if os.path.lexists(layout.current_file) or layout.lock_file.name in before:
        return
    for folder in layout.folders:
        if folder.name not in before:
            with contextlib.suppress(OSError):
                folder.rmdir()
    with contextlib.suppress(OSError):
        if not any(folder.exists() for folder in layout.folders):
            layout.lock_file.unlink()
            for folder in made:
                folder.rmdir()
