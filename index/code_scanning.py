"""The approximate scan: the codes of all segments, in memory, against queries that a codebook has laid out.

Segments that share a codebook are scanned as one: what a scan does before it looks at documents takes as long as
looking at ten thousand of them.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from index.codebook import Codebook
from index.codes import CodeIndex, Codes
from index.cores import available_cores, torch_on_one_core
from index.documents import Numbers
from index.encoding import QueryFolder
from index.gaussians import Gaussians
from index.projector import Vectors
from index.selection import Selection
from index.shortlist import Shortlist
from index.standardisation import Standardisation
from index.vectors import one_thread, set_threads

__all__ = ["ApproximateScanner", "CodeScanner", "QueryCoder", "broadened", "by_query", "weighed"]

SHARD_BYTES = 1 << 20
"""The fewest bytes of codes that a shard is worth a thread for: what a core scans in a tenth of a millisecond."""
MOST_FOUND = 1 << 14
"""Four times what is found at most where recall is measured: a request may ask for any number of candidates, and each
document that is found takes memory for every query."""
ALONE = 2
"""Queries for each thread from which on several share them out: one takes a tenth of a millisecond or a few."""
NONE: Numbers = np.empty(0, dtype=np.int64)


class ApproximateScanner(Protocol):
    """Finds candidates for exact scoring. Safe to call from several threads."""

    def scan(
        self, queries: Gaussians, count: int, nprobe: int | None = None, selection: Selection | None = None, /
    ) -> Numbers:
        """About the `count` likeliest documents of each query, likeliest first: numbers (b, c), c <= count, or fewer of
        those that a `selection` allows than there are.

        -1 stands where there is none: FAISS finds no document whose looked-up values are all the least, and a query
        that float32 cannot hold once it is projected finds nothing. `nprobe` is for documents in lists: how many of
        these a query looks into, all if not set.
        """


class QueryCoder(Protocol):
    """What of a codebook a search needs."""

    def weigh(self, vectors: npt.NDArray[np.float64]) -> Vectors:
        """Folded query vectors (b, w), projected: (b, r), infinite where float32 cannot hold them."""


def weighed(coder: QueryCoder, vectors: npt.NDArray[np.float64]) -> tuple[Vectors, Numbers]:
    """Folded queries (b, w), projected (b, r), and those (any,) that float32 cannot hold so, which are 0 there."""
    with torch_on_one_core():
        weights = coder.weigh(vectors)
    # One sum carries NaN and infinity through.
    if math.isfinite(float(weights.sum())):
        return weights, NONE
    unusable: Numbers = np.flatnonzero(~np.isfinite(weights).all(axis=1))
    weights[unusable] = 0.0
    return weights, unusable


def broadened(breadth: float, count: int, documents: int, selection: Selection | None = None) -> int:
    """How many documents to find for `count` candidates: `breadth` times as many, but no more than there are, and
    where that is more than anyone has measured, MOST_FOUND or `count`. So many that a `selection` allows."""
    found = max(count, min(math.ceil(breadth * count), MOST_FOUND))
    return min(documents, found if selection is None else selection.spread(found))


def by_query(
    pool: ThreadPoolExecutor, threads: int, work: Callable[..., Numbers], *arguments: npt.NDArray[Any]
) -> Numbers:
    """What `work` gives for arguments of b rows each, a row a query: (b, any), shared out among so many threads, of
    which this one is the first."""
    parts = max(1, min(threads, len(arguments[0]) // ALONE))
    if parts == 1:
        return work(*arguments)
    first, *others = zip(*(np.array_split(each, parts) for each in arguments), strict=True)
    pending = [pool.submit(work, *other) for other in others]
    return np.concatenate([work(*first), *(future.result() for future in pending)])


class CodeScanner:
    """Codes (n, M/2) of one codebook, cut into a shard per thread: an ApproximateScanner."""

    def __init__(
        self,
        codes: Sequence[Codes],
        shortlist: Shortlist,
        codebook: Codebook,
        standardisation: Standardisation,
        breadth: float,
        threads: int | None,
    ) -> None:
        """Finds `breadth` times as many documents as are asked for, of which the shortlist chooses."""
        self._shortlist, self._breadth = shortlist, breadth
        self._codebook, self._fold = codebook, QueryFolder(standardisation)
        together = np.concatenate(codes) if len(codes) > 1 else codes[0]
        shards = max(1, min(threads or available_cores(), together.nbytes // SHARD_BYTES))
        self._documents = len(together)
        bounds = np.linspace(0, len(together), shards + 1).astype(np.int64).tolist()
        self._shards = [
            (CodeIndex(together[low:high], codebook.centroids), low) for low, high in itertools.pairwise(bounds)
        ]
        self._pool = ThreadPoolExecutor(max(1, shards - 1), "gaussearch-scan", initializer=set_threads, initargs=(1,))

    def scan(
        self, queries: Gaussians, count: int, _nprobe: int | None = None, selection: Selection | None = None, /
    ) -> Numbers:
        """As ApproximateScanner."""
        projected, found = self.found(queries, broadened(self._breadth, count, self._documents, selection))
        if selection is not None:
            found = selection.drop(found)
        best = functools.partial(self._shortlist.best, count=count)
        return by_query(self._pool, len(self._shards), best, projected, found)

    def found(self, queries: Gaussians, count: int) -> tuple[Vectors, Numbers]:
        """The projected queries (b, r), and the `count` documents that codes take for the likeliest, likeliest first:
        numbers (b, c)."""
        projected, unusable = weighed(self._codebook, self._fold(queries))
        if not count:
            return projected, np.empty((len(projected), 0), dtype=np.int64)
        numbers = self._search(self._codebook.laid_out(projected), count)
        numbers[unusable] = -1
        return projected, numbers

    def _search(self, weights: Vectors, count: int) -> Numbers:
        # The first shard in this thread: woken together, two threads may find themselves on one core.
        (first, _), *others = self._shards
        pending = [self._pool.submit(shard.search, weights, count) for shard, _ in others]
        with one_thread():
            scores, numbers = first.search(weights, count)
        if not others:
            return numbers
        for future, (_, start) in zip(pending, others, strict=True):
            its_scores, rows = future.result()
            scores = np.concatenate([scores, its_scores], axis=1)
            numbers = np.concatenate([numbers, np.where(rows < 0, -1, rows + start)], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(numbers, order, axis=1)
