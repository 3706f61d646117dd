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

from typing import Any

import numpy as np
import torch

from index.approximate import open_approximate
from index.candidates import CandidateScorer, in_float64
from index.code_scanning import ApproximateScanner
from index.cores import available_cores
from index.documents import Document, DocumentStore, Numbers
from index.errors import InvalidOptionError, SearchStoppedError
from index.gaussians import Gaussians
from index.half_scanning import HalfScanner, bfloat16_is_faster
from index.interface import Effort, Precision, Ranking, Scores, Stop
from index.memory import require_memory
from index.rescoring import Explanation, explain, negative_kl
from index.scanning import Scanner
from index.storage import IndexDirectory
from index.streaming import StreamedScanner
from index.vectors import resolve_device

__all__ = ["LocalSearcher"]

MARGIN = 10
"""Candidates beyond top_k in the first scan. On WordNet Gaussians (k=128) that is enough to prove every top 10."""
WORTH_COMPARING = 1 << 21
"""Documents times k from which it is measured whether bfloat16 is faster: what is smaller is scanned at once anyway."""
WIDENING = 16
"""How much wider the second scan is than the first; after it, what is still unproven is scored exhaustively."""
EXHAUSTIVE_ROWS = 4096
"""Documents scored at a time by an exhaustive float64 scan, which bounds its memory."""


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
        directory: IndexDirectory,
        *,
        device: str = "auto",
        threads: int | None = None,
        verify: bool = True,
        precision: Precision = Precision.AUTO,
    ) -> None:
        resolved = resolve_device(device)
        self.name = directory.name
        self.manifest = directory.manifest()
        require_memory(self.manifest, directory.path, resolved)
        segments = directory.open_segments(self.manifest, verify=verify)
        self._store = DocumentStore(segments)
        self._scorer = CandidateScorer(self._store, threads or available_cores())
        self._codes: ApproximateScanner | None = None
        self._scanner: HalfScanner | Scanner | StreamedScanner
        standardisation = self.manifest.standardisation.restore()
        if self.manifest.codes is None:
            if precision is Precision.BFLOAT16 or (
                precision is Precision.AUTO
                and self.manifest.documents * self.manifest.k >= WORTH_COMPARING
                and bfloat16_is_faster(resolved, self.manifest.k)
            ):
                self._scanner = HalfScanner(self._store, standardisation, resolved, threads)
            else:
                self._scanner = Scanner(self.manifest, segments, resolved, threads)
        else:
            max_norm = max(segment.manifest.max_norm for segment in segments)
            self._codes = open_approximate(directory, self.manifest.codes, segments, standardisation, threads, verify)
            self._scanner = StreamedScanner(self._store, standardisation, max_norm, threads)

    def __len__(self) -> int:
        return len(self._store)

    @property
    def device(self) -> torch.device:
        """Where vectors are scanned; codes are scanned on the CPU, whatever was asked for."""
        return torch.device("cpu") if isinstance(self._scanner, StreamedScanner) else self._scanner.device

    @property
    def precision(self) -> Precision:
        """What kind flat is scanned in, and other kinds are where a search is to be exact."""
        return Precision.BFLOAT16 if isinstance(self._scanner, HalfScanner) else Precision.FLOAT32

    def search(
        self,
        queries: Gaussians,
        top_k: int,
        *,
        candidates: int | None = None,
        nprobe: int | None = None,
        exact: bool = False,
        stop: Stop | None = None,
    ) -> list[Ranking]:
        """The top_k documents (all, where there are fewer) of each of b queries, by exact -KL(Q||D).

        queries: (b, k) of any floating dtype, on any device. `candidates` sets how many documents the first scan hands
        to rescoring. Where a search is exact, because the index is flat or `exact` is set, that changes the time taken,
        never the results; else it is what recall depends on, with `nprobe`, the number of lists that are scanned, where
        documents are in lists. Scores are exact always.

        Raises InvalidOptionError for top_k, candidates or nprobe below 1 and for nprobe where there are no lists,
        InvalidGaussiansError for another k or a query that float32 cannot hold, and SearchStoppedError where `stop`
        says so during a scan that can take seconds.
        """
        top_k = self._checked(queries, top_k)
        if candidates is not None and candidates < 1:
            raise InvalidOptionError(f"candidates is {candidates}; it must be at least 1")
        effort = self.effort_for(top_k, candidates, nprobe)
        if self._codes is not None and effort is not None and not exact:
            return self._search_codes(self._codes, queries, top_k, effort, stop)
        return self._search_exactly(queries, top_k, candidates, stop)

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
        taken = min(max(top_k, candidates or codes.candidates_for(top_k)), len(self))
        return Effort(taken, codes.nprobe_for(top_k) if nprobe is None or lists is None else min(nprobe, lists))

    def exhaustive_search(self, queries: Gaussians, top_k: int) -> list[Ranking]:
        """The same results by scoring every document in float64, without FAISS: the slow path, and the reference."""
        return self._exhaustive(queries, self._checked(queries, top_k))

    def document(self, document_id: str) -> Document:
        """The document with this id; raises DocumentNotFoundError."""
        return self._store.find(document_id)

    def document_at(self, number: int) -> Document:
        """The document with this number, from 0 to len(self) - 1 or out of a Ranking."""
        (document_id,) = self._store.ids(np.array([number]))
        return self._store.find(document_id)

    def payloads(self, documents: Numbers) -> list[dict[str, Any]]:
        """The payload of each of these documents (numbers (m,) from a Ranking), in their order."""
        return self._store.payloads(documents)

    def explain(self, query: Gaussians, documents: Numbers) -> list[Explanation]:
        """The parts of KL between one query (1, k) and each of these documents (m,), in their order."""
        (mean,), (variance,) = in_float64(query)
        means, variances = self._store.gaussians(documents)
        pairs = zip(means.astype(np.float64), variances.astype(np.float64), strict=True)
        return [explain(mean, variance, document_mean, document_variance) for document_mean, document_variance in pairs]

    def _checked(self, queries: Gaussians, top_k: int) -> int:
        queries.require_dimensions(self.manifest.k)
        queries.to(dtype=torch.float32)  # raises where the scan could not hold it; a wider query is rescored as it is
        if top_k < 1:
            raise InvalidOptionError(f"top_k is {top_k}; it must be at least 1")
        return min(top_k, len(self))

    def _search_codes(
        self, codes: ApproximateScanner, queries: Gaussians, top_k: int, effort: Effort, stop: Stop | None
    ) -> list[Ranking]:
        """Scans codes and scores the candidates exactly: what is not a candidate is not found.

        Exactly, too, for queries of which the scan makes so little that it finds fewer documents than are wanted.
        """
        documents = np.sort(codes.scan(queries, effort.candidates, effort.nprobe), axis=1)
        too_few = (documents >= 0).sum(axis=1) < top_k
        if not too_few.any():
            return self._rank(documents, self._scorer.scores(queries, documents), top_k)
        lost, rest = np.flatnonzero(too_few), np.flatnonzero(~too_few)
        exact = self._search_exactly(queries[torch.from_numpy(lost)], top_k, None, stop)
        scores = self._scorer.scores(queries[torch.from_numpy(rest)], documents[rest])
        rankings = dict(zip(lost.tolist(), exact, strict=True))
        rankings |= zip(rest.tolist(), self._rank(documents[rest], scores, top_k), strict=True)
        return [rankings[row] for row in range(len(queries))]

    def _search_exactly(
        self, queries: Gaussians, top_k: int, candidates: int | None, stop: Stop | None
    ) -> list[Ranking]:
        margin = self._scanner.margin if isinstance(self._scanner, HalfScanner) else MARGIN
        first = max(candidates or 0, top_k + margin)
        rankings: dict[int, Ranking] = {}
        pending = list(range(len(queries)))
        for count in (first, WIDENING * first):
            rest = queries if len(pending) == len(queries) else queries[torch.tensor(pending)]
            complete = self._scan_and_prove(rest, top_k, count, stop)
            rankings |= {pending[row]: ranking for row, ranking in complete.items()}
            pending = [query for query in pending if query not in rankings]
            if not pending:
                return [rankings[query] for query in range(len(queries))]
        rankings |= zip(pending, self._exhaustive(queries[torch.tensor(pending)], top_k, stop), strict=True)
        return [rankings[query] for query in range(len(queries))]

    def _scan_and_prove(self, queries: Gaussians, top_k: int, count: int, stop: Stop | None) -> dict[int, Ranking]:
        """Rankings, by row, of those of the queries whose results `count` candidates prove complete."""
        if isinstance(self._scanner, StreamedScanner):
            documents, ceilings = self._scanner.scan(queries, count, stop)
        else:
            documents, ceilings = self._scanner.scan(queries, count)
        if documents.shape[1] < top_k:
            return {}
        scores = self._scorer.scores(queries, documents)
        last_results = -np.partition(-scores, top_k - 1, axis=1)[:, top_k - 1]
        complete = np.flatnonzero(last_results > ceilings)
        return dict(zip(complete.tolist(), self._rank(documents[complete], scores[complete], top_k), strict=True))

    def _exhaustive(self, queries: Gaussians, top_k: int, stop: Stop | None = None) -> list[Ranking]:
        """Scores every document in float64, one query at a time, keeping what can still be among the top_k."""
        rankings = []
        for mean, variance in zip(*in_float64(queries), strict=True):
            scores, documents = np.empty(0), np.empty(0, np.int64)
            for numbers, means, variances in self._store.blocks(EXHAUSTIVE_ROWS):
                if stop is not None and stop():
                    raise SearchStoppedError("nobody waits for the results any more")
                scores = np.concatenate([scores, negative_kl(mean, variance, means, variances)])
                documents = np.concatenate([documents, numbers])
                keep = _may_be_in_top(scores, top_k)
                scores, documents = scores[keep], documents[keep]
            rankings += self._rank(documents[None], scores[None], top_k)
        return rankings

    def _rank(self, documents: Numbers, scores: Scores, top_k: int) -> list[Ranking]:
        """Sorts rows of documents and their scores, both (p, c), best first; equal scores by id."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, : top_k + 1]
        rows = np.arange(len(order))[:, None]
        best, numbers = scores[rows, order], documents[rows, order[:, :top_k]]
        tied = (best[:, 1:] == best[:, :-1]).any(axis=1)
        ids = self._store.ids(numbers.ravel())
        rankings = []
        for row, has_ties in enumerate(tied.tolist()):
            if has_ties:
                rankings.append(self._rank_by_id(documents[row], scores[row], top_k))
            else:
                start = row * numbers.shape[1]
                rankings.append(Ranking(ids[start : start + numbers.shape[1]], best[row, :top_k], numbers[row]))
        return rankings

    def _rank_by_id(self, documents: Numbers, scores: Scores, top_k: int) -> Ranking:
        """One row where equal scores leave the order, or the last place, to the ids."""
        keep = _may_be_in_top(scores, top_k)
        best = sorted(zip(-scores[keep], self._store.ids(documents[keep]), documents[keep], strict=True))[:top_k]
        return Ranking(
            ids=[document_id for _, document_id, _ in best],
            scores=np.array([-divergence for divergence, _, _ in best]),
            documents=np.array([number for _, _, number in best], dtype=np.int64),
        )


def _may_be_in_top(scores: Scores, top_k: int) -> Numbers:
    """Indices of the top_k scores and of everything that ties with the last of them: ids decide about those."""
    if len(scores) <= top_k:
        return np.arange(len(scores))
    return np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k])
