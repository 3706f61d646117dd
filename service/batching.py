"""Puts queries that arrive together into one search, on one thread, behind a bounded queue.

A free search thread takes what is there, up to `max_rows` queries, once the event loop is quiet: once it has come round
a few times without another query. So a lone query waits for microseconds, and those of clients that have just been
answered, and ask again, come into one batch; taken at once, they fall into two batches that follow each other for
ever, and a scan of 8 queries takes nearly as long as one of 16. A full batch does not wait; and for a loop that is
never quiet, nothing waits longer than `GATHERING_SHARE` of the last search. The queue counts queries, not requests.
What has been given up (client gone, deadline passed) is dropped before it is searched, and an error in a batch reaches
only the request that causes it.
"""

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from index import Effort, GaussearchError, Gaussians, Ranking, Searcher
from index.selection import DocumentFilter
from service.metrics import Metrics
from service.problems import DeadlineExceededError, NotReadyError, OverloadedError

__all__ = ["Batcher", "Found"]

logger = logging.getLogger("gaussearch.batching")

QUIET_ROUNDS = 3
"""Rounds of the event loop without a new query after which it is quiet: from bytes on a socket to a query in the queue
takes it two."""
GATHERING_SHARE = 0.5
"""How long to wait for a quiet loop at most, as a share of the time that the last search took."""
LONGEST_GATHERING = 0.05
"""And in seconds: time enough for a few hundred queries to arrive."""

LOOKING_SHARE = 0.1
"""How much of its time a full queue may spend on looking for those who have given up: to turn a client away must stay
cheaper than to search for it, however long the queue."""

FETCHED_TOGETHER = 200
"""Results of a request up to which the search thread fetches their payload with that of others; more would keep the
next batch waiting."""


@dataclass(frozen=True, slots=True)
class Found:
    """The rankings of one request's queries, and the searcher whose documents they number.

    `payloads` holds the payload of those documents by their numbers; None where it was not asked for, or they are many.
    `matched` is how many documents its filter let through, if it has one.
    """

    searcher: Searcher
    rankings: list[Ranking]
    payloads: dict[int, dict[str, Any]] | None
    matched: int | None


@dataclass(slots=True, eq=False)
class _Job:
    queries: Gaussians
    top_k: int
    candidates: int | None
    nprobe: int | None
    exact: bool
    filter: DocumentFilter | None
    with_payload: bool
    deadline: float
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Found]"
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = len(self.queries)

    @property
    def payload_is_due(self) -> bool:
        """Whether the search thread fetches the payload of its results."""
        return self.with_payload and self.rows * self.top_k <= FETCHED_TOGETHER

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for the results: the client has gone or the deadline has passed."""
        return self.future.done() or time.monotonic() >= self.deadline


class Batcher:
    """A search thread and its queue. `searcher` is asked for the live searcher once per batch."""

    def __init__(self, searcher: Callable[[], Searcher], metrics: Metrics, *, max_rows: int, queue_rows: int) -> None:
        self._searcher = searcher
        self._metrics = metrics
        self._max_rows = max_rows
        self._queue_rows = queue_rows
        self._jobs: deque[_Job] = deque()
        self._batch: list[_Job] = []
        self._waiting = 0
        self._look_again_at = 0.0
        self._closing = False
        self._changed = threading.Condition()
        self._submitted = 0
        self._gathering_on: asyncio.AbstractEventLoop | None = None
        self._released = False
        self._searching = False
        self._search_seconds = 0.0
        self._seconds_per_row = 0.0
        self._thread = threading.Thread(target=self._run, name="gaussearch-search", daemon=True)

    def start(self) -> None:
        """Starts the search thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the search thread is there to do its work."""
        return self._thread.is_alive()

    @property
    def accepting(self) -> bool:
        """Whether new work is taken."""
        return self.alive and not self._closing

    def close(self, patience: float | None = None) -> None:
        """Takes no more work, finishes what is queued and ends the thread; blocks until then, or so many seconds.

        A search that has hung must not keep the process; its thread ends with that.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(patience)
        if self._thread.is_alive():
            logger.error("a search has not come to its end within %g seconds; it is left behind", patience)

    def submit(
        self,
        queries: Gaussians,
        top_k: int,
        candidates: int | None,
        deadline: float,
        *,
        nprobe: int | None = None,
        exact: bool = False,
        filter: DocumentFilter | None = None,  # noqa: A002 (as a request calls it)
        with_payload: bool = False,
    ) -> "asyncio.Future[Found]":
        """Queues queries (b, k) and returns the future of their results; cancel it to drop them.

        `deadline` is a time.monotonic(). Raises OverloadedError where the queue has no room for b more queries, unless
        it is empty, and NotReadyError once the batcher is closing or its thread has died. Call from an event loop.
        """
        loop = asyncio.get_running_loop()
        job = _Job(
            queries, top_k, candidates, nprobe, exact, filter, with_payload, deadline, loop, loop.create_future()
        )
        with self._changed:
            if not self.accepting:
                raise NotReadyError("the service is shutting down or its search thread has died")
            if self._is_full(job):
                self._drop_abandoned()
            if self._is_full(job):
                self._metrics.rejected.labels("overloaded").inc()
                raise OverloadedError(
                    f"{self._waiting} queries are waiting and {self._queue_rows} may: try again later",
                    headers={"Retry-After": str(self._retry_after())},
                )
            self._jobs.append(job)
            self._set_waiting(self._waiting + job.rows)
            self._submitted += 1
            begun = self._searching or self._released
            if not begun and (self._gathering_on is None or self._gathering_on.is_closed()):
                self._gathering_on = loop
                loop.call_soon(self._gather, loop, self._submitted, 0, time.monotonic())
        return job.future

    def _gather(self, loop: asyncio.AbstractEventLoop, seen: int, quiet_rounds: int, since: float) -> None:
        """Comes round with the event loop until it is quiet, or too much time has passed; then starts the search."""
        quiet_rounds = quiet_rounds + 1 if self._submitted == seen else 0
        patience = min(GATHERING_SHARE * self._search_seconds, LONGEST_GATHERING)
        is_waiting = quiet_rounds < QUIET_ROUNDS and time.monotonic() - since < patience
        if is_waiting and self._waiting < self._max_rows:
            loop.call_soon(self._gather, loop, self._submitted, quiet_rounds, since)
            return
        with self._changed:
            self._gathering_on = None
            self._released = True
            self._changed.notify()

    def _is_full(self, job: _Job) -> bool:
        return bool(self._jobs) and self._waiting + job.rows > self._queue_rows

    def _drop_abandoned(self) -> None:
        """Frees the places of those who have given up before the search thread comes to them."""
        started = time.monotonic()
        if started < self._look_again_at:
            return
        kept = [job for job in self._jobs if not self._is_dropped(job)]
        self._jobs.clear()
        self._jobs.extend(kept)
        self._set_waiting(sum(job.rows for job in kept))
        now = time.monotonic()
        self._look_again_at = now + (now - started) / LOOKING_SHARE

    def _retry_after(self) -> int:
        """Whole seconds until half of the queue should be done."""
        return max(1, round(self._waiting * self._seconds_per_row / 2))

    def _set_waiting(self, rows: int) -> None:
        self._waiting = rows
        self._metrics.queue_rows.set(rows)

    def _run(self) -> None:
        try:
            self._work()
        finally:
            # Nothing is left where it was told to end. Where it dies, nobody would come to what is.
            with self._changed:
                self._closing = True
                left = [*self._batch, *self._jobs]
                self._jobs.clear()
                self._set_waiting(0)
            for job in left:
                _fail(job, NotReadyError("the search thread has died"))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._searching = self._released = False
                if self._jobs:
                    self._gather_on_its_loop()
                while not self._released and not self._closing:
                    self._changed.wait()
                self._searching = True
                self._batch = self._take()
            if self._batch:
                self._search(self._batch)
                # Their results hold the searcher: while nothing comes, a replaced index must not wait with them.
                self._batch.clear()
            elif self._closing:
                return

    def _gather_on_its_loop(self) -> None:
        """Has the loop of the first job look when it is quiet, behind the results that it has just been handed."""
        loop = self._jobs[0].loop
        self._gathering_on = loop
        try:
            loop.call_soon_threadsafe(self._gather, loop, self._submitted, 0, time.monotonic())
        except RuntimeError:
            # Closed: nobody waits for this job, and those behind it must not wait for its loop.
            self._released = True

    def _take(self) -> list[_Job]:
        """The next jobs that fit into one batch; the first one always does, however large."""
        batch: list[_Job] = []
        rows = 0
        while self._jobs and (not batch or rows + self._jobs[0].rows <= self._max_rows):
            job = self._jobs.popleft()
            self._set_waiting(self._waiting - job.rows)
            if not self._is_dropped(job):
                batch.append(job)
                rows += job.rows
        return batch

    def _is_dropped(self, job: _Job) -> bool:
        """Whether nobody waits for a queued job any more; if so, it is counted and answered."""
        # Whoever waits gives up at the deadline too: a late job may also be cancelled, and the deadline is why.
        expired = job.future.done() and not job.future.cancelled()
        if expired or time.monotonic() >= job.deadline:
            self._metrics.rejected.labels("deadline").inc()
            _fail(job, DeadlineExceededError("the deadline passed before the search began"))
        elif job.future.cancelled():
            self._metrics.rejected.labels("cancelled").inc()
        else:
            return False
        return True

    def _search(self, batch: list[_Job]) -> None:
        started = time.perf_counter()
        try:
            self._search_together(batch)
        except GaussearchError as error:
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            # One of these requests is at fault, and is to fail alone. By halves it takes few searches to find it: one
            # search for each request would let whoever sends bad ones have everybody searched for one by one.
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                if wanted := [job for job in half if not self._is_given_up(job)]:
                    self._search(wanted)
        except Exception as error:
            # Whatever one batch raises, the thread must live on for the others.
            logger.exception("a batch of %d requests failed", len(batch))
            for job in batch:
                _fail(job, GaussearchError(f"the search failed: {error!r}"))
        else:
            self._search_seconds = time.perf_counter() - started
            seconds = self._search_seconds / sum(job.rows for job in batch)
            self._seconds_per_row += 0.1 * (seconds - self._seconds_per_row)

    def _is_given_up(self, job: _Job) -> bool:
        """Whether nobody waits for a job of a batch any more; if so, it is answered."""
        given_up = job.abandoned
        if given_up:
            _fail(job, DeadlineExceededError("the deadline passed before the search was done"))
        return given_up

    def _search_together(self, batch: list[_Job]) -> None:
        searcher = self._searcher()
        for job in batch:
            # An index of another k may have been taken up since the request was checked.
            job.queries.require_dimensions(searcher.manifest.k)
        # Where results depend on what a search looks at, nobody's may depend on what others ask for.
        alike: dict[tuple[bool, Effort | None, str], list[_Job]] = {}
        for job in batch:
            effort = searcher.effort_for(job.top_k, job.candidates, job.nprobe)
            exact = job.exact and effort is not None
            key = job.filter.key if job.filter is not None else ""
            alike.setdefault((exact, None if exact else effort, key), []).append(job)
        # Those last that read every document: nobody else waits for them.
        for (exact, effort, _), jobs in sorted(alike.items(), key=lambda group: group[0][0]):
            self._search_alike(searcher, jobs, exact, effort)

    def _search_alike(self, searcher: Searcher, jobs: list[_Job], exact: bool, effort: Effort | None) -> None:
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
        self._metrics.batch(len(queries), searcher.manifest.documents, time.perf_counter() - started)
        found = _shared_out(searcher, jobs, rankings)
        done: dict[asyncio.AbstractEventLoop, list[tuple[_Job, Found]]] = {}
        for job, its in zip(jobs, found, strict=True):
            done.setdefault(job.loop, []).append((job, its))
        for loop, results in done.items():
            # One wake-up of the event loop for all of them.
            _call(loop, _resolve, results)


def _shared_out(searcher: Searcher, batch: list[_Job], rankings: list[Ranking]) -> list[Found]:
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
    return [
        Found(searcher, its, payloads if job.payload_is_due else None, matched)
        for job, its in zip(batch, own, strict=True)
    ]


def _resolve(results: list[tuple[_Job, Found]]) -> None:
    for job, found in results:
        if not job.future.done():
            job.future.set_result(found)


def _fail(job: _Job, error: GaussearchError) -> None:
    def set_exception() -> None:
        if not job.future.done():
            job.future.set_exception(error)

    _call(job.loop, set_exception)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    # A loop that has been closed has nobody waiting on it; its work must not end the search thread.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
