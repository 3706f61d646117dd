"""Document ids must be unique: checked on 8 bytes per document, whatever the ids are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from index.errors import DuplicateIdError
from index.sources import Corpus

__all__ = ["read_ids", "require_unique_ids"]

LOOKED_UP = 100
"""How many are looked up in the corpus, should some of them only share a hash."""
SHOWN = 5
"""How many duplicate ids a message names."""


def require_unique_ids(corpus: Corpus, id_files: Sequence[Path]) -> None:
    """Raises DuplicateIdError, naming ids and the places where they stand, unless all ids of a corpus are different.

    `id_files` are the ids.arrow of its segments. Equal 64-bit hashes mark suspects; only if there are any is the corpus
    looked through again, for those ids and their places.
    """
    hashes = np.concatenate([_hashes(path) for path in id_files])
    hashes.sort()
    repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if not len(repeated):
        return
    # Enough to show: where a whole corpus stands there twice, looking them all up would take memory without a bound.
    suspects = set(repeated[:LOOKED_UP].tolist())
    ids = {name for path in id_files for name in read_ids(path) if hash(name) in suspects}
    duplicates = {name: places for name, places in corpus.locate(ids).items() if len(places) > 1}
    if not duplicates:
        # Two different ids with one 64-bit hash: once in ten thousand corpora of 40 million documents.
        return
    shown = [f"{name!r} at {' and '.join(places[:2])}" for name, places in sorted(duplicates.items())[:SHOWN]]
    more = len(repeated) - len(shown)
    rest = f"; and {more} more" if more else ""
    raise DuplicateIdError(f"ids must be unique, and {len(repeated)} are not: {'; '.join(shown)}{rest}")


def _hashes(path: Path) -> npt.NDArray[np.int64]:
    strings = read_ids(path)
    return np.fromiter(map(hash, strings), dtype=np.int64, count=len(strings))


def read_ids(path: Path) -> list[str]:
    """The ids of one segment, as Python strings that last no longer than the caller's use of them."""
    with pa.memory_map(str(path)) as file:
        return list(pa.ipc.open_file(file).read_all()["id"].to_pylist())
