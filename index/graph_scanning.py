"""The walk of a graph in place of a scan: some thousands of documents are looked at, however many there are."""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from index.code_scanning import broadened, by_query, weighed
from index.cores import available_cores
from index.documents import Numbers
from index.encoding import QueryFolder
from index.gaussians import Gaussians
from index.graph import Graph
from index.scalar_codebook import ScalarCodebook
from index.selection import Selection
from index.standardisation import Standardisation
from index.vectors import one_thread, set_threads

__all__ = ["GraphScanner"]


class GraphScanner:
    """A graph over the documents of all segments: an ApproximateScanner. Each query is one thread's."""

    def __init__(
        self,
        graph: Graph,
        codebook: ScalarCodebook,
        standardisation: Standardisation,
        breadth: float,
        threads: int | None,
    ) -> None:
        """`breadth` is efSearch over the candidates that a walk is to find."""
        self._graph, self._codebook, self._fold = graph, codebook, QueryFolder(standardisation)
        self._breadth, self._threads = breadth, threads or available_cores()
        self._pool = ThreadPoolExecutor(
            max(1, self._threads - 1), "gaussearch-walk", initializer=set_threads, initargs=(1,)
        )

    def scan(
        self, queries: Gaussians, count: int, _nprobe: int | None = None, selection: Selection | None = None, /
    ) -> Numbers:
        """As ApproximateScanner; also -1 where a walk has met fewer documents than `count`."""
        breadth = broadened(self._breadth, count, len(self._graph), selection)
        if selection is None:
            return self.walk(queries, count, breadth)
        wanted = min(selection.spread(count), breadth)
        if not wanted:
            return np.empty((len(queries), 0), dtype=np.int64)
        return selection.drop(self.walk(queries, wanted, breadth))[:, :count]

    def walk(self, queries: Gaussians, count: int, breadth: int) -> Numbers:
        """As `scan`, by walks of a given breadth."""
        weights, unusable = weighed(self._codebook, self._fold(queries))
        search = functools.partial(self._graph.search, count=count, breadth=breadth)
        with one_thread():
            numbers = by_query(self._pool, self._threads, search, weights)
        numbers[unusable] = -1
        return numbers
