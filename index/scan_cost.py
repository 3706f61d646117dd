"""Whether to scan for what is best of some of the documents, or to score them all: whichever takes less time.

A scan finds the best of everything, of which what may not be found is dropped (index.selection). The fewer documents
may be found, the more it has to find, and the sooner they are all scored.
"""

import math
from dataclasses import dataclass

from index.codes_record import CodesRecord
from index.selection import Selection

__all__ = ["ALONE", "FLAT", "HALF", "ON_GPU", "STREAMED", "ScanCost", "cost_of_codes"]

FEW = 300
"""Documents that are scored in the time that a search takes besides."""


@dataclass(frozen=True, slots=True)
class ScanCost:
    """What a scan does in the time in which one document is scored exactly, of one query on one core: it looks at
    `documents`, or finds `found` of those that it is asked for. Up to `shared` queries are looked for in the time that
    one of them takes. `besides` documents are scored in the time that it takes whatever it looks at."""

    documents: float
    found: float
    shared: int = 1
    besides: int = FEW

    def exceeds_scoring(
        self, selection: Selection, found: int, *, among: int | None = None, queries: int = 1, threads: int = 1
    ) -> bool:
        """Whether a scan `among` so many documents, all if not set, that is to find so many of them takes longer than
        scoring all that are selected, which one thread does, a query at a time."""
        documents = len(selection.allowed) if among is None else among
        looked_at = documents / (self.documents * threads * min(queries, self.shared))
        return selection.count <= self.besides + looked_at + found / self.found


FLAT, HALF, STREAMED = ScanCost(8, 10, shared=8), ScanCost(16, 10, shared=8), ScanCost(0.6, 10, shared=64)
ALONE = ScanCost(8, 10, shared=8, besides=700)
ON_GPU = ScanCost(500, 10)
CODES, WALKS, FACTORY = ScanCost(256, 20), ScanCost(math.inf, 0.5), ScanCost(math.inf, 10)
"""Measured at k = 128, where one document is scored in a microsecond; of a GPU and of FAISS's factory, guessed. ALONE
is of a float32 scan that looks at nothing but what is selected. A walk looks at next to nothing but what it finds, and
each takes the longer the more they are. None of the last three is shared: what an approximate scan finds must not
depend on the batch that a query is in."""


def cost_of_codes(codes: CodesRecord) -> ScanCost:
    """What the scan of an approximate kind takes."""
    if codes.graph is not None:
        return WALKS
    return FACTORY if codes.factory is not None else CODES
