"""Search: query Gaussians in, documents ranked by exact -KL(Q||D) out.

`LocalSearcher` implements index.interface.Searcher over the segments of one index directory: it checks what is asked,
finds out which documents may be found, and leaves the rest to index.exact_search, whose results equal float64 brute
force, or, where the index is of another kind than flat and the search is not to be exact, to index.approximate_search.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from index.approximate_search import ApproximateSearch
from index.candidates import CandidateScorer, in_float64
from index.cores import available_cores
from index.documents import Document, DocumentStore, Numbers
from index.effort import effort_for
from index.errors import InvalidOptionError
from index.exact_search import ExactSearch
from index.filters import Filter
from index.gaussians import Gaussians
from index.interface import Effort, Precision, Ranking, Stop
from index.manifest import Manifest
from index.opening import How, OpenedIndex
from index.ranking import NOTHING
from index.rescoring import Explanation, explain
from index.selection import DocumentFilter, Mask
from index.storage import IndexDirectory
from index.streaming import StreamedScanner
from index.vectors import resolve_device

__all__ = ["LocalSearcher"]


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
        segments: Sequence[str] | None = None,
    ) -> None:
        """`manifest` is another generation than the live one. `known` is a searcher of another generation: what both
        have is not read twice, so that a write shows at once. `segments` are the ids of those that are searched, as if
        there were no others (index.part): all if not given."""
        directory = IndexDirectory.of(directory)
        self.name = directory.name
        how = How(directory.path.resolve(), resolve_device(device), threads, precision)
        before = known._opened if known is not None else None
        self._opened: OpenedIndex = OpenedIndex.open(
            directory, how, manifest, verify=verify, known=before, segments=segments
        )
        self.manifest = self._opened.manifest
        self._store, self._selector = self._opened.store, self._opened.selector
        cores = threads or available_cores()
        scorer = CandidateScorer(self._store, cores)
        self._exact = ExactSearch(self._opened.exact, self._store, scorer, cores)
        codes = self._opened.codes
        self._approximate: ApproximateSearch | None = None
        if codes is not None:
            self._approximate = ApproximateSearch(codes, self._store, len(self), scorer, self._exact)

    def __len__(self) -> int:
        return self.manifest.documents

    @property
    def device(self) -> torch.device:
        """Where vectors are scanned; codes are scanned on the CPU, whatever was asked for."""
        scanner = self._opened.exact
        return torch.device("cpu") if isinstance(scanner, StreamedScanner) else scanner.device

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
            return [NOTHING] * len(queries)
        if self._approximate is not None and effort is not None and not exact:
            return self._approximate.search(queries, top_k, effort, selection, stop)
        return self._exact.search(queries, top_k, candidates, selection, stop)

    def matching(self, filter: DocumentFilter | Mapping[str, object], *, stop: Stop | None = None) -> int:  # noqa: A002
        """How many documents a filter lets through; raises as `search`."""
        selection = self._selector.of(_parsed(filter), stop)
        return len(self) if selection is None else selection.count

    def effort_for(self, top_k: int, candidates: int | None, nprobe: int | None) -> Effort | None:
        """What a search takes that is not exact, where a request asks for this or leaves it open; None where all are.

        Raises InvalidOptionError for an nprobe below 1, or where documents are in no lists.
        """
        return effort_for(self.manifest, top_k, candidates, nprobe)

    def exhaustive_search(self, queries: Gaussians, top_k: int) -> list[Ranking]:
        """The same results by scoring every document in float64, without FAISS: the slow path, and the reference."""
        self._check(queries, top_k)
        if not len(self):
            return [NOTHING] * len(queries)
        return self._exact.exhaustive(queries, min(top_k, len(self)), self._selector.live)

    def proved_share(self, queries: Gaussians, top_k: int) -> float:
        """The share of these queries whose results the first scan proves complete, of kind flat."""
        return self._exact.proved_share(queries, top_k, self._selector.live)

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

    @property
    def fields(self) -> frozenset[str]:
        """The payload columns that its documents have."""
        return self._selector.fields

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
