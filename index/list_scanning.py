"""The scan of some lists in place of all documents: those whose centroids diverge least from the query."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from index.code_scanning import broadened, by_query, weighed
from index.codebook import Codebook
from index.codes import Codes
from index.cores import available_cores, torch_on_one_core
from index.documents import Numbers
from index.encoding import QueryFolder
from index.gaussians import Gaussians
from index.list_codes import CodeLists
from index.lists import Lists
from index.selection import Selection
from index.shortlist import Shortlist
from index.standardisation import Standardisation
from index.vectors import one_thread, set_threads

__all__ = ["ListScanner"]


class ListScanner:
    """Codes of all segments in lists: an ApproximateScanner. Each query is one thread's."""

    def __init__(
        self,
        codes: Sequence[Codes],
        shortlist: Shortlist,
        lists: Lists,
        codebook: Codebook,
        standardisation: Standardisation,
        breadth: float,
        threads: int | None,
    ) -> None:
        """Finds `breadth` times as many documents as are asked for, of which the shortlist chooses."""
        together = np.concatenate(codes) if len(codes) > 1 else codes[0]
        self._codes = CodeLists(together, lists.members.astype(np.int64), len(lists.centroids), codebook.centroids)
        self._shortlist, self._breadth = shortlist, breadth
        self._centroids = torch.from_numpy(lists.centroids)
        self._codebook, self._fold = codebook, QueryFolder(standardisation)
        self._threads = threads or available_cores()
        self._pool = ThreadPoolExecutor(
            max(1, self._threads - 1), "gaussearch-scan", initializer=set_threads, initargs=(1,)
        )

    def scan(
        self, queries: Gaussians, count: int, nprobe: int | None = None, selection: Selection | None = None, /
    ) -> Numbers:
        """As ApproximateScanner; also -1 where the lists hold fewer documents than `count`."""
        vectors = self._fold(queries)
        projected, unusable = weighed(self._codebook, vectors)
        probes = self._probes(vectors, nprobe or len(self._centroids))
        found = broadened(self._breadth, count, len(self._codes), selection)
        if not found:
            return np.empty((len(projected), 0), dtype=np.int64)
        search = functools.partial(self._codes.search, count=found)
        with one_thread():
            numbers = by_query(self._pool, self._threads, search, self._codebook.laid_out(projected), probes)
        numbers[unusable] = -1
        if selection is not None:
            numbers = selection.drop(numbers)
        best = functools.partial(self._shortlist.best, count=count)
        return by_query(self._pool, self._threads, best, projected, numbers)

    def _probes(self, vectors: npt.NDArray[np.float64], nprobe: int) -> Numbers:
        """The lists (b, nprobe) whose centroids' -KL is the largest."""
        with torch_on_one_core():
            likelihoods = torch.from_numpy(vectors).float() @ self._centroids.T
            nearest = likelihoods.topk(min(nprobe, len(self._centroids)), dim=1, sorted=False).indices
        numbers: Numbers = nearest.numpy()
        return numbers
