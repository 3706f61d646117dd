"""Files that options name."""

from pathlib import Path

from index.errors import GaussearchError

__all__ = ["contents_of"]


def contents_of(path: Path, option: str, unreadable: type[GaussearchError]) -> bytes:
    """The bytes of the file that an option names; raises `unreadable`, naming both, where they cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise unreadable(f"{option}: {path} does not exist") from error
    except OSError as error:
        raise unreadable(f"{option}: {path} cannot be read: {error.strerror or error}") from error
