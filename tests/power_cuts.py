"""What a power cut leaves of a folder, at its worst."""

import os
import shutil
import stat
from pathlib import Path


class Disk:
    """What of a folder has reached the disk: of each file the content, and of each folder the names, that have been
    synced since this was made. What was there before is on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._vault = folder, folder.with_name(f"{folder.name}.disk")
        self._vault.mkdir()
        self._contents: dict[int, tuple[int, int]] = {}
        self._names: dict[Path, dict[str, int | None]] = {}
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                self._keep_names(path)
            else:
                self._keep_content(path.stat())

    def synced(self, descriptor: int) -> None:
        """Notes what has been synced."""
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            self._keep_content(status)
        else:
            self._keep_names(Path(f"/proc/self/fd/{descriptor}").readlink())

    def cut(self, *, lost: bool) -> None:
        """Halves the files that are not on the disk; `lost`, leaves nothing but what is."""
        if lost:
            self._restore(self._folder)
        for path in (path for path in self._folder.rglob("*") if path.is_file()):
            status = path.stat()
            if self._contents.get(status.st_ino) != (status.st_size, status.st_mtime_ns):
                os.truncate(path, 0 if lost else status.st_size // 2)
        shutil.rmtree(self._vault)

    def _keep_content(self, status: os.stat_result) -> None:
        self._contents[status.st_ino] = (status.st_size, status.st_mtime_ns)

    def _keep_names(self, folder: Path) -> None:
        """Remembers what is in a folder; files by a second name, so that they are there when they are removed."""
        if not folder.is_relative_to(self._folder):
            return
        names: dict[str, int | None] = {}
        for path in folder.iterdir():
            inode = None if path.is_dir() else path.stat().st_ino
            if inode is not None and not (self._vault / str(inode)).exists():
                os.link(path, self._vault / str(inode))
            names[path.name] = inode
        self._names[folder] = names

    def _restore(self, folder: Path) -> None:
        names = self._names.get(folder, {})
        for path in folder.iterdir():
            if path.is_dir() and path.name not in names:
                shutil.rmtree(path)
            elif not path.is_dir() and names.get(path.name) != path.stat().st_ino:
                path.unlink()
        for name, inode in names.items():
            path = folder / name
            if inode is None:
                path.mkdir(exist_ok=True)
                self._restore(path)
            elif not path.exists():
                os.link(self._vault / str(inode), path)
