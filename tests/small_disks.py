"""Small disks in memory for tests that fill them, where the tests may mount any."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A file system of its own, in the folder `path`. What fills it lies beside what is tested."""

    def __init__(self, path: Path) -> None:
        self.path, self._ballast = path, path / "ballast"

    def fill(self, *, pages: int | None = None, files: int | None = None) -> None:
        """Leaves room for so many pages and no more, or for so many files."""
        self.make_room()
        self._ballast.mkdir()
        free = os.statvfs(self.path)
        if pages is not None:
            with (self._ballast / "bytes").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail - pages) * free.f_frsize)
        if files is not None:
            for number in range(free.f_favail - files):
                (self._ballast / str(number)).touch()

    def make_room(self) -> None:
        """Takes away what fills it."""
        if self._ballast.exists():
            for file in self._ballast.iterdir():
                file.unlink()
            self._ballast.rmdir()

    def make_read_only(self) -> None:
        """Refuses all writes from now on."""
        _run("mount", "-o", "remount,ro", str(self.path))


@contextlib.contextmanager
def small_disk(path: Path, *, size: str, files: int) -> Iterator[SmallDisk]:
    """Mounts a disk of a size and for so many files; skips the test, and says why, where that is not allowed."""
    path.mkdir()
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes={files}", "tmpfs", str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {getattr(error, 'stderr', '') or error}")
    try:
        yield SmallDisk(path)
    finally:
        # Lazily: what has been searched is mapped.
        _run("umount", "--lazy", str(path))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
