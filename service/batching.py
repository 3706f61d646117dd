"""Puts queries that arrive together into one search, on one thread, behind a bounded queue.

A free search thread takes what is there, up to `max_rows` queries, once the event loop is quiet: once it has come round
a few times without another query. So a lone query waits for microseconds, and those of clients that have just been
answered, and ask again, come into one batch; taken at once, they fall into two batches that follow each other for
ever, and a scan of 8 queries takes nearly as long as one of 16. A full batch does not wait; and for a loop that is
never quiet, nothing waits longer than `GATHERING_SHARE` of the last search. An error in a batch reaches only the
request that causes it.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from index import GaussearchError, Gaussians, Searcher
from index.selection import DocumentFilter
from service.jobs import JobThread
from service.metrics import Metrics
from service.searching import LATE_IN_SEARCH, Found, SearchJob, search_together

__all__ = ["Batcher"]

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


class Batcher(JobThread[SearchJob]):
    """A search thread and its queue. `searcher` is asked for the live searcher once per batch."""

    DOING = "search"
    WAITING = "queries are waiting"
    LATE = "the deadline passed before the search began"

    def __init__(self, searcher: Callable[[], Searcher], metrics: Metrics, *, max_rows: int, queue_rows: int) -> None:
        super().__init__("gaussearch-search", queue_rows, metrics)
        self._searcher = searcher
        self._max_rows = max_rows
        self._look_again_at = 0.0
        self._submitted = 0
        self._gathering_on: asyncio.AbstractEventLoop | None = None
        self._released = False
        self._searching = False
        self._search_seconds = 0.0

    def close(self, patience: float | None = None) -> None:
        """As JobThread. A search that has hung must not keep the process; its thread ends with that."""
        super().close(patience)
        if self.alive:
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
        allow_partial: bool = False,
    ) -> "asyncio.Future[Found]":
        """Queues queries (b, k) and returns the future of their results; cancel it to drop them.

        `deadline` is a time.monotonic(). Raises OverloadedError where the queue has no room for b more queries, unless
        it is empty, and NotReadyError once the batcher is closing or its thread has died. Call from an event loop.
        """
        job = SearchJob(
            deadline=deadline,
            rows=len(queries),
            queries=queries,
            top_k=top_k,
            candidates=candidates,
            nprobe=nprobe,
            exact=exact,
            filter=filter,
            with_payload=with_payload,
            allow_partial=allow_partial,
        )
        with self._changed:
            self._queue(job)
            self._submitted += 1
            begun = self._searching or self._released
            if not begun and (self._gathering_on is None or self._gathering_on.is_closed()):
                self._gathering_on = loop = asyncio.get_running_loop()
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

    def _drop_abandoned(self) -> None:
        started = time.monotonic()
        if started < self._look_again_at:
            return
        super()._drop_abandoned()
        now = time.monotonic()
        self._look_again_at = now + (now - started) / LOOKING_SHARE

    def _set_waiting(self, rows: int) -> None:
        super()._set_waiting(rows)
        self._metrics.queue_rows.set(rows)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._wait_for_a_batch()
                self._batch = self._take()
            if self._batch:
                self._search(self._batch)
                # Their results hold the searcher: while nothing comes, a replaced index must not wait with them.
                self._batch.clear()
            elif self._closing:
                return

    def _wait_for_a_batch(self) -> None:
        """Returns, while `_changed` is held, once a batch has gathered, or it is to close."""
        self._searching = self._released = False
        if self._jobs:
            self._gather_on_its_loop()
        while not self._released and not self._closing:
            self._changed.wait()
        self._searching = True

    def _gather_on_its_loop(self) -> None:
        """Has the loop of the first job look when it is quiet, behind the results that it has just been handed."""
        loop = self._jobs[0].future.get_loop()
        self._gathering_on = loop
        try:
            loop.call_soon_threadsafe(self._gather, loop, self._submitted, 0, time.monotonic())
        except RuntimeError:
            # Closed: nobody waits for this job, and those behind it must not wait for its loop.
            self._released = True

    def _take(self) -> list[SearchJob]:
        """The next jobs that fit into one batch; the first one always does, however large."""
        batch: list[SearchJob] = []
        rows = 0
        while self._jobs and (not batch or rows + self._jobs[0].rows <= self._max_rows):
            job = self._jobs.popleft()
            self._set_waiting(self._waiting - job.rows)
            if not self._drop_if_given_up(job):
                batch.append(job)
                rows += job.rows
        return batch

    def _search(self, batch: list[SearchJob]) -> None:
        started = time.perf_counter()
        try:
            search_together(self._searcher(), batch, self._metrics)
        except GaussearchError as error:
            if len(batch) == 1:
                batch[0].settle(error)
                return
            # One of these requests is at fault, and is to fail alone. By halves it takes few searches to find it: one
            # search for each request would let whoever sends bad ones have everybody searched for one by one.
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                if wanted := [job for job in half if job.drop_if_given_up(LATE_IN_SEARCH) is None]:
                    self._search(wanted)
        except Exception as error:
            # Whatever one batch raises, the thread must live on for the others.
            logger.exception("a batch of %d requests failed", len(batch))
            for job in batch:
                job.settle(GaussearchError(f"the search failed: {error!r}"))
        else:
            self._search_seconds = time.perf_counter() - started
            self._took(self._search_seconds, sum(job.rows for job in batch))
