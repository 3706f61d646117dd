"""CURRENT, the one file of an index that is ever replaced: it says which generation is live.

What it says is a token: the name of a manifest and its checksum, in one line. A generation keeps the token by which it
was live, so that whoever goes back to it knows that its manifest is whole.
"""

import os
import re
from typing import NamedTuple

from index.durable import SyncError, checksum, write_atomically
from index.errors import CorruptIndexError, IndexNotFoundError, NotSyncedError
from index.layout import Layout
from index.untrusted import IndexFile

__all__ = ["TOKEN_BYTES", "Named", "live", "make_current", "named_by", "read_current", "token_for"]

TOKEN_BYTES = 200
"""More than a token has."""
_TOKEN = re.compile(r"(?P<generation>[0-9]{8})\.json (?P<checksum>[0-9a-f]{64})\n")


class Named(NamedTuple):
    """The manifest that a token names."""

    generation: int
    checksum: str


def token_for(generation: int, manifest: bytes) -> str:
    """What CURRENT says while the generation of this manifest is live."""
    return f"{generation:08d}.json {checksum(manifest)}\n"


def named_by(token: str) -> Named | None:
    """What a token names; None where it is none."""
    match = _TOKEN.fullmatch(token)
    return Named(int(match["generation"]), match["checksum"]) if match else None


def read_current(layout: Layout) -> str:
    """The token in CURRENT.

    Raises IndexNotFoundError where nothing has been published, CorruptIndexError where it is no such file.
    """
    if not layout.path.is_dir() or not os.path.lexists(layout.current_file):
        raise IndexNotFoundError(
            f"no index in {layout.path}: {layout.current_file} does not exist; build one with `gaussearch build`"
        )
    return IndexFile(layout.current_file).contents(TOKEN_BYTES).decode("ascii", errors="replace")


def live(layout: Layout) -> tuple[int | None, str]:
    """The number of the generation that CURRENT names, if it does, and what CURRENT says, read once."""
    try:
        token = read_current(layout)
    except (IndexNotFoundError, CorruptIndexError):
        return None, ""
    named = named_by(token)
    return (named.generation if named else None), token


def make_current(layout: Layout, generation: int, token: str) -> None:
    """Makes a generation, all of which is in place, the live one.

    Raises NotSyncedError where it is live and may not be after a power cut, and OSError where it is not live.
    """
    try:
        write_atomically(layout.current_file, token.encode())
    except SyncError as error:
        # The name of the folder alone: CURRENT has been replaced.
        raise NotSyncedError(
            f"generation {generation} of {layout.path} is live, but has not reached the disk, so that a "
            f"power cut may undo it: {error}"
        ) from error
