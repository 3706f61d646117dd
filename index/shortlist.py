"""The second look at what a scan of codes has found: by projected vectors, of 8 or 16 bits a number.

A code keeps just enough of a document to be among the best thousand or so. Its projected vector keeps nearly all that
the projection does, in as many bytes as the code of several documents, so that it is looked at for those alone: it
stays in the file, memory-mapped like the Gaussians. What it leaves to exact scoring are some dozen candidates. Scanned
for as many by themselves, codes would have to be twice as long: half again the time, at 1,000,000 documents.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from index.codes import Codes
from index.documents import Numbers, Rows

__all__ = ["Shortlist"]

CACHED_ROWS = 128
"""Projected vectors widened to float32 at a time: 64 KiB of 128 numbers, which a core keeps and malloc hands out again
without clearing it."""

Points = npt.NDArray[np.float32]


class Shortlist:
    """The projected vectors of all segments; safe to use from any number of threads."""

    def __init__(self, projected: Sequence[Codes], ranges: Points) -> None:
        """Vectors of `ranges` (index.scalar_codes), in arrays (n_i, bytes)."""
        self._rows = Rows(projected)
        self._steps = ranges[1] / np.float32(255) if len(ranges) else np.ones(ranges.shape[1], dtype=np.float32)
        self._dtype = np.dtype(np.uint8 if len(ranges) else np.float16)

    def best(self, queries: Points, numbers: Numbers, count: int) -> Numbers:
        """The `count` of the documents `numbers` (b, m) with the largest inner products, (b, count), best first.

        queries: (b, r) float32, projected. -1, which stands for none, comes last.
        """
        best = np.empty((len(numbers), min(count, numbers.shape[1])), dtype=np.int64)
        for weights, row, its in zip(queries * self._steps, numbers, best, strict=True):
            scores = self._scores(weights, row)
            np.negative(scores, out=scores)
            if len(its) < len(row):
                kept = scores.argpartition(len(its) - 1)[: len(its)]
                row, scores = row[kept], scores[kept]
            its[:] = row[scores.argsort(kind="stable")]
        return best

    def scores(self, queries: Points, numbers: Numbers) -> Points:
        """What `best` compares: inner products (b, m) but for a constant of the query, -infinity for -1."""
        # What a document's code is counted from is the same for all of them: only the steps matter.
        rows = zip(queries * self._steps, numbers, strict=True)
        return np.stack([self._scores(weights, row) for weights, row in rows])

    def _scores(self, weights: Points, numbers: Numbers) -> Points:
        rows = self._rows.take(numbers).view(self._dtype)
        scores = np.empty(len(rows), dtype=np.float32)
        widened = np.empty((min(CACHED_ROWS, len(rows)), len(weights)), dtype=np.float32)
        for start in range(0, len(rows), CACHED_ROWS):
            part = rows[start : start + CACHED_ROWS]
            np.copyto(widened[: len(part)], part)
            # Not by BLAS, whose threads go on spinning on the other cores for a while.
            np.einsum("ij,j->i", widened[: len(part)], weights, out=scores[start : start + len(part)])
        scores[numbers < 0] = -np.inf
        return scores
