"""The checksums of the pieces of a corpus's files, by which a build knows the corpus again."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from index.background import in_order
from index.cores import available_cores
from index.durable import measure
from index.errors import SourceError

__all__ = ["HASHED_BYTES", "hash_pieces"]

HASHED_BYTES: Final = 1 << 23
"""How much of a file one core hashes at a time."""


def hash_pieces(file: Path, first: int = 0, pieces: int | None = None, threads: int | None = None) -> list[str]:
    """The checksums of a file's pieces of HASHED_BYTES, from piece number `first` on, all or so many; of an empty file,
    that of nothing. On all cores, if not told otherwise. Raises SourceError where it cannot be read."""
    threads = threads or available_cores()
    try:
        count = max(1, -(-file.stat().st_size // HASHED_BYTES))
        last = count if pieces is None else min(count, first + pieces)
        starts = range(first * HASHED_BYTES, last * HASHED_BYTES, HASHED_BYTES)
        with ThreadPoolExecutor(threads) as pool:
            piece = partial(measure, file, size=HASHED_BYTES)
            return [it.blake3 for it in in_order(pool, piece, starts, ahead=2 * threads)]
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error}") from error
