"""Exact scores of what a scan has found: the second step of a search, and what a calibration compares scans with."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from index.documents import GaussianStore, Numbers
from index.gaussians import Gaussians
from index.rescoring import rescore

__all__ = ["CandidateScorer", "in_float64"]

GATHERED_NUMBERS = 1 << 24
"""float32 numbers of candidates gathered at a time (64 MiB), or those of one query, however many queries there are."""

SHARED_NUMBERS = 1 << 18
"""float32 numbers of candidates from which on several threads score them: half a millisecond of work for one."""

MOST_THREADS = 4
"""More of them wait for each other, since NumPy holds the interpreter between its operations: of 16 cores, 16 threads
took twice as long as one for 32 queries with 100 candidates, and four two thirds of it (k=128)."""

Scores = npt.NDArray[np.float64]


class CandidateScorer:
    """Scores candidates by the Gaussians of a store, on as many threads, or a few. Safe to call from several."""

    def __init__(self, store: GaussianStore, threads: int) -> None:
        self._store, self._threads = store, min(threads, MOST_THREADS)
        self._pool = ThreadPoolExecutor(max(1, self._threads - 1), "gaussearch-score")

    def scores(self, queries: Gaussians, documents: Numbers) -> Scores:
        """Exact -KL of each query and its candidates, numbers (b, c): (b, c), -infinity where there is none."""
        means, variances = in_float64(queries)
        numbers = documents.shape[1] * 2 * self._store.k
        if len(queries) * numbers < SHARED_NUMBERS:
            scores = rescore(means, variances, *self._store.gaussians(documents))
            scores[documents < 0] = -np.inf
            return scores
        scores = np.empty(documents.shape)
        step = max(1, GATHERED_NUMBERS // (numbers * self._threads))
        step = min(step, -(-len(queries) // self._threads))

        def score(rows: slice) -> None:
            scores[rows] = rescore(means[rows], variances[rows], *self._store.gaussians(documents[rows]))

        parts = [slice(start, start + step) for start in range(0, len(queries), step)]
        # The last in this thread: it has nothing else to do, and two that are woken may find themselves on one core.
        kept = parts if self._threads == 1 else parts[-1:]
        pending = [self._pool.submit(score, rows) for rows in parts[: len(parts) - len(kept)]]
        for rows in kept:
            score(rows)
        for future in pending:
            future.result()
        scores[documents < 0] = -np.inf
        return scores


def in_float64(queries: Gaussians) -> tuple[Scores, Scores]:
    """Means and variances (b, k), in float64 on the CPU."""
    host = queries.to("cpu", torch.float64)
    return host.means.numpy(), host.variances.numpy()
