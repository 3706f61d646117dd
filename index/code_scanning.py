"""The approximate scan: the codes of all segments, in memory, against queries that a codebook has laid out.

Segments that share a codebook are scanned as one: what a scan does before it looks at documents takes as long as
looking at ten thousand of them.
"""

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from index.codebook import Codebook, Vectors
from index.codes import CodeIndex, Codes
from index.cores import available_cores, torch_on_one_core
from index.documents import Numbers
from index.encoding import Standardisation, encode_queries
from index.gaussians import Gaussians
from index.scanning import SCANNED
from index.vectors import one_thread, set_threads

__all__ = ["CodeScanner"]

SHARD_BYTES = 1 << 20
"""The fewest bytes of codes that a shard is worth a thread for: what a core scans in a tenth of a millisecond."""


class CodeScanner:
    """Codes (n, M/2) of one codebook, cut into a shard per thread. Safe to call from several threads."""

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

    def scan(self, queries: Gaussians, count: int) -> Numbers:
        """About the `count` likeliest documents of each query, likeliest first: numbers (b, c), c <= count.

        -1 stands where there is none: FAISS finds no document whose looked-up values are all the least, and a query
        that float32 cannot hold once it is projected finds nothing. Raises InvalidGaussiansError naming the query whose
        vector float32 cannot hold.
        """
        with torch_on_one_core():
            vectors = encode_queries(queries.to("cpu"), SCANNED, self._standardisation)
            weights = self._codebook.weigh(vectors)
        unusable = ~np.isfinite(weights).all(axis=1)
        weights[unusable] = 0.0
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
