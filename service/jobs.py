"""What requests have a thread do: jobs, the bounded queue in which they wait for it, and how their outcomes come back.

Searches, texts and writes each have a thread and a queue of their own. A queue counts what jobs ask for, not jobs. What
has been given up (client gone, deadline passed) is dropped before it is begun, and nobody is left waiting for a thread
that has died.
"""

import asyncio
import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

from service.metrics import Metrics
from service.problems import DeadlineExceededError, NotReadyError, OverloadedError

__all__ = ["Job", "JobThread", "hand_over"]

Outcome = TypeVar("Outcome")


@dataclass(slots=True, eq=False, kw_only=True)
class Job(Generic[Outcome]):
    """What one request has a thread do, by a `deadline`, a time.monotonic(). Made in the event loop of the request."""

    deadline: float
    rows: int
    """How much of the queue it takes: queries, texts or documents that are not begun."""
    future: "asyncio.Future[Outcome]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it: the client has gone or the deadline has passed."""
        return self.future.done() or time.monotonic() >= self.deadline

    def drop_if_given_up(self, late: str) -> Literal["deadline", "cancelled"] | None:
        """Answers it where nobody waits for it any more, with `late` where it is too late for it; why that is so, if it
        is."""
        # Whoever waits gives up at the deadline too: a late job may also be cancelled, and the deadline is why.
        if time.monotonic() >= self.deadline or (self.future.done() and not self.future.cancelled()):
            self.settle(DeadlineExceededError(late))
            return "deadline"
        return "cancelled" if self.future.cancelled() else None

    def settle(self, outcome: Outcome | Exception) -> None:
        """Hands its request the outcome, unless that no longer waits."""
        hand_over([(self.future, outcome)])


def hand_over(outcomes: "Iterable[tuple[asyncio.Future[Outcome], Outcome | Exception]]") -> None:
    """Settles futures that are not done, each in its own event loop; call it from any thread."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Outcome], Outcome | Exception]]] = {}
    for future, outcome in outcomes:
        by_loop.setdefault(future.get_loop(), []).append((future, outcome))
    for loop, its in by_loop.items():
        # One wake-up of the loop for all of them. One that has been closed has nobody waiting on it, and must not end
        # the thread that has worked for it.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, its)


def _settle(outcomes: "list[tuple[asyncio.Future[Outcome], Outcome | Exception]]") -> None:
    for future, outcome in outcomes:
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


AnyJob = TypeVar("AnyJob", bound=Job[Any])


class JobThread(ABC, Generic[AnyJob]):
    """A thread that works on jobs, and the queue in which at most `limit` rows of them wait for it."""

    DOING: ClassVar[str]
    """What the thread does, in a word, as those are told whom it cannot serve."""
    WAITING: ClassVar[str]
    """What a full queue says of its rows, which are so many: queries are waiting."""
    LATE: ClassVar[str]
    """What those are told whose deadline passes while they wait."""

    def __init__(self, name: str, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._jobs: deque[AnyJob] = deque()
        self._waiting = 0
        self._seconds_per_row = 0.0
        self._batch: list[AnyJob] = []
        """The jobs that the thread has taken, who are told if it dies."""
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread is there to do its work."""
        return self._thread.is_alive()

    @property
    def accepting(self) -> bool:
        """Whether new work is taken."""
        return self._thread.is_alive() and not self._closing

    def close(self, patience: float | None = None) -> None:
        """Takes no more work, finishes what is queued and ends the thread; blocks until then, or so many seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(patience)

    @abstractmethod
    def _work(self) -> None:
        """Works on what comes, until it is told to close and nothing is left."""

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
                job.settle(NotReadyError(f"the {self.DOING} thread has died"))

    def _require_accepting(self) -> None:
        if not self.accepting:
            raise NotReadyError(f"the service is shutting down or its {self.DOING} thread has died")

    def _queue(self, job: AnyJob) -> None:
        """Queues a job, while `_changed` is held.

        Raises OverloadedError where the queue has no room for it, unless it is empty, and NotReadyError once the thread
        is to end or has died.
        """
        self._require_accepting()
        if self._is_full(job):
            self._drop_abandoned()
        if self._is_full(job):
            self._metrics.rejected.labels("overloaded").inc()
            seconds = max(1, round(self._retry_seconds()))
            raise OverloadedError(
                f"{self._waiting} {self.WAITING} and {self._limit} may: try again later",
                headers={"Retry-After": str(seconds)},
            )
        self._jobs.append(job)
        self._set_waiting(self._waiting + job.rows)

    def _retry_seconds(self) -> float:
        """After how long whoever finds the queue full is to come again: by then half of what waits should be done."""
        return self._waiting * self._seconds_per_row / 2

    def _is_full(self, job: AnyJob) -> bool:
        return bool(self._jobs) and self._waiting + job.rows > self._limit

    def _drop_abandoned(self) -> None:
        """Frees the places of those who have given up before the thread comes to them."""
        kept = [job for job in self._jobs if not self._drop_if_given_up(job)]
        self._jobs.clear()
        self._jobs.extend(kept)
        self._set_waiting(sum(job.rows for job in kept))

    def _drop_if_given_up(self, job: AnyJob) -> bool:
        """Counts and answers a queued job where nobody waits for it any more; whether that is so."""
        reason = job.drop_if_given_up(self.LATE)
        if reason is not None:
            self._metrics.rejected.labels(reason).inc()
        return reason is not None

    def _set_waiting(self, rows: int) -> None:
        self._waiting = rows

    def _took(self, seconds: float, rows: int) -> None:
        """Learns how long a row takes, of the last ones."""
        self._seconds_per_row += 0.1 * (seconds / rows - self._seconds_per_row)
