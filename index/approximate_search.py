"""A search by codes or a graph, in two steps: what a scan finds (index.approximate) is scored exactly.

There is no proof: what is not a candidate is not found, and what is found is what the index's measured recall says.
Where the scan cannot find as many documents as are wanted, the search is exact (index.exact_search).
"""

import math

import numpy as np

from index.approximate import OpenedCodes
from index.candidates import CandidateScorer
from index.documents import DocumentStore, Numbers
from index.exact_search import ExactSearch, rows_of
from index.gaussians import Gaussians
from index.interface import Effort, Evidence, Ranking, Stop
from index.ranking import rank
from index.scan_cost import cost_of_codes
from index.selection import WIDER, Selection

__all__ = ["ApproximateSearch"]


class ApproximateSearch:
    """Searches the documents of a store by their codes. Safe to call from several threads."""

    def __init__(
        self, opened: OpenedCodes, store: DocumentStore, documents: int, scorer: CandidateScorer, exact: ExactSearch
    ) -> None:
        """`documents` counts those of the store's rows that are documents; `exact` searches the same store."""
        self._codes, self._scanner = opened.codes, opened.scanner
        self._store, self._documents, self._scorer, self._exact = store, documents, scorer, exact

    def search(
        self, queries: Gaussians, top_k: int, effort: Effort, selection: Selection | None, stop: Stop | None
    ) -> list[Ranking]:
        """The top_k of each of b queries among what may be found, `selection`, None for all; as ExactSearch.search."""
        if selection is None:
            return self._search_all(queries, top_k, effort, stop)
        return self._search_selected(queries, top_k, effort, selection, stop)

    def _search_all(self, queries: Gaussians, top_k: int, effort: Effort, stop: Stop | None) -> list[Ranking]:
        """Exactly for queries of which the scan makes so little that it finds fewer documents than are wanted."""
        documents = np.sort(self._scanner.scan(queries, effort.candidates, effort.nprobe), axis=1)
        found = (documents >= 0).sum(axis=1)
        too_few = found < top_k
        if not too_few.any():
            return self._scored(queries, documents, found, top_k, self._documents)
        lost, rest = np.flatnonzero(too_few), np.flatnonzero(~too_few)
        exact = self._exact.search(rows_of(queries, lost), top_k, None, None, stop)
        rankings = dict(zip(lost.tolist(), exact, strict=True))
        its = self._scored(rows_of(queries, rest), documents[rest], found[rest], top_k, self._documents)
        rankings |= zip(rest.tolist(), its, strict=True)
        return [rankings[row] for row in range(len(queries))]

    def _search_selected(
        self, queries: Gaussians, top_k: int, effort: Effort, selection: Selection, stop: Stop | None
    ) -> list[Ranking]:
        """Scans until there are as many candidates as there would be of all, and goes over to an exact search where it
        would have to find more than scoring all that may be found is worth."""
        rankings: dict[int, Ranking] = {}
        pending, wanted = np.arange(len(queries)), min(effort.candidates, selection.count)
        nprobe = self._nprobe_among(selection, effort, top_k)
        while len(pending) and self._is_worth_scanning(selection, wanted):
            rest = rows_of(queries, pending)
            documents = np.sort(self._scanner.scan(rest, wanted, nprobe, selection), axis=1)
            found = (documents >= 0).sum(axis=1)
            enough = found >= wanted
            its = rows_of(rest, np.flatnonzero(enough))
            scored = self._scored(its, documents[enough], found[enough], top_k, selection.count)
            rankings |= zip(pending[enough].tolist(), scored, strict=True)
            pending = pending[~enough]
            selection, nprobe = selection.widened(), nprobe and WIDER * nprobe
        if len(pending):
            exact = self._exact.search(rows_of(queries, pending), top_k, None, selection, stop)
            rankings |= zip(pending.tolist(), exact, strict=True)
        return [rankings[row] for row in range(len(queries))]

    def _scored(self, queries: Gaussians, documents: Numbers, found: Numbers, top_k: int, among: int) -> list[Ranking]:
        """The rankings of candidates (p, c), so many of which were found (p,), among so many documents."""
        codes = self._codes
        looks_at_all = codes.graph is None and codes.lists is None and codes.factory is None
        scanned = len(self._store) if looks_at_all else None
        its = [Evidence(scanned, count, "exhaustive" if count == among else None) for count in found.tolist()]
        return rank(self._store, documents, self._scorer.scores(queries, documents), top_k, its)

    def _is_worth_scanning(self, selection: Selection, wanted: int) -> bool:
        found = selection.spread(math.ceil(self._codes.breadth * wanted))
        return found < len(selection.allowed) and not cost_of_codes(self._codes).exceeds_scoring(selection, found)

    def _nprobe_among(self, selection: Selection, effort: Effort, top_k: int) -> int | None:
        """As many lists as hold the best of all of which top_k may be found, unless a request said how many."""
        if effort.nprobe is None or effort.nprobe != self._codes.nprobe_for(top_k, self._documents):
            return effort.nprobe
        return self._codes.nprobe_for(top_k, math.floor(selection.share * len(selection.allowed)))
