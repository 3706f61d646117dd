"""A search that finds what a float64 scan of everything would, always, in three steps.

1. Scan. Queries are standardised and encoded, and FAISS finds in every segment the documents of the largest float32
   inner products: a few more than asked for (index.scanning).
2. Rescore. The best of all segments' candidates get their exact scores, in float64, from the Gaussians
   (index.candidates).
3. Prove. No document that is not a candidate can score above the scan's ceiling, which allows for every rounding
   (index.encoding.inner_product_error). Where the last result's exact score is above it, the results are those of a
   float64 scan of everything. Where it is not (thousands of equal documents, a corpus that float32 cannot tell apart),
   candidates are widened, and in the end every document is scored in float64.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from index.candidates import CandidateScorer, in_float64
from index.documents import DocumentStore, Numbers
from index.errors import SearchStoppedError
from index.gaussians import Gaussians
from index.half_scanning import HalfScanner
from index.interface import Evidence, Ranking, Stop
from index.opening import ExactScanner
from index.ranking import may_be_in_top, rank
from index.rescoring import negative_kl
from index.scan_cost import ALONE, FLAT, HALF, ON_GPU, STREAMED, ScanCost
from index.scanning import Ceilings, Scanner
from index.selection import Selection
from index.streaming import StreamedScanner
from index.tailed import TailedHalfScanner

__all__ = ["ExactSearch", "rows_of"]

MARGIN = 10
"""Candidates beyond top_k in the first scan. On WordNet Gaussians (k=128) that is enough to prove every top 10."""
WIDENING = 16
"""How much wider the second scan is than the first; after it, what is still unproven is scored exhaustively."""
EXHAUSTIVE_ROWS = 4096
"""Documents scored at a time by an exhaustive float64 scan, which bounds its memory."""

Block = tuple[Numbers, npt.NDArray[np.float32], npt.NDArray[np.float32]]


class ExactSearch:
    """Searches the documents of a store by a scan that bounds what it does not find. Safe to call from several threads.

    Queries are (b, k) Gaussians, `selection` is what may be found, None for all, and `top_k` at least 1 and at most as
    many as that is.
    """

    def __init__(self, scanner: ExactScanner, store: DocumentStore, scorer: CandidateScorer, threads: int) -> None:
        """`threads` is how many the scan has."""
        self._scanner, self._store, self._scorer, self._threads = scanner, store, scorer, threads
        self._margin = MARGIN if isinstance(scanner, Scanner | StreamedScanner) else scanner.margin
        self._cost = _cost(scanner)

    def search(
        self,
        queries: Gaussians,
        top_k: int,
        candidates: int | None,
        selection: Selection | None,
        stop: Stop | None,
    ) -> list[Ranking]:
        """The top_k of each query. `candidates` is how many the first scan finds at least, which changes the time taken
        alone. Raises SearchStoppedError where `stop` says so in a scan that can take seconds."""
        first = max(candidates or 0, top_k + self._margin)
        rankings: dict[int, Ranking] = {}
        pending = np.arange(len(queries))
        alone = self._is_scanned_alone(selection)
        for count in (first, WIDENING * first):
            found = count if selection is None or alone else selection.spread(count)
            if selection is not None and (ALONE if alone else self._cost).exceeds_scoring(
                selection,
                found,
                among=selection.count if alone else None,
                queries=len(pending),
                threads=self._threads,
            ):
                break
            complete = self._scan_and_prove(rows_of(queries, pending), top_k, found, selection, stop)
            rankings |= {int(pending[row]): ranking for row, ranking in complete.items()}
            pending = np.array([query for query in pending.tolist() if query not in rankings], dtype=np.int64)
            if not len(pending):
                break
        if len(pending):
            rest = self.exhaustive(rows_of(queries, pending), top_k, selection, stop)
            rankings |= zip(pending.tolist(), rest, strict=True)
        return [rankings[query] for query in range(len(queries))]

    def proved_share(self, queries: Gaussians, top_k: int, selection: Selection | None) -> float:
        """The share of these queries whose results the first scan proves complete, with as many candidates as the
        float32 scan begins with."""
        count = top_k + MARGIN
        found = count if selection is None else selection.spread(count)
        among = len(self._store) if selection is None else selection.count
        return len(self._scan_and_prove(queries, min(top_k, among), found, selection, None)) / len(queries)

    def exhaustive(
        self, queries: Gaussians, top_k: int, selection: Selection | None, stop: Stop | None = None
    ) -> list[Ranking]:
        """The same results without a scan: scores every document that may be found in float64, keeping for each query
        what can still be among the top_k."""
        asked = list(zip(*in_float64(queries), strict=True))
        best = [(np.empty(0), np.empty(0, np.int64)) for _ in asked]
        for numbers, means, variances in self._blocks(selection):
            for row, (mean, variance) in enumerate(asked):
                if stop is not None and stop():
                    raise SearchStoppedError("nobody waits for the results any more")
                scores = np.concatenate([best[row][0], negative_kl(mean, variance, means, variances)])
                documents = np.concatenate([best[row][1], numbers])
                keep = may_be_in_top(scores, top_k)
                best[row] = scores[keep], documents[keep]
        its = [Evidence(0, len(self._store) if selection is None else selection.count, "exhaustive")]
        return [rank(self._store, documents[None], scores[None], top_k, its)[0] for scores, documents in best]

    def _scan_and_prove(
        self, queries: Gaussians, top_k: int, count: int, selection: Selection | None, stop: Stop | None
    ) -> dict[int, Ranking]:
        """Rankings, by row, of those of the queries whose results `count` candidates prove complete."""
        documents, ceilings = self._scan(queries, count, selection, stop)
        if selection is not None:
            documents = selection.drop(documents)
        if documents.shape[1] < top_k:
            return {}
        scores = self._scorer.scores(queries, documents)
        last_results = -np.partition(-scores, top_k - 1, axis=1)[:, top_k - 1]
        complete = np.flatnonzero(last_results > ceilings)
        scanned = selection.count if selection and self._is_scanned_alone(selection) else len(self._store)
        kept = documents[complete]
        its = [Evidence(scanned, found, "bound") for found in (kept >= 0).sum(axis=1).tolist()]
        return dict(zip(complete.tolist(), rank(self._store, kept, scores[complete], top_k, its), strict=True))

    def _scan(
        self, queries: Gaussians, count: int, selection: Selection | None, stop: Stop | None
    ) -> tuple[Numbers, Ceilings]:
        """As Scanner.scan, by whichever scanner there is."""
        if isinstance(self._scanner, StreamedScanner):
            return self._scanner.scan(queries, count, stop)
        if selection is not None and isinstance(self._scanner, Scanner) and self._is_scanned_alone(selection):
            return self._scanner.scan(queries, count, selection.allowed)
        return self._scanner.scan(queries, count)

    def _is_scanned_alone(self, selection: Selection | None) -> bool:
        """Whether a scan looks at what is selected and at nothing else."""
        on_cpu = isinstance(self._scanner, Scanner) and self._scanner.device.type == "cpu"
        return selection is not None and on_cpu and selection.is_sparse

    def _blocks(self, selection: Selection | None) -> Iterator[Block]:
        """The documents that may be found, some at a time: numbers (m,), means (m, k) and variances (m, k)."""
        if selection is None:
            yield from self._store.blocks(EXHAUSTIVE_ROWS)
            return
        selected = np.flatnonzero(selection.allowed)
        for start in range(0, len(selected), EXHAUSTIVE_ROWS):
            numbers = selected[start : start + EXHAUSTIVE_ROWS]
            yield numbers, *self._store.gaussians(numbers)


def _cost(scanner: ExactScanner) -> ScanCost:
    """What a scan of all documents takes."""
    if isinstance(scanner, StreamedScanner):
        return STREAMED
    if scanner.device.type != "cpu":
        return ON_GPU
    return HALF if isinstance(scanner, HalfScanner | TailedHalfScanner) else FLAT


def rows_of(queries: Gaussians, rows: Numbers) -> Gaussians:
    """These queries, rows ascending; themselves where these are all, which is nearly always."""
    return queries if len(rows) == len(queries) else queries[torch.from_numpy(rows)]
