"""The approximate scan: the codes of all segments, in memory, against queries that a codebook has laid out.

Segments that share a codebook are scanned as one: what a scan does before it looks at documents takes as long as it
looking at ten thousand of them.
"""

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from index.codebook import Codebook
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

Scores = npt.NDArray[np.float32]


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
        self._pool = ThreadPoolExecutor(shards, "gaussearch-scan", initializer=set_threads, initargs=(1,))

    def scan(self, queries: Gaussians, count: int) -> Numbers:
        """About the `count` likeliest documents of each query, likeliest first: numbers (b, c), c <= count.

        Raises InvalidGaussiansError naming the query whose vector float32 cannot hold.
        """
        with torch_on_one_core():
            vectors = encode_queries(queries.to("cpu"), SCANNED, self._standardisation)
            weights = self._codebook.weigh(vectors)
        if len(self._shards) == 1:
            with one_thread():
                return self._shards[0][0].search(weights, count)[1]
        found = self._pool.map(lambda shard: shard[0].search(weights, count), self._shards)
        scores, numbers = [], []
        for (its_scores, rows), (_, start) in zip(found, self._shards, strict=True):
            scores.append(its_scores)
            numbers.append(np.where(rows < 0, -1, rows + start))
        order = np.argsort(-np.concatenate(scores, axis=1), axis=1, kind="stable")[:, :count]
        return np.take_along_axis(np.concatenate(numbers, axis=1), order, axis=1)
