"""A Searcher over the shards of a cluster: every shard is asked, and what they find is merged by exact score, then id.

It is bound to one generation, which it names in all that it asks, so that no answer mixes two. Document numbers are
those of the shards, one shard's behind the other's.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from index import Document, Effort, Explanation, Gaussians, Manifest, Precision, Ranking
from index.documents import Numbers, Stop
from index.effort import effort_for
from index.errors import CorruptIndexError, DocumentNotFoundError
from index.interface import RemoteSearcher, Terms
from index.selection import DocumentFilter, require_fields
from service.cluster.merging import merged
from service.cluster.messages import Answer, Asked, Opened
from service.cluster.scatter import Question, Scatter
from service.cluster.sharding import Shard
from service.problems import ShardUnavailableError

__all__ = ["ClusterSearcher"]

UNBOUND = 600.0
"""Seconds within which shards have to answer where nobody says how long they may take."""
FEW_SHARDS = 8
"""Shards up to which each sends the payload of all that it finds; of more, most would be sent for nothing, and that of
the best is fetched."""
RESERVE, LONGEST_RESERVE, SHORTEST_RESERVE = 0.05, 0.25, 0.02
"""The share of the time left, and at most and least so many seconds, that are kept to say that it has passed."""
PARTIAL = 2.0
"""How much more of it is kept to put together what has been found."""


class ClusterSearcher(RemoteSearcher):
    """A Searcher of the generation of a token. Safe to call from several threads."""

    def __init__(self, name: str, token: str, manifest: Manifest, shards: Sequence[Shard], scatter: Scatter) -> None:
        """Asks the shards that have documents what they have of it; raises what they raise on opening."""
        self.name, self.token, self.manifest = name, token, manifest
        self._scatter = scatter
        self._shards = [shard for shard in shards if shard.places]
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)])
        self._terms: Terms | None = None
        self._fetched: dict[int, dict[str, Any]] = {}
        self._matched: dict[str, int] = {}
        opened: list[Opened] = [its for _, its in self._all("describe")]
        self._fields = frozenset[str]().union(*(each.fields for each in opened))
        self.device = torch.device(opened[0].device)
        self.precision = Precision(opened[0].precision)
        self._first = next((each.first for each in opened if each.first is not None), None)
        if [each.documents for each in opened] != [shard.documents for shard in self._shards]:
            raise CorruptIndexError(f"the shards of {name} have other documents than its manifest says")

    @property
    def shards(self) -> int:
        """Over how many its documents are spread."""
        return len(self._shards)

    def within(self, terms: Terms) -> "ClusterSearcher":
        """The same on these terms: with ShardUnavailableError where a shard has not answered shortly before they say,
        or without its documents. It keeps what comes with results, for whoever asks for it: payload, and how many
        documents a filter let through."""
        bound = copy.copy(self)
        bound._terms, bound._fetched, bound._matched = terms, dict(self._fetched), dict(self._matched)
        return bound

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
        """As LocalSearcher.search. Of kind flat and where `exact`, results are the same to the last bit; else each
        shard looks at as many candidates as all would, so that what is found is no worse."""
        if filter is not None:
            require_fields(filter, self._fields)
        with_payload = self._terms is not None and self._terms.with_payload and self.shards <= FEW_SHARDS
        until = self._until()
        asked = Asked(
            queries.means.double().cpu().numpy(),
            queries.variances.double().cpu().numpy(),
            top_k,
            until - time.monotonic(),
            candidates,
            self._nprobe_of_each(top_k, nprobe, filter),
            exact,
            filter,
            with_payload,
        )
        answers: list[tuple[int, Answer]] = self._all("search", asked, stop=stop)
        covered = sum(self._shards[place].documents for place, _ in answers)
        if self._terms is not None:
            self._keep(answers, filter)
        return merged(
            [(int(self._starts[place]), answer.rankings) for place, answer in answers],
            len(queries),
            top_k,
            covered if len(answers) < self.shards else None,
        )

    def matching(self, filter: DocumentFilter, *, stop: Stop | None = None) -> int:  # noqa: A002
        """How many documents a filter lets through, of the shards that answer; as LocalSearcher.matching."""
        require_fields(filter, self._fields)
        if filter.key in self._matched:
            return self._matched[filter.key]
        seconds = self._until() - time.monotonic()
        return sum(count for _, count in self._all("matching", filter, seconds, stop=stop))

    def effort_for(self, top_k: int, candidates: int | None, nprobe: int | None) -> Effort | None:
        """As index.interface.Searcher."""
        return effort_for(self.manifest, top_k, candidates, nprobe)

    def document(self, document_id: str) -> Document:
        """A document by its id; raises DocumentNotFoundError, and ShardUnavailableError where it may be in a shard that
        has not answered."""
        questions = {shard.number: ("document", document_id) for shard in self._shards}
        answers = self._scatter.gather(self.token, questions, self._until(), enough=lambda its: its is not None)
        found: Document | None = next((its for its in answers.values() if its is not None), None)
        if found is not None:
            return found
        if len(answers) < len(questions):
            raise ShardUnavailableError.of(sorted(set(questions) - set(answers)), len(self._scatter.shards))
        raise DocumentNotFoundError(f"no document has the id {document_id!r}")

    def first_document(self) -> Document | None:
        """Some document; None where there is none."""
        return self._first

    def payloads(self, documents: Numbers) -> list[dict[str, Any]]:
        """The payload of each of these documents (m,) of a ranking, in their order."""
        missing = np.array([each for each in documents.tolist() if each not in self._fetched], dtype=np.int64)
        fetched = self._fetched
        if len(missing):
            its = self._of_their_shards(missing, lambda rows: ("payloads", rows))
            fetched = self._fetched | dict(zip(missing.tolist(), its, strict=True))
        return [fetched[each] for each in documents.tolist()]

    def explain(self, query: Gaussians, documents: Numbers) -> list[Explanation]:
        """The parts of KL between one query (1, k) and each of these documents (m,), in their order."""
        its = query.means, query.variances
        return self._of_their_shards(documents, lambda rows: ("explain", its, rows))

    def _of_their_shards(self, documents: Numbers, question: Callable[[Numbers], Question]) -> list[Any]:
        """What the shards that have these documents (m,) answer about each, in their order."""
        owners = np.searchsorted(self._starts, documents, side="right") - 1
        places = {int(owner): np.flatnonzero(owners == owner) for owner in np.unique(owners)}
        questions = {owner: question(documents[its] - self._starts[owner]) for owner, its in places.items()}
        answers: list[Any] = [None] * len(documents)
        for owner, its in self._gathered(questions, complete=True):
            for place, answer in zip(places[owner].tolist(), its, strict=True):
                answers[place] = answer
        return answers

    def _all(self, method: str, *arguments: Any, stop: Stop | None = None) -> list[tuple[int, Any]]:
        """What every shard answers, or every one that does in time where that is enough; by places in `_shards`."""
        return self._gathered(dict.fromkeys(range(self.shards), (method, *arguments)), stop)

    def _gathered(
        self, questions: Mapping[int, Question], stop: Stop | None = None, *, complete: bool = False
    ) -> list[tuple[int, Any]]:
        numbers = {self._shards[place].number: place for place in questions}
        asked = {number: questions[place] for number, place in numbers.items()}
        partial = self._terms is not None and self._terms.allow_partial and not complete
        answers = self._scatter.gather(self.token, asked, self._until(), stop, partial=partial)
        late = sorted(set(asked) - set(answers))
        if late and not (partial and answers):
            raise ShardUnavailableError.of(late, len(self._scatter.shards))
        return sorted((numbers[number], answer) for number, answer in answers.items())

    def _until(self) -> float:
        """When to wait no longer, a time.monotonic()."""
        now = time.monotonic()
        if self._terms is None:
            return now + UNBOUND
        reserve = min(LONGEST_RESERVE, max(SHORTEST_RESERVE, RESERVE * (self._terms.deadline - now)))
        return self._terms.deadline - (PARTIAL if self._terms.allow_partial else 1.0) * reserve

    def _nprobe_of_each(self, top_k: int, nprobe: int | None, filter: DocumentFilter | None) -> int | None:  # noqa: A002
        """The lists that each shard looks into: as many as all would, or as many as it finds that a filter takes."""
        codes = self.manifest.codes
        is_default = codes is not None and nprobe == codes.nprobe_for(top_k, self.manifest.documents)
        return None if filter is not None and is_default else nprobe

    def _keep(self, answers: Sequence[tuple[int, Answer]], filter: DocumentFilter | None) -> None:  # noqa: A002
        if filter is not None:
            self._matched[filter.key] = sum(answer.matched or 0 for _, answer in answers)
        for place, answer in answers:
            if answer.payloads is not None:
                numbers = (answer.shown + self._starts[place]).tolist()
                self._fetched |= zip(numbers, answer.payloads, strict=True)
