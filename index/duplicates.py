"""Document ids must be unique: checked on 8 bytes per document, whatever the ids are."""

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from index.errors import DuplicateIdError
from index.sources import DocumentSource

__all__ = [
    "Hashes",
    "SeenIds",
    "hash_strings",
    "hashed",
    "ids_with_hashes",
    "random_base",
    "read_ids",
    "repeated_hashes",
    "require_no_duplicates",
    "require_unique_ids",
]

LOOKED_UP = 100
"""How many hashes are looked up in the corpus at a time."""
SHOWN = 5
"""How many duplicate ids a message names."""
HASHED_ROWS = 1 << 11
"""Ids hashed at a time, which takes some 30 bytes of memory for each of theirs."""


Hashes = npt.NDArray[np.uint64]


def require_unique_ids(corpus: DocumentSource, id_files: Sequence[Path]) -> None:
    """Raises DuplicateIdError, naming ids and the places where they stand, unless all ids of a corpus are different.

    `id_files` are the ids.arrow of its segments.
    """

    def ids() -> Iterator[pa.StringArray]:
        return (chunk for path in id_files for chunk in read_ids(path).chunks)

    seen = SeenIds()
    for each in ids():
        seen.add(each)
    seen.require_unique(corpus, ids)


def random_base() -> int:
    """What ids are hashed with: another one each time, so that nobody can make ids up that share a hash."""
    return secrets.randbits(64) | 1


class SeenIds:
    """Ids of which 8 bytes each are remembered, and 16 once they are looked through.

    Equal 64-bit hashes mark suspects; only if there are any is the corpus looked through again, for those ids and their
    places.
    """

    def __init__(self) -> None:
        self._base = random_base()
        self._hashes: list[Hashes] = []

    def add(self, ids: pa.StringArray) -> None:
        """Remembers ids."""
        self._hashes += [hashes for _, hashes in hashed(ids, self._base)]

    def require_unique(self, corpus: DocumentSource, again: Callable[[], Iterable[pa.StringArray]]) -> None:
        """Raises DuplicateIdError unless all of them are different. `again` gives them once more; the corpus, of which
        they are, knows their places."""
        repeated = repeated_hashes(self._hashes)
        self._hashes = []
        require_no_duplicates(corpus, repeated, lambda wanted: ids_with_hashes(again(), self._base, wanted))


def require_no_duplicates(corpus: DocumentSource, repeated: Hashes, ids_with: Callable[[Hashes], set[str]]) -> None:
    """Raises DuplicateIdError where ids that share one of the repeated hashes are the same; `ids_with` gives the ids
    that have one of some hashes."""
    # A few at a time: where a whole corpus stands there twice, all of them would take memory without a bound.
    for first in range(0, len(repeated), LOOKED_UP):
        ids = ids_with(repeated[first : first + LOOKED_UP])
        duplicates = {name: places for name, places in corpus.locate(ids).items() if len(places) > 1}
        if duplicates:
            shown = [f"{name!r} at {' and '.join(places[:2])}" for name, places in sorted(duplicates.items())[:SHOWN]]
            more = len(repeated) - len(shown)
            rest = f"; and {more} more" if more else ""
            raise DuplicateIdError(
                f"ids must be unique, and {len(repeated)} are not: {'; '.join(shown)}{rest}. Give each document or "
                "query an id of its own"
            )
    # Different ids with one 64-bit hash: once in ten thousand corpora of 40 million documents.


def repeated_hashes(hashes: Sequence[Hashes]) -> Hashes:
    """Those that are there more than once, each once."""
    together = np.concatenate([*hashes, np.empty(0, np.uint64)])
    together.sort()
    return np.unique(together[1:][together[1:] == together[:-1]])


def ids_with_hashes(ids: Iterable[pa.StringArray], base: int, wanted: Hashes) -> set[str]:
    """Those of the ids that have one of these hashes."""
    found: set[str] = set()
    for each in ids:
        for part, hashes in hashed(each, base):
            found.update(part.filter(pa.array(np.isin(hashes, wanted))).to_pylist())
    return found


def hashed(ids: pa.StringArray, base: int) -> Iterator[tuple[pa.StringArray, Hashes]]:
    """Ids and their hashes, in parts."""
    for start in range(0, len(ids), HASHED_ROWS):
        part = ids.slice(start, HASHED_ROWS)
        yield part, hash_strings(part, base)


def read_ids(path: Path) -> pa.ChunkedArray:
    """The ids of one segment, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()["id"]


def hash_strings(strings: pa.StringArray, base: int) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each string (n,), equal for equal strings: its UTF-8 bytes as the coefficients of a polynomial.

    h(s) = sum over i of (s_i + 1) base^i mod 2^64, base being odd. For all strings at once, with prefix sums S over the
    bytes of all of them, it is (S[end] - S[start]) base^-start. Of NumPy's operations, which leave other threads
    Python's lock: making a Python string of each id to hash it held up those that encode for a tenth of their time.
    """
    offsets = np.frombuffer(strings.buffers()[1], np.int32)[strings.offset : strings.offset + len(strings) + 1]
    data = np.frombuffer(strings.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    bounds = offsets - offsets[0]
    powers, inverses = (np.full(len(data) + 1, of, np.uint64) for of in (base, pow(base, -1, 1 << 64)))
    for each in (powers, inverses):
        each[0] = 1
        np.multiply.accumulate(each, out=each)
    prefix = np.zeros(len(data) + 1, np.uint64)
    np.cumsum((data + np.uint64(1)) * powers[:-1], out=prefix[1:])
    hashes: npt.NDArray[np.uint64] = (prefix[bounds[1:]] - prefix[bounds[:-1]]) * inverses[bounds[:-1]]
    return hashes
