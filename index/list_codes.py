"""FAISS behind one seam, for codes in lists: those of the lists that a query is sent to are scanned.

What it guards against: `IndexIVFPQFastScan.add_core` stores garbage without an error, so that codes are put into an
IndexIVFPQ, which is then laid out for the fast scan; the number of lists is an attribute of the index unless it is
handed over in a way that only the interface of C has.
"""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from index.allocation import GROUP
from index.codes import Centroids, Codes, product_quantiser

__all__ = ["CodeLists"]

ONE_BY_ONE = 11
"""FAISS's number for the way to scan that takes each query alone and keeps candidates in a reservoir. By itself it
sorts the lists of a batch first, which for a single query takes as long again as the scan."""


class CodeLists:
    """Codes in lists, laid out for the fast scan, in memory: M/2 bytes a document and eight for its number."""

    def __init__(self, codes: Codes, members: npt.NDArray[np.int64], lists: int, centroids: Centroids) -> None:
        """Codes (n, M/2) of documents whose lists are `members` (n,)."""
        width = len(centroids) * GROUP
        # What chooses lists in FAISS's own searches, of which there are none.
        self._unused = faiss.IndexFlatIP(width)
        self._unused.add(np.zeros((lists, width), dtype=np.float32))
        index: Any = faiss.IndexIVFPQ(self._unused, width, lists, len(centroids), 4, faiss.METRIC_INNER_PRODUCT)
        index.pq, index.by_residual, index.is_trained = product_quantiser(centroids), False, True
        order = np.argsort(members, kind="stable")
        bounds = np.searchsorted(members[order], np.arange(lists + 1))
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            rows = order[bounds[number] : bounds[number + 1]]
            its = np.ascontiguousarray(codes[rows])
            index.invlists.add_entries(number, len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(its))
        index.ntotal = len(codes)
        self._index: Any = faiss.IndexIVFPQFastScan(index)
        self._index.implem = ONE_BY_ONE

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(
        self, queries: npt.NDArray[np.float32], probes: npt.NDArray[np.int64], count: int
    ) -> npt.NDArray[np.int64]:
        """The `count` documents of the largest approximate inner products in the lists `probes` (b, nprobe): rows (b,
        count), best first.

        queries: (b, M * GROUP) float32. A row of -1 stands where there are too few.
        """
        queries, probes = np.ascontiguousarray(queries), np.ascontiguousarray(probes)
        count = min(count, len(self))
        scores = np.empty((len(queries), count), dtype=np.float32)
        rows = np.empty((len(queries), count), dtype=np.int64)
        distances = np.zeros(probes.shape, dtype=np.float32)
        arrays = [faiss.swig_ptr(each) for each in (probes, distances, scores, rows)]
        parameters = faiss.SearchParametersIVF()
        parameters.nprobe = probes.shape[1]
        self._index.search_preassigned_c(len(queries), faiss.swig_ptr(queries), count, *arrays, False, parameters)
        return rows
