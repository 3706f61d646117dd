"""What the service sees of an index, wherever and however it is searched: `Searcher`, and the `Ranking` it gives."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from index.documents import Document, Numbers, Stop
from index.gaussians import Gaussians
from index.manifest import Manifest
from index.rescoring import Explanation
from index.selection import DocumentFilter

__all__ = ["Effort", "Evidence", "Precision", "Ranking", "RemoteSearcher", "Scores", "Searcher", "Stop", "Terms"]

Scores = npt.NDArray[np.float64]


class Evidence(NamedTuple):
    """What the results of one query rest on, in the step of the search that gave them.

    `scanned` is how many documents a scan compared with the query, None where that is not counted; `candidates` how
    many were scored exactly. `proof` is why no other document belongs among the results: `bound` where the scan's
    rounding-error bound says so, `exhaustive` where all that may be found have been scored, and None where nothing
    does, and recall is what the index was measured to have.
    """

    scanned: int | None
    candidates: int
    proof: Literal["bound", "exhaustive"] | None


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The results of one query, best first: ids, -KL in nats (float64), and the numbers to fetch the documents by.

    `covered` is how many documents were there to be found, without a filter, where not all were: of a RemoteSearcher,
    whose Terms allow that.
    """

    ids: list[str]
    scores: Scores
    documents: Numbers
    evidence: Evidence | None = None
    covered: int | None = None

    def top(self, count: int) -> "Ranking":
        """The first `count` results."""
        if len(self.ids) <= count:
            return self
        return replace(self, ids=self.ids[:count], scores=self.scores[:count], documents=self.documents[:count])

    def without(self, document_id: str | None) -> "Ranking":
        """All results but the document with this id."""
        if document_id not in self.ids:
            return self
        keep = [place for place, found in enumerate(self.ids) if found != document_id]
        ids = [self.ids[place] for place in keep]
        return replace(self, ids=ids, scores=self.scores[keep], documents=self.documents[keep])


class Precision(StrEnum):
    """What kind flat is scanned in: results are the same. Bfloat16 is proved by a bound of its own and takes half the
    memory; by itself it is taken where this machine is measured to be faster with it."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Effort(NamedTuple):
    """How much an approximate search looks at: documents scored exactly, and lists, where there are any."""

    candidates: int
    nprobe: int | None


class Searcher(Protocol):
    """What the service needs of an index, be it local or not."""

    @property
    def manifest(self) -> Manifest:
        """The generation that is searched."""

    @property
    def name(self) -> str:
        """What the index is called."""

    @property
    def device(self) -> torch.device:
        """Where it is searched."""

    @property
    def precision(self) -> Precision:
        """What an exact search scans in."""

    def search(
        self,
        queries: Gaussians,
        top_k: int,
        *,
        candidates: int | None = None,
        nprobe: int | None = None,
        exact: bool = False,
        filter: DocumentFilter | None = None,  # noqa: A002 (as a request calls it)
        stop: Stop | None = None,
    ) -> list[Ranking]:
        """The top_k documents of each query; SearchStoppedError once `stop` says so."""

    def matching(self, filter: DocumentFilter, *, stop: Stop | None = None) -> int:  # noqa: A002
        """How many documents a filter lets through."""

    def effort_for(self, top_k: int, candidates: int | None, nprobe: int | None) -> Effort | None:
        """What a search takes that is not exact, where a request asks for this or leaves it open; None where all are.

        Raises InvalidOptionError for an nprobe where documents are in no lists.
        """

    def document(self, document_id: str) -> Document:
        """A document by its id."""

    def payloads(self, documents: Numbers) -> list[dict[str, Any]]:
        """The payload of each document of a ranking."""

    def explain(self, query: Gaussians, documents: Numbers) -> list[Explanation]:
        """The parts of KL between one query and each document of its ranking."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What those who ask a RemoteSearcher agree to: an answer by `deadline`, a time.monotonic(), and where
    `allow_partial`, one without the documents of a shard that has not answered shortly before. `with_payload`: payload
    of what is found will be asked for."""

    deadline: float
    allow_partial: bool = False
    with_payload: bool = False


class RemoteSearcher(ABC):
    """A Searcher whose documents are other processes': what it does it waits for, so that no event loop may do it.

    A class that searchers are derived from, and no protocol: every request asks whether its searcher is one, and of a
    protocol that takes twenty microseconds.
    """

    @property
    @abstractmethod
    def shards(self) -> int:
        """Over how many its documents are spread."""

    @abstractmethod
    def within(self, terms: Terms) -> Searcher:
        """The same on these terms; by itself it waits as long as it takes."""
