"""A batch of searches: which of them may be made together, and what each one gets of what is found."""

import itertools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from index import Effort, Gaussians, Ranking, Searcher
from index.interface import RemoteSearcher, Terms
from index.selection import DocumentFilter
from service.jobs import Job, hand_over
from service.metrics import Metrics
from service.problems import OverloadedError, ServiceError, ShardUnavailableError

__all__ = ["LATE_IN_SEARCH", "Found", "SearchJob", "search_together"]

LATE_IN_SEARCH = "the deadline passed before the search was done"
SOON = 0.05
"""The share of the time that a request has by which it may be answered before it has passed, together with others."""

FETCHED_TOGETHER = 200
"""Results of a request up to which the search thread fetches their payload with that of others; more would keep the
next batch waiting."""


@dataclass(frozen=True, slots=True)
class Found:
    """The rankings of one request's queries, and the searcher whose documents they number.

    `payloads` holds the payload of those documents by their numbers; None where it was not asked for, or they are many.
    `matched` is how many documents its filter let through, if it has one; `covered` how many documents there were to be
    found.
    """

    searcher: Searcher
    rankings: list[Ranking]
    payloads: dict[int, dict[str, Any]] | None
    matched: int | None
    covered: int

    @property
    def is_partial(self) -> bool:
        """Whether some documents were not there to be found."""
        return self.covered < self.searcher.manifest.documents


@dataclass(slots=True, eq=False, kw_only=True)
class SearchJob(Job[Found]):
    """The queries of one request."""

    queries: Gaussians
    top_k: int
    candidates: int | None
    nprobe: int | None
    exact: bool
    filter: DocumentFilter | None
    with_payload: bool
    allow_partial: bool = False

    @property
    def payload_is_due(self) -> bool:
        """Whether the search thread fetches the payload of its results."""
        return self.with_payload and self.rows * self.top_k <= FETCHED_TOGETHER


def search_together(searcher: Searcher, batch: list[SearchJob], metrics: Metrics) -> None:
    """Searches for all of a batch and hands each job what it finds; raises what the searcher raises, where one of them
    is at fault."""
    for job in batch:
        # An index of another k may have been taken up since the request was checked.
        job.queries.require_dimensions(searcher.manifest.k)
    # Where results depend on what a search looks at, nobody's may depend on what others ask for; nor on whether others
    # are content with a part of them.
    alike: dict[tuple[bool, Effort | None, str, bool], list[SearchJob]] = {}
    for job in batch:
        effort = searcher.effort_for(job.top_k, job.candidates, job.nprobe)
        exact = job.exact and effort is not None
        key = job.filter.key if job.filter is not None else ""
        alike.setdefault((exact, None if exact else effort, key, job.allow_partial), []).append(job)
    # Those last that read every document: nobody else waits for them.
    for (exact, effort, *_), jobs in sorted(alike.items(), key=lambda group: group[0][0]):
        if isinstance(searcher, RemoteSearcher):
            _search_on_terms(searcher, jobs, exact, effort, metrics)
        else:
            found = _search_alike(searcher, jobs, exact, effort, metrics)
            hand_over((job.future, its) for job, its in zip(jobs, found, strict=True))


def _search_on_terms(
    searcher: RemoteSearcher, jobs: list[SearchJob], exact: bool, effort: Effort | None, metrics: Metrics
) -> None:
    """As _search_alike, with what is to be had in time. Those who have more of it than others are neither told that it
    has passed nor given a part of the results: they are searched for again."""
    waiting = jobs
    while waiting:
        now, earliest = time.monotonic(), min(job.deadline for job in waiting)
        due = [job for job in waiting if job.deadline - earliest <= SOON * (job.deadline - now)]
        # What is left of the time, where a shard has not answered, is too little to ask for anything more.
        is_partial = waiting[0].allow_partial
        with_payload = any(job.with_payload if is_partial else job.payload_is_due for job in waiting)
        terms = Terms(earliest, is_partial, with_payload)
        bound = searcher.within(terms)
        outcomes: list[Found | ServiceError]
        try:
            outcomes = list(_search_alike(bound, waiting, exact, effort, metrics))
        except OverloadedError as error:
            # Nobody's request is at fault: searches for fewer of them would be more calls.
            outcomes, due = [error] * len(waiting), waiting
        except ShardUnavailableError as error:
            outcomes = [error] * len(waiting)
        else:
            if all(isinstance(found, Found) and not found.is_partial for found in outcomes):
                due = waiting
        answered = [(job, its) for job, its in zip(waiting, outcomes, strict=True) if job in due]
        metrics.partial.inc(sum(isinstance(its, Found) and its.is_partial for _, its in answered))
        hand_over((job.future, its) for job, its in answered)
        waiting = [job for job in waiting if job not in due and job.drop_if_given_up(LATE_IN_SEARCH) is None]


def _search_alike(
    searcher: Searcher, jobs: list[SearchJob], exact: bool, effort: Effort | None, metrics: Metrics
) -> list[Found]:
    """What each job finds."""
    if effort is None:
        candidates, nprobe = max((job.candidates for job in jobs if job.candidates), default=None), None
    else:
        candidates, nprobe = effort
    queries = Gaussians.concatenate([job.queries for job in jobs])
    started = time.perf_counter()
    rankings = searcher.search(
        queries,
        max(job.top_k for job in jobs),
        candidates=candidates,
        nprobe=nprobe,
        exact=exact,
        filter=jobs[0].filter,
        stop=lambda: all(job.abandoned for job in jobs),
    )
    metrics.batch(len(queries), searcher.manifest.documents, time.perf_counter() - started)
    return _shared_out(searcher, jobs, rankings)


def _shared_out(searcher: Searcher, batch: list[SearchJob], rankings: list[Ranking]) -> list[Found]:
    """The rankings of a batch by job, and the payloads of all jobs fetched together: for one row Arrow takes as long
    as for fifty."""
    remaining = iter(rankings)
    own = [[ranking.top(job.top_k) for ranking in itertools.islice(remaining, job.rows)] for job in batch]
    shown = [ranking.documents for job, its in zip(batch, own, strict=True) if job.payload_is_due for ranking in its]
    payloads: dict[int, dict[str, Any]] = {}
    if shown:
        documents = np.unique(np.concatenate(shown))
        payloads = dict(zip(documents.tolist(), searcher.payloads(documents), strict=True))
    # They have one filter, and it has just been searched with.
    matched = searcher.matching(batch[0].filter) if batch[0].filter is not None else None
    covered = rankings[0].covered
    if covered is None:
        covered = searcher.manifest.documents
    return [
        Found(searcher, its, payloads if job.payload_is_due else None, matched, covered)
        for job, its in zip(batch, own, strict=True)
    ]
