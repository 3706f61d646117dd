"""A scan in two parts: documents that were there when the index was last read whole, and those written since.

A write must show in the next search, and not take as long as reading the index. So what has been laid out for the scan
of a generation serves the next one, too, and only the segments behind it, the tail, are read for it.
"""

import numpy as np

from index.code_scanning import ApproximateScanner, weighed
from index.codes import Codes
from index.documents import Numbers
from index.encoding import QueryFolder
from index.gaussians import Gaussians
from index.half_scanning import HalfScanner
from index.scalar_codebook import ScalarCodebook
from index.scalar_codes import scalar_index
from index.scanning import Ceilings, Scanner
from index.selection import Selection, packed
from index.standardisation import Standardisation
from index.vectors import one_thread

__all__ = ["ScalarScanner", "TailedHalfScanner", "TailedScanner"]


FEW = 8
"""Times as many documents as are wanted, up to which all are handed on to exact scoring."""


class TailedScanner:
    """An ApproximateScanner of two, of which the first has so many documents."""

    def __init__(self, base: ApproximateScanner, documents: int, tail: ApproximateScanner, total: int) -> None:
        self._base, self._start, self._tail, self._total = base, documents, tail, total

    def scan(
        self, queries: Gaussians, count: int, nprobe: int | None = None, selection: Selection | None = None, /
    ) -> Numbers:
        """As ApproximateScanner: about `count` documents of each part, in the order of the parts."""
        start, total = self._start, self._total
        before = selection.part(0, start) if selection is not None else None
        after = selection.part(start, total) if selection is not None else None
        first = _scanned(self._base, queries, count, nprobe, before)
        second = _scanned(self._tail, queries, count, None, after)
        return packed(np.concatenate([first, np.where(second < 0, -1, second + start)], axis=1))


def _scanned(
    scanner: ApproximateScanner, queries: Gaussians, count: int, nprobe: int | None, selection: Selection | None
) -> Numbers:
    """What a scan of one part finds; all that may be found there, where these are few: they may be much rarer in one
    part than in the other, and a scan that finds a few of a million looks at all of them."""
    if selection is None or selection.count > FEW * count:
        return scanner.scan(queries, count, nprobe, selection)
    return np.tile(np.flatnonzero(selection.allowed), (len(queries), 1))


class TailedHalfScanner:
    """The exact scan of documents in bfloat16, and of those written since in float32."""

    def __init__(self, base: HalfScanner, documents: int, tail: Scanner) -> None:
        self.base, self._start, self._tail = base, documents, tail
        self.device, self.margin = base.device, base.margin

    def scan(self, queries: Gaussians, count: int) -> tuple[Numbers, Ceilings]:
        """As Scanner.scan; up to `count` of each part."""
        first, its = self.base.scan(queries, count)
        second, others = self._tail.scan(queries, count)
        numbers = np.concatenate([first, np.where(second < 0, -1, second + self._start)], axis=1)
        return numbers, np.maximum(its, others)


class ScalarScanner:
    """Projected vectors of 8 or 16 bits a number, all of them scanned: an ApproximateScanner for documents that no
    graph links yet."""

    def __init__(self, codes: list[Codes], codebook: ScalarCodebook, standardisation: Standardisation) -> None:
        self._index = scalar_index(codebook.ranges)
        for part in codes:
            self._index.add_sa_codes(part)
        self._codebook, self._fold = codebook, QueryFolder(standardisation)

    def scan(
        self, queries: Gaussians, count: int, _nprobe: int | None = None, selection: Selection | None = None, /
    ) -> Numbers:
        """As ApproximateScanner."""
        weights, unusable = weighed(self._codebook, self._fold(queries))
        wanted = min(count if selection is None else selection.spread(count), int(self._index.ntotal))
        if not wanted:
            return np.empty((len(queries), 0), dtype=np.int64)
        with one_thread():
            numbers: Numbers = self._index.search(weights, wanted)[1]
        numbers[unusable] = -1
        return numbers if selection is None else selection.drop(numbers)[:, :count]
