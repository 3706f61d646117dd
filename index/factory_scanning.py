"""The scan of FAISS's own indexes, one a segment, in the projected space."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from index.code_scanning import weighed
from index.cores import available_cores
from index.documents import Numbers
from index.encoding import QueryFolder
from index.factory import FactoryIndex
from index.factory_codebook import FactoryCodebook
from index.gaussians import Gaussians
from index.selection import Selection
from index.standardisation import Standardisation
from index.vectors import set_threads

__all__ = ["FactoryScanner"]


class FactoryScanner:
    """The indexes of all segments: an ApproximateScanner. Segments are shared out among threads."""

    def __init__(
        self,
        indexes: Sequence[FactoryIndex],
        codebook: FactoryCodebook,
        standardisation: Standardisation,
        threads: int | None,
    ) -> None:
        self._indexes, self._codebook, self._fold = indexes, codebook, QueryFolder(standardisation)
        self._starts = np.cumsum([0, *map(len, indexes)]).tolist()
        self._pool = ThreadPoolExecutor(
            threads or available_cores(), "gaussearch-scan", initializer=set_threads, initargs=(1,)
        )

    def scan(
        self, queries: Gaussians, count: int, nprobe: int | None = None, selection: Selection | None = None, /
    ) -> Numbers:
        """As ApproximateScanner; `nprobe` counts lists of each segment."""
        weights, unusable = weighed(self._codebook, self._fold(queries))
        wanted = count if selection is None else selection.spread(count)
        if not wanted:
            return np.empty((len(queries), 0), dtype=np.int64)
        search = partial(FactoryIndex.search, queries=weights, count=wanted, nprobe=nprobe)
        found = list(self._pool.map(search, self._indexes))
        scores = np.concatenate([its for its, _ in found], axis=1)
        numbers = np.concatenate(
            [np.where(rows < 0, -1, rows + start) for (_, rows), start in zip(found, self._starts, strict=False)],
            axis=1,
        )
        scores[numbers < 0] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :wanted]
        numbers = np.take_along_axis(numbers, order, axis=1)
        numbers[unusable] = -1
        return numbers if selection is None else selection.drop(numbers)[:, :count]
