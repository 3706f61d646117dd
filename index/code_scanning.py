"""The approximate scan: the codes of all segments, in memory, against queries that a codebook has laid out.

Segments that share a codebook are scanned as one: what a scan does before it looks at documents takes as long as
looking at ten thousand of them.
"""

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt

from index.codebook import Codebook, Vectors
from index.codes import CodeIndex, Codes
from index.cores import available_cores, torch_on_one_core
from index.documents import Numbers
from index.encoding import Standardisation, fold_queries
from index.gaussians import Gaussians
from index.vectors import one_thread, set_threads

__all__ = ["ApproximateScanner", "CodeScanner", "QueryCoder", "weighed"]

SHARD_BYTES = 1 << 20
"""The fewest bytes of codes that a shard is worth a thread for: what a core scans in a tenth of a millisecond."""


class ApproximateScanner(Protocol):
    """Finds candidates for exact scoring. Safe to call from several threads."""

    def scan(self, queries: Gaussians, count: int, nprobe: int | None = None, /) -> Numbers:
        """About the `count` likeliest documents of each query, likeliest first: numbers (b, c), c <= count.

        -1 stands where there is none: FAISS finds no document whose looked-up values are all the least, and a query
        that float32 cannot hold once it is projected finds nothing. `nprobe` is for documents in lists: how many of
        these a query looks into, all if not set.
        """


class QueryCoder(Protocol):
    """What of a codebook a search needs."""

    def weigh(self, vectors: npt.NDArray[np.float64]) -> Vectors:
        """Folded query vectors (b, w) as a scan takes them, infinite where float32 cannot hold them."""


def weighed(coder: QueryCoder, vectors: npt.NDArray[np.float64]) -> tuple[Vectors, npt.NDArray[np.bool_]]:
    """Folded queries (b, w) laid out for a scan, and which of them (b,) float32 cannot hold so; these are 0 there."""
    with torch_on_one_core():
        weights = coder.weigh(vectors)
    unusable = np.asarray(~np.isfinite(weights).all(axis=1))
    weights[unusable] = 0.0
    return weights, unusable


class CodeScanner:
    """Codes (n, M/2) of one codebook, cut into a shard per thread: an ApproximateScanner."""

    def __init__(
        self, codes: Sequence[Codes], codebook: Codebook, standardisation: Standardisation, threads: int | None
    ) -> None:
        self._codebook, self._standardisation = codebook, standardisation
        together = np.concatenate(codes) if len(codes) > 1 else codes[0]
        shards = max(1, min(threads or available_cores(), together.nbytes // SHARD_BYTES))
        bounds = np.linspace(0, len(together), shards + 1).astype(np.int64).tolist()
        self._shards = [
            (CodeIndex(together[low:high], codebook.centroids), low) for low, high in itertools.pairwise(bounds)
        ]
        self._pool = ThreadPoolExecutor(max(1, shards - 1), "gaussearch-scan", initializer=set_threads, initargs=(1,))

    def scan(self, queries: Gaussians, count: int, _nprobe: int | None = None, /) -> Numbers:
        """As ApproximateScanner."""
        weights, unusable = weighed(self._codebook, fold_queries(queries, self._standardisation))
        numbers = self._search(weights, count)
        numbers[unusable] = -1
        return numbers

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
