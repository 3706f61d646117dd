"""Generations that are being copied, and must not be removed before that is done.

A copy of a large index takes minutes, in which a service may publish hundreds of generations; nor may it keep others
from writing. So whoever copies has a file in pins/ and holds a lock on it, which a dead process does not keep.
"""

import contextlib
import errno
import secrets
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["held", "hold", "pinned"]

_PINNED = "[0-9]" * 8
_HELD = "[0-9]" * 8 + "-*.held"
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def hold(pins: Path, number: int) -> Iterator[None]:
    """Keeps a generation. Without the writer lock: a publication that is just removing it may go on to do so.

    Where nothing can be written to the index, nothing is held.
    """
    path = pins / f"{number:08d}-{secrets.token_hex(6)}.held"
    with contextlib.ExitStack() as stack:
        try:
            pins.mkdir(exist_ok=True)
            lock = _locked(path)
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
        else:
            stack.callback(lock.release)
            stack.callback(path.unlink, missing_ok=True)
        yield


def held(pins: Path) -> set[int]:
    """The numbers of the generations that are held. What dead processes have left is removed."""
    numbers = set()
    for path in pins.glob(_HELD):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except (Timeout, PermissionError):
            # Another user's may be held or not.
            numbers.add(int(path.name[:8]))
        else:
            path.unlink(missing_ok=True)
            lock.release()
    return numbers


def pinned(pins: Path) -> set[int]:
    """The numbers of the generations that are to be kept, whoever looks at them, until they are unpinned."""
    return {int(path.name) for path in pins.glob(_PINNED)}


def _locked(path: Path) -> FileLock:
    """A lock on a file that is there: another process may have taken it for one that was left, and removed it."""
    while True:
        # For whoever writes to the index to see whether it is held, which may be another user.
        lock = FileLock(path, mode=0o666)
        lock.acquire()
        if path.exists():
            return lock
        lock.release()
