"""Files that options name."""

from pathlib import Path

from index.errors import GaussearchError

__all__ = ["contents_of", "require_place"]


def contents_of(path: Path, option: str, unreadable: type[GaussearchError]) -> bytes:
    """The bytes of the file that an option names; raises `unreadable`, naming both, where they cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise unreadable(f"{option}: {path} does not exist") from error
    except OSError as error:
        raise unreadable(f"{option}: {path} cannot be read: {error.strerror or error}") from error


def require_place(path: Path | None, option: str, unwritable: type[GaussearchError]) -> None:
    """Raises `unwritable`, naming both, where the file that an option names cannot be made: before long work, of which
    nothing would come. None is no file."""
    if path is not None and path.is_dir():
        raise unwritable(f"{option}: {path} cannot be written: it is a folder")
    if path is not None and not path.parent.is_dir():
        raise unwritable(f"{option}: {path} cannot be written: make its folder")
