"""Search: query Gaussians in, documents ranked by exact -KL(Q||D) out.

`LocalSearcher` implements index.interface.Searcher over the segments of one index directory. A search has three steps:

1. Scan. Queries are standardised and encoded, and FAISS finds in every segment the documents of the largest float32
   inner products: a few more than asked for (index.scanning).
2. Rescore. The best of all segments' candidates get their exact scores, in float64, from the Gaussians
   (index.rescoring).
3. Prove. No document that is not a candidate can score above the scan's ceiling, which allows for every rounding
   (index.encoding.inner_product_error). Where the last result's exact score is above it, the results are those of a
   float64 scan of everything. Where it is not (thousands of equal documents, a corpus that float32 cannot tell apart),
   candidates are widened, and in the end every document is scored in float64.

So results equal float64 brute force always, not nearly always; equal scores rank by id.

An index of another kind than flat scans codes instead, or walks a graph (index.approximate), and scores more
candidates, and there is no third step: scores are exact, and what is found is what the index's measured recall says.
Asked for `exact`, it takes the three steps above, with documents encoded as they pass (index.streaming).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from index.candidates import CandidateScorer, in_float64
from index.code_scanning import ApproximateScanner
from index.cores import available_cores
from index.documents import Document, DocumentStore, Numbers
from index.errors import InvalidOptionError, SearchStoppedError
from index.filters import Filter
from index.gaussians import Gaussians
from index.interface import Effort, Evidence, Precision, Ranking, Scores, Stop
from index.manifest import Manifest
from index.opening import How, OpenedIndex
from index.rescoring import Explanation, explain, negative_kl
from index.scanning import Scanner
from index.selection import WIDER, DocumentFilter, Mask, ScanCost, Selection
from index.storage import IndexDirectory
from index.streaming import StreamedScanner
from index.vectors import resolve_device

__all__ = ["LocalSearcher"]

MARGIN = 10
"""Candidates beyond top_k in the first scan. On WordNet Gaussians (k=128) that is enough to prove every top 10."""
WIDENING = 16
"""How much wider the second scan is than the first; after it, what is still unproven is scored exhaustively."""
EXHAUSTIVE_ROWS = 4096
"""Documents scored at a time by an exhaustive float64 scan, which bounds its memory."""
FLAT, HALF, STREAMED = ScanCost(8, 10, shared=8), ScanCost(16, 10, shared=8), ScanCost(0.6, 10, shared=64)
ALONE = ScanCost(8, 10, shared=8, besides=700)
ON_GPU = ScanCost(500, 10)
CODES, WALKS, FACTORY = ScanCost(256, 20), ScanCost(math.inf, 0.5), ScanCost(math.inf, 10)
"""Measured at k = 128, where one document is scored in a microsecond; of a GPU and of FAISS's factory, guessed. ALONE
is of a float32 scan that looks at nothing but what is selected. A walk looks at next to nothing but what it finds, and
each takes the longer the more they are. None of the last three is shared: what an approximate scan finds must not
depend on the batch that a query is in."""


_NOTHING = Ranking([], np.empty(0), np.empty(0, dtype=np.int64), Evidence(0, 0, "exhaustive"))

Block = tuple[Numbers, npt.NDArray[np.float32], npt.NDArray[np.float32]]


def _parsed(given: DocumentFilter | Mapping[str, object] | None) -> DocumentFilter | None:
    return Filter.parse(dict(given)) if isinstance(given, Mapping) else given


def _require_gaussians(given: object) -> None:
    if not isinstance(given, Gaussians):
        raise TypeError(
            f"queries must be Gaussians, not {type(given).__name__}: make them with "
            "Gaussians.from_arrays(means, variances), each of shape (queries, k)"
        )


class LocalSearcher:
    """Searches one generation of an index directory, which it keeps open whatever is published meanwhile.

    Opening reads the vectors into memory (or onto the GPU) and memory-maps the rest; `verify` also checks every
    checksum. `threads` bounds the cores that one search uses; None is all. `precision` is what kind flat is scanned in.
    Raises the errors of IndexDirectory, DeviceUnavailableError, and InsufficientMemoryError before reading what would
    not fit.

    Safe to call from several threads.
    """

    def __init__(
        self,
        directory: IndexDirectory | str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        verify: bool = True,
        precision: Precision = Precision.AUTO,
        manifest: Manifest | None = None,
        known: "LocalSearcher | None" = None,
    ) -> None:
        """`manifest` is another generation than the live one. `known` is a searcher of another generation: what both
        have is not read twice, so that a write shows at once."""
        directory = IndexDirectory.of(directory)
        self.name = directory.name
        how = How(directory.path.resolve(), resolve_device(device), threads, precision)
        before = known._opened if known is not None else None
        self._opened: OpenedIndex = OpenedIndex.open(directory, how, manifest, verify=verify, known=before)
        self.manifest = self._opened.manifest
        self._store, self._selector, self._exact = self._opened.store, self._opened.selector, self._opened.exact
        self._codes = self._opened.codes.scanner if self._opened.codes is not None else None
        self._threads = threads or available_cores()
        self._scorer = CandidateScorer(self._store, self._threads)

    def __len__(self) -> int:
        return self.manifest.documents

    @property
    def device(self) -> torch.device:
        """Where vectors are scanned; codes are scanned on the CPU, whatever was asked for."""
        return torch.device("cpu") if isinstance(self._exact, StreamedScanner) else self._exact.device

    @property
    def precision(self) -> Precision:
        """What kind flat is scanned in, and other kinds are where a search is to be exact."""
        return Precision.BFLOAT16 if self._opened.half else Precision.FLOAT32

    def beside(self, directory: IndexDirectory, manifest: Manifest) -> "LocalSearcher":
        """A searcher of another generation, opened as this one is, with which it shares what both have."""
        how = self._opened.how
        return LocalSearcher(
            directory,
            device=str(how.device),
            threads=how.threads,
            precision=how.precision,
            verify=False,
            manifest=manifest,
            known=self,
        )

    def live_mask(self) -> Mask | None:
        """Which rows of its store are documents, (n,); None where all are."""
        live = self._selector.live
        return None if live is None else live.allowed

    @property
    def store(self) -> DocumentStore:
        """Its documents, and rows that were some."""
        return self._store

    def search(
        self,
        queries: Gaussians,
        top_k: int,
        *,
        candidates: int | None = None,
        nprobe: int | None = None,
        exact: bool = False,
        filter: DocumentFilter | Mapping[str, object] | None = None,  # noqa: A002 (as a request calls it)
        stop: Stop | None = None,
    ) -> list[Ranking]:
        """The top_k documents (all, where there are fewer) of each of b queries, by exact -KL(Q||D).

        queries: (b, k) of any floating dtype, on any device. `candidates` sets how many documents the first scan hands
        to rescoring. Where a search is exact, because the index is flat or `exact` is set, that changes the time taken,
        never the results; else it is what recall depends on, with `nprobe`, the number of lists that are scanned, where
        documents are in lists. Scores are exact always. With a `filter`, also as what index.filters.Filter.parse takes,
        only documents that it lets through are found, as surely as all are without one.

        Raises InvalidOptionError for top_k, candidates or nprobe below 1, for nprobe where there are no lists and for a
        filter that is none or does not go with the payload, InvalidGaussiansError for another k or a query that float32
        cannot hold, TypeError for queries that are no Gaussians, and SearchStoppedError where `stop` says so during a
        scan that can take seconds.
        """
        self._check(queries, top_k)
        if candidates is not None and candidates < 1:
            raise InvalidOptionError(f"candidates is {candidates}; it must be at least 1")
        effort = self.effort_for(top_k, candidates, nprobe)
        selection = self._selector.of(_parsed(filter), stop)
        top_k = min(top_k, len(self) if selection is None else selection.count)
        if not top_k:
            return [_NOTHING] * len(queries)
        if self._codes is not None and effort is not None and not exact:
            if selection is None:
                return self._search_codes(self._codes, queries, top_k, effort, stop)
            return self._search_selected(self._codes, queries, top_k, effort, selection, stop)
        return self._search_exactly(queries, top_k, candidates, selection, stop)

    def matching(self, filter: DocumentFilter | Mapping[str, object], *, stop: Stop | None = None) -> int:  # noqa: A002
        """How many documents a filter lets through; raises as `search`."""
        selection = self._selector.of(_parsed(filter), stop)
        return len(self) if selection is None else selection.count

    def effort_for(self, top_k: int, candidates: int | None, nprobe: int | None) -> Effort | None:
        """What a search takes that is not exact, where a request asks for this or leaves it open; None where all are.

        Raises InvalidOptionError for an nprobe below 1, or where documents are in no lists.
        """
        codes = self.manifest.codes
        lists = codes.list_count if codes is not None else None
        if nprobe is not None and lists is None:
            raise InvalidOptionError(f"nprobe is {nprobe}, but an index of kind {self.manifest.kind} has no lists")
        if nprobe is not None and nprobe < 1:
            raise InvalidOptionError(f"nprobe is {nprobe}; it must be at least 1")
        if codes is None:
            return None
        taken = min(max(top_k, candidates or codes.candidates_for(top_k)), max(1, len(self)))
        return Effort(
            taken, codes.nprobe_for(top_k, len(self)) if nprobe is None or lists is None else min(nprobe, lists)
        )

    def exhaustive_search(self, queries: Gaussians, top_k: int) -> list[Ranking]:
        """The same results by scoring every document in float64, without FAISS: the slow path, and the reference."""
        self._check(queries, top_k)
        live = self._selector.live
        return self._exhaustive(queries, min(top_k, len(self)), live) if len(self) else [_NOTHING] * len(queries)

    def proved_share(self, queries: Gaussians, top_k: int) -> float:
        """The share of these queries whose results the first scan proves complete, of kind flat."""
        count = top_k + MARGIN
        selection = self._selector.live
        found = count if selection is None else selection.spread(count)
        return len(self._scan_and_prove(queries, min(top_k, len(self)), found, selection, None)) / len(queries)

    def document(self, document_id: str) -> Document:
        """The document with this id; raises DocumentNotFoundError, and TypeError for an id that is no string."""
        return self._store.find(document_id)

    def document_at(self, number: int) -> Document:
        """The document with this number, out of a Ranking."""
        return self._store.at(number)

    def first_document(self) -> Document | None:
        """Some document; None where there is none."""
        live = self._selector.live
        return self._store.at(0 if live is None else int(np.argmax(live.allowed))) if len(self) else None

    def payloads(self, documents: Numbers) -> list[dict[str, Any]]:
        """The payload of each of these documents (numbers (m,) from a Ranking), in their order."""
        return self._store.payloads(documents)

    def explain(self, query: Gaussians, documents: Numbers) -> list[Explanation]:
        """The parts of KL between one query (1, k) and each of these documents (m,), in their order.

        Raises TypeError for a query that is no Gaussians.
        """
        _require_gaussians(query)
        (mean,), (variance,) = in_float64(query)
        means, variances = self._store.gaussians(documents)
        pairs = zip(means.astype(np.float64), variances.astype(np.float64), strict=True)
        return [explain(mean, variance, document_mean, document_variance) for document_mean, document_variance in pairs]

    def _check(self, queries: Gaussians, top_k: int) -> None:
        _require_gaussians(queries)
        queries.require_dimensions(self.manifest.k)
        queries.to(dtype=torch.float32)  # raises where the scan could not hold it; a wider query is rescored as it is
        if top_k < 1:
            raise InvalidOptionError(f"top_k is {top_k}; it must be at least 1")

    def _search_codes(
        self, codes: ApproximateScanner, queries: Gaussians, top_k: int, effort: Effort, stop: Stop | None
    ) -> list[Ranking]:
        """Scans codes and scores the candidates exactly: what is not a candidate is not found.

        Exactly, too, for queries of which the scan makes so little that it finds fewer documents than are wanted.
        """
        documents = np.sort(codes.scan(queries, effort.candidates, effort.nprobe), axis=1)
        found = (documents >= 0).sum(axis=1)
        too_few = found < top_k
        if not too_few.any():
            return self._rank(
                documents, self._scorer.scores(queries, documents), top_k, self._found_by_codes(found, len(self))
            )
        lost, rest = np.flatnonzero(too_few), np.flatnonzero(~too_few)
        exact = self._search_exactly(_rows(queries, lost), top_k, None, None, stop)
        scores = self._scorer.scores(_rows(queries, rest), documents[rest])
        rankings = dict(zip(lost.tolist(), exact, strict=True))
        its = self._found_by_codes(found[rest], len(self))
        rankings |= zip(rest.tolist(), self._rank(documents[rest], scores, top_k, its), strict=True)
        return [rankings[row] for row in range(len(queries))]

    def _search_selected(
        self,
        codes: ApproximateScanner,
        queries: Gaussians,
        top_k: int,
        effort: Effort,
        selection: Selection,
        stop: Stop | None,
    ) -> list[Ranking]:
        """The same among some of the documents: scans until there are as many candidates as there would be of all, and
        goes over to an exact search where it would have to find more than scoring all that may be found is worth."""
        rankings: dict[int, Ranking] = {}
        pending, wanted = np.arange(len(queries)), min(effort.candidates, selection.count)
        nprobe = self._nprobe_among(selection, effort, top_k)
        while len(pending) and self._is_worth_scanning(selection, wanted):
            rest = _rows(queries, pending)
            documents = np.sort(codes.scan(rest, wanted, nprobe, selection), axis=1)
            found = (documents >= 0).sum(axis=1)
            enough = found >= wanted
            scores = self._scorer.scores(_rows(rest, np.flatnonzero(enough)), documents[enough])
            its = self._found_by_codes(found[enough], selection.count)
            rankings |= zip(pending[enough].tolist(), self._rank(documents[enough], scores, top_k, its), strict=True)
            pending = pending[~enough]
            selection, nprobe = selection.widened(), nprobe and WIDER * nprobe
        if len(pending):
            exact = self._search_exactly(_rows(queries, pending), top_k, None, selection, stop)
            rankings |= zip(pending.tolist(), exact, strict=True)
        return [rankings[row] for row in range(len(queries))]

    def _found_by_codes(self, found: Numbers, among: int) -> list[Evidence]:
        """What results rest on of which so many candidates were found, (p,), among so many documents."""
        codes = self.manifest.codes
        looks_at_all = codes is not None and codes.graph is None and codes.lists is None and codes.factory is None
        scanned = len(self._store) if looks_at_all else None
        return [Evidence(scanned, count, "exhaustive" if count == among else None) for count in found.tolist()]

    def _is_worth_scanning(self, selection: Selection, wanted: int) -> bool:
        codes = self.manifest.codes
        if codes is None:
            return False
        found = selection.spread(math.ceil(codes.breadth * wanted))
        cost = WALKS if codes.graph is not None else FACTORY if codes.factory is not None else CODES
        return found < len(selection.allowed) and not cost.exceeds_scoring(selection, found)

    @property
    def _exact_cost(self) -> ScanCost:
        if isinstance(self._exact, StreamedScanner):
            return STREAMED
        if self.device.type != "cpu":
            return ON_GPU
        return HALF if self._opened.half else FLAT

    def _nprobe_among(self, selection: Selection, effort: Effort, top_k: int) -> int | None:
        """As many lists as hold the best of all of which top_k may be found, unless a request said how many."""
        codes = self.manifest.codes
        if codes is None or effort.nprobe is None or effort.nprobe != codes.nprobe_for(top_k, len(self)):
            return effort.nprobe
        return codes.nprobe_for(top_k, math.floor(selection.share * len(selection.allowed)))

    def _search_exactly(
        self,
        queries: Gaussians,
        top_k: int,
        candidates: int | None,
        selection: Selection | None,
        stop: Stop | None,
    ) -> list[Ranking]:
        margin = MARGIN if isinstance(self._exact, Scanner | StreamedScanner) else self._exact.margin
        first = max(candidates or 0, top_k + margin)
        rankings: dict[int, Ranking] = {}
        pending = np.arange(len(queries))
        alone = self._is_scanned_alone(selection)
        for count in (first, WIDENING * first):
            found = count if selection is None or alone else selection.spread(count)
            if selection is not None and (ALONE if alone else self._exact_cost).exceeds_scoring(
                selection,
                found,
                among=selection.count if alone else None,
                queries=len(pending),
                threads=self._threads,
            ):
                break
            complete = self._scan_and_prove(_rows(queries, pending), top_k, found, selection, stop)
            rankings |= {int(pending[row]): ranking for row, ranking in complete.items()}
            pending = np.array([query for query in pending.tolist() if query not in rankings], dtype=np.int64)
            if not len(pending):
                break
        if len(pending):
            rest = self._exhaustive(_rows(queries, pending), top_k, selection, stop)
            rankings |= zip(pending.tolist(), rest, strict=True)
        return [rankings[query] for query in range(len(queries))]

    def _is_scanned_alone(self, selection: Selection | None) -> bool:
        """Whether a scan looks at what is selected and at nothing else."""
        on_cpu = isinstance(self._exact, Scanner) and self.device.type == "cpu"
        return selection is not None and on_cpu and selection.is_sparse

    def _scan_and_prove(
        self, queries: Gaussians, top_k: int, count: int, selection: Selection | None, stop: Stop | None
    ) -> dict[int, Ranking]:
        """Rankings, by row, of those of the queries whose results `count` candidates prove complete."""
        if isinstance(self._exact, StreamedScanner):
            documents, ceilings = self._exact.scan(queries, count, stop)
        elif selection is not None and isinstance(self._exact, Scanner) and self._is_scanned_alone(selection):
            documents, ceilings = self._exact.scan(queries, count, selection.allowed)
        else:
            documents, ceilings = self._exact.scan(queries, count)
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
        return dict(zip(complete.tolist(), self._rank(kept, scores[complete], top_k, its), strict=True))

    def _exhaustive(
        self, queries: Gaussians, top_k: int, selection: Selection | None, stop: Stop | None = None
    ) -> list[Ranking]:
        """Scores every document that may be found in float64, keeping for each query what can still be among the
        top_k."""
        asked = list(zip(*in_float64(queries), strict=True))
        best = [(np.empty(0), np.empty(0, np.int64)) for _ in asked]
        for numbers, means, variances in self._blocks(selection):
            for row, (mean, variance) in enumerate(asked):
                if stop is not None and stop():
                    raise SearchStoppedError("nobody waits for the results any more")
                scores = np.concatenate([best[row][0], negative_kl(mean, variance, means, variances)])
                documents = np.concatenate([best[row][1], numbers])
                keep = _may_be_in_top(scores, top_k)
                best[row] = scores[keep], documents[keep]
        its = [Evidence(0, len(self) if selection is None else selection.count, "exhaustive")]
        return [self._rank(documents[None], scores[None], top_k, its)[0] for scores, documents in best]

    def _blocks(self, selection: Selection | None) -> Iterator[Block]:
        """The documents that may be found, some at a time: numbers (m,), means (m, k) and variances (m, k)."""
        if selection is None:
            yield from self._store.blocks(EXHAUSTIVE_ROWS)
            return
        selected = np.flatnonzero(selection.allowed)
        for start in range(0, len(selected), EXHAUSTIVE_ROWS):
            numbers = selected[start : start + EXHAUSTIVE_ROWS]
            yield numbers, *self._store.gaussians(numbers)

    def _rank(self, documents: Numbers, scores: Scores, top_k: int, evidence: Sequence[Evidence]) -> list[Ranking]:
        """Sorts rows of documents and their scores, both (p, c), best first; equal scores by id. `evidence` is what
        each row rests on."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, : top_k + 1]
        rows = np.arange(len(order))[:, None]
        best, numbers = scores[rows, order], documents[rows, order[:, :top_k]]
        tied = (best[:, 1:] == best[:, :-1]).any(axis=1)
        ids = self._store.ids(numbers.ravel())
        rankings = []
        for row, (has_ties, its) in enumerate(zip(tied.tolist(), evidence, strict=True)):
            if has_ties:
                rankings.append(self._rank_by_id(documents[row], scores[row], top_k, its))
            else:
                start = row * numbers.shape[1]
                rankings.append(Ranking(ids[start : start + numbers.shape[1]], best[row, :top_k], numbers[row], its))
        return rankings

    def _rank_by_id(self, documents: Numbers, scores: Scores, top_k: int, evidence: Evidence) -> Ranking:
        """One row where equal scores leave the order, or the last place, to the ids."""
        keep = _may_be_in_top(scores, top_k)
        best = sorted(zip(-scores[keep], self._store.ids(documents[keep]), documents[keep], strict=True))[:top_k]
        return Ranking(
            ids=[document_id for _, document_id, _ in best],
            scores=np.array([-divergence for divergence, _, _ in best]),
            documents=np.array([number for _, _, number in best], dtype=np.int64),
            evidence=evidence,
        )


def _rows(queries: Gaussians, rows: Numbers) -> Gaussians:
    """These queries; themselves where these are all, which is nearly always."""
    return queries if len(rows) == len(queries) else queries[torch.from_numpy(rows)]


def _may_be_in_top(scores: Scores, top_k: int) -> Numbers:
    """Indices of the top_k scores and of everything that ties with the last of them: ids decide about those."""
    if len(scores) <= top_k:
        return np.arange(len(scores))
    return np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k])
